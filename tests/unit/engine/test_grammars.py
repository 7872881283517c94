"""Answers that keep a grammar, on a tiny model with random weights: what it says is noise."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from broker.wire import Grammar
from tests.unit.engine.decoder_runs import Runs, job
from tests.unit.engine.tiny import save_model
from worker.engines.base import InvalidRequest
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.sampling import token_lists, token_masks

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = Grammar(kind="json_schema", source=json.dumps(PERSON))
# Each has another way to a token.
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "full": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "penalties": {"temperature": 1.0, "frequency_penalty": 2.0, "repetition_penalty": 1.5},
    "bias": {"temperature": 1.0, "logit_bias": {1: 100.0}},  # towards the end of the answer
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    loaded = load(save_model("llama", tmp_path_factory.mktemp("tiny")), "cpu", 8)
    runs = Runs(loaded, 8)
    yield runs
    assert runs.decoder.stop(10)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_answers_keep_a_schema_however_they_are_sampled(
    runs: Runs, settings: dict[str, Any]
) -> None:
    jobs = [
        job("person: ", grammar=SCHEMA, max_tokens=300, seed=seed, **settings) for seed in range(8)
    ]
    for text in runs.texts(jobs):
        jsonschema.validate(json.loads(text), PERSON)


GRAMMARS = {
    "regex": (Grammar(kind="regex", source="(yes|no), [0-9]{3}"), "(yes|no), [0-9]{3}"),
    "choice": (Grammar(kind="choice", source='["red", "\\"\\\\\\n"]'), "red|" + re.escape('"\\\n')),
    "lark": (Grammar(kind="lark", source='start: "a" x "e"\nx: /[bc]{2}/'), "a[bc]{2}e"),
    "GBNF": (
        Grammar(kind="lark", source='root ::= "\\u0061" x{2} # two\nx ::= [\\u0062-c] | "\\x64"'),
        "a[bcd]{2}",
    ),
    "json_object": (Grammar(kind="json_object"), r"(?s)\{.*\}?"),
}


@pytest.mark.parametrize("grammar, pattern", GRAMMARS.values(), ids=GRAMMARS)
def test_every_kind_of_grammar_is_kept(runs: Runs, grammar: Grammar, pattern: str) -> None:
    jobs = [job("x", grammar=grammar, temperature=1.0, seed=seed) for seed in range(4)]
    for text in runs.texts(jobs):
        assert re.fullmatch(pattern, text)


REFUSED = {
    "unsupported": (Grammar(kind="json_schema", source='{"not": {}}'), "not"),
    "loosened": (
        Grammar(kind="json_schema", source='{"not": {}, "x-guidance": {"lenient": true}}'),
        "not",
    ),
    "no JSON": (Grammar(kind="json_schema", source="{"), "not valid JSON"),
    "unsatisfiable": (Grammar(kind="json_schema", source='{"$ref": "#"}'), "no text"),
    "bad regex": (Grammar(kind="regex", source="("), "regular expression"),
    "look-ahead": (Grammar(kind="regex", source="(?=a)b"), "look-around"),
    "no choice": (Grammar(kind="choice", source="[]"), "choice"),
    "bad grammar": (Grammar(kind="lark", source="start: nothing"), "grammar"),
    "bad GBNF": (Grammar(kind="lark", source='root ::= "a" other'), "GBNF.*'other' not found"),
    "GBNF without a root": (Grammar(kind="lark", source='a ::= "a"'), "GBNF.*'root'"),
    "large GBNF": (Grammar(kind="lark", source='root ::= "a"\n' * 300), "256 rules; use Lark"),
    "too long": (Grammar(kind="regex", source="a" * 300_000), "KiB"),
}


@pytest.mark.parametrize("grammar, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_with_the_reason(
    runs: Runs, grammar: Grammar, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        runs.texts([job("x", grammar=grammar)])
    assert "\n" not in str(refused.value)
    assert runs.texts([job("x", max_tokens=2)])  # the engine works on


def _chain(length: int) -> str:
    links: dict[str, Any] = {
        f"d{number}": {"type": "array", "items": {"$ref": f"#/$defs/d{number + 1}"}}
        for number in range(length)
    }
    return json.dumps({"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {}}})


HOSTILE = {
    "chain of schemas": Grammar(kind="json_schema", source=_chain(3000)),
    "chain of rules": Grammar(
        kind="lark",
        source="\n".join(
            ["start: t0", *(f't{n}: "a" t{n + 1} "b"' for n in range(5000)), 't5000: "a"']
        ),
    ),
    "parentheses": Grammar(kind="lark", source="start: " + "(" * 90_000 + '"a"' + ")" * 90_000),
    "GBNF's parentheses": Grammar(kind="lark", source="root ::= " + "(" * 15_000),
    "chain of GBNF's rules": Grammar(
        kind="lark",
        source="\n".join(
            ["root ::= t0", *(f"t{n} ::= " + f"t{n + 1} " * 20 for n in range(254)), 't254 ::= "a"']
        ),
    ),
    "nested": Grammar(kind="json_schema", source='{"items":' * 20_000 + "{}" + "}" * 20_000),
    "ambiguous": Grammar(kind="lark", source="start: s\ns: s s s | s s | /[a-z]/ | "),
    "repeated": Grammar(kind="regex", source="((a{1000}){1000}){1000}"),
    "many states": Grammar(kind="regex", source=".*(a.{40}|b.{41}).*c"),
    "doubling": Grammar(
        kind="lark",
        source="\n".join(
            ["start: T0", *(f"T{n}: T{n + 1} T{n + 1}" for n in range(40)), 'T40: "a"']
        ),
    ),
}


@pytest.mark.parametrize("grammar", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_grammar_costs_its_own_answer_at_most(runs: Runs, grammar: Grammar) -> None:
    try:
        runs.texts([job("x", grammar=grammar, max_tokens=60)])
    except InvalidRequest as refused:
        assert "\n" not in str(refused)
    assert runs.texts([job("x", max_tokens=2)])


def test_a_grammar_whose_masks_take_long_ends_its_own_answer(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_masks, "SLOW_SECONDS", 0.0)
    slow = runs.submit(job("x", grammar=SCHEMA, max_tokens=300))
    free = runs.submit(job("x", max_tokens=40))
    runs.until(lambda: runs.ended(slow) and runs.ended(free))
    with pytest.raises(InvalidRequest, match="takes too long"):
        runs.text(slow)
    assert runs.text(free)
    monkeypatch.undo()
    for text in runs.texts([job("x", grammar=SCHEMA, max_tokens=300)] * 8):
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_few_tokens_are_sampled_as_from_all(
    runs: Runs, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        job("x", grammar=SCHEMA, max_tokens=60, seed=seed, **{"temperature": 1.0, **settings})
        for seed in range(8)
    ]
    among_few = runs.texts(jobs)
    monkeypatch.setattr(token_lists, "FEW", -1)
    monkeypatch.setattr(token_lists.TokenLists, "_keep", lambda *_: None)
    monkeypatch.setattr(token_masks.TokenMasks, "few", lambda *_: False)
    assert runs.texts(jobs) == among_few
