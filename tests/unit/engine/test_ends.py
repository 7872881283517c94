"""Where an answer ends: least lengths, ignored ends, token ids that end it; and a grammar's end."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest

from broker.wire import Grammar
from tests.unit.engine.decoder_runs import Runs, job
from tests.unit.engine.test_grammars import PERSON, SCHEMA
from tests.unit.engine.tiny import save_model, tokenizer
from worker.engines.base import Chunk
from worker.engines.transformers.model.loader import load

EOS = 1
ENDS = {"temperature": 1.0, "logit_bias": {EOS: 100.0}}  # the end is always the likeliest


@pytest.fixture(scope="module", params=["runner", "padded", "sequential"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "runner":
            patch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
        loaded = load(save_model("llama", tmp_path_factory.mktemp("tiny")), "cpu", 4)
    if request.param != "runner":
        loaded = msgspec.structs.replace(loaded, batched=request.param == "padded")
    runs = Runs(loaded, 4)
    yield runs
    assert runs.decoder.stop(10)


def ended(runs: Runs, **settings: Any) -> tuple[str, int, str | None]:
    """Text, tokens and finish reason."""
    delivered = {key: settings.pop(key) for key in list(settings) if key.startswith("delivered")}
    submitted = msgspec.structs.replace(job("x", **settings), **delivered)
    sequence = runs.submit(submitted)
    runs.until(lambda: runs.ended(sequence))
    text = runs.text(sequence)
    chunks = [chunk for chunk in runs.outputs[sequence.mailbox] if isinstance(chunk, Chunk)]
    return text, sum(chunk.tokens for chunk in chunks), chunks[-1].finish


def test_no_end_before_the_least_length(runs: Runs) -> None:
    assert ended(runs, **ENDS)[1:] == (0, "stop")
    assert ended(runs, min_tokens=7, **ENDS)[1:] == (7, "stop")
    assert ended(runs, min_tokens=24, **ENDS)[1:] == (24, "length")


def test_a_stop_string_does_not_end_it_before_the_least_length(runs: Runs) -> None:
    text, _, _ = ended(runs, max_tokens=24)
    stop = text[3]
    cut, _, _ = ended(runs, max_tokens=24, stop=(stop,), min_tokens=9)
    assert cut == (text[:9] + text[9:].split(stop)[0])


def test_ends_are_ignored(runs: Runs) -> None:
    assert ended(runs, ignore_eos=True, **ENDS)[1:] == (24, "length")


def test_token_ids_end_it(runs: Runs) -> None:
    text, _, _ = ended(runs, max_tokens=24)
    token = tokenizer().convert_tokens_to_ids(text[5].replace(" ", "Ġ"))
    cut, tokens, finish = ended(runs, max_tokens=24, stop_token_ids=(token, 10**6))
    assert cut == text[: text.index(text[5])]
    assert (tokens, finish) == (len(cut), "stop")
    assert ended(runs, ignore_eos=True, max_tokens=24, stop_token_ids=(token,))[0] == cut


def test_a_grammar_ends_it_whatever_else_is_said(runs: Runs) -> None:
    grammar = Grammar(kind="choice", source='["ab"]')
    for settings in ({}, {"ignore_eos": True}, {"min_tokens": 9}):
        assert ended(runs, grammar=grammar, **settings) == ("ab", 2, "stop")
    assert ended(runs, grammar=grammar, max_tokens=1) == ("a", 1, "length")


def test_the_least_length_prefers_the_longer_text(runs: Runs) -> None:
    grammar = Grammar(kind="regex", source="[a-z]+")
    assert ended(runs, grammar=grammar, min_tokens=6, **ENDS)[1:] == (6, "stop")


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_a_run_goes_on_within_its_grammar(runs: Runs, ids: bool) -> None:
    settings = {"grammar": SCHEMA, "temperature": 1.0, "seed": 5, "max_tokens": 300}
    whole, _, finish = ended(runs, **settings)
    assert finish == "stop"
    jsonschema.validate(json.loads(whole), PERSON)
    for cut in range(0, len(whole) + 1, 5):
        delivered: dict[str, Any] = {"delivered": whole[:cut]}
        if ids:  # a token a byte
            alphabet = tokenizer()
            delivered["delivered_ids"] = tuple(
                alphabet(whole[:cut], add_special_tokens=False)["input_ids"]
            )
        text, _, finish = ended(runs, **settings, **delivered)
        assert finish == "stop"
        jsonschema.validate(json.loads(whole[:cut] + text), PERSON)
        if ids:
            assert whole[:cut] + text == whole
