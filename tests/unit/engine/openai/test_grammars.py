"""What another server is told of a grammar and of an answer's least length."""

import json
from typing import Any

import pytest

from broker.wire import Grammar
from tests.unit.engine.openai.runs import chat
from worker.engines.base import InvalidRequest
from worker.engines.openai.body import Plan, body, plans

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
}
FIELDS: dict[str, tuple[Grammar, str, dict[str, Any]]] = {
    "schema": (
        Grammar(kind="json_schema", source=json.dumps(SCHEMA)), "",
        {"response_format": AS_SCHEMA},
    ),
    "object": (Grammar(kind="json_object"), "", {"response_format": {"type": "json_object"}}),
    "regex": (
        Grammar(kind="regex", source="a+"), "vllm",
        {"structured_outputs": {"regex": "a+"}},
    ),
    "choice": (
        Grammar(kind="choice", source='["a"]'), "canopy",
        {"structured_outputs": {"choice": ["a"]}},
    ),
    "lark": (
        Grammar(kind="lark", source='start: "a"'), "vllm",
        {"structured_outputs": {"grammar": 'start: "a"'}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("grammar, owner, fields", FIELDS.values(), ids=FIELDS)
def test_a_grammar_has_a_field(grammar: Grammar, owner: str, fields: dict[str, Any]) -> None:
    _, sent = body(chat("x", grammar=grammar), "far", Plan(), owner=owner)
    assert fields.items() <= sent.items()


def test_a_server_without_a_field_is_named() -> None:
    with pytest.raises(InvalidRequest, match="regex"):
        body(chat("x", grammar=Grammar(kind="regex", source="a")), "far", Plan(), owner="llamacpp")


def test_an_answer_with_a_grammar_is_repeated_not_continued() -> None:
    job = chat("x", grammar=Grammar(kind="json_object"), delivered='{"a"')
    assert [plan.prefill for plan in plans(job, continues=True)] == [""]


def test_least_lengths_and_ends() -> None:
    _, sent = body(chat("x", min_tokens=3, ignore_eos=True, stop_token_ids=(7,)), "far", Plan())
    assert (sent["min_tokens"], sent["ignore_eos"], sent["stop_token_ids"]) == (3, True, (7,))
