"""What a client's checks must give, by the name of the check.

Several checks of a client may be of one kind: `anthropic_tools` is judged as `tools`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUESTION = "what goes up must come down"
ECHO = "echo"
TREES = ["a tree", "a forest"]  # what the embeddings are of

Judge = Callable[[str, Any], None]


@dataclass(frozen=True)
class Outcome:
    """What a check gave: a fact, or an error (`kind`, `status`, `message`)."""

    fact: Any = None
    error: dict[str, Any] | None = None


def judge(check: str, model: str, outcome: Outcome) -> str:
    """Why the outcome is not what it should be; empty if it is."""
    if outcome.error is not None:
        return f"{outcome.error['kind']} {outcome.error['status']}: {outcome.error['message']}"
    try:
        JUDGES[kind_of(check)](model, outcome.fact)
    except AssertionError as error:
        return f"{outcome.fact!r}: {error}"
    return ""


def kind_of(check: str) -> str:
    """The key in JUDGES that the check's name ends in; the name itself if there is none."""
    kinds = [kind for kind in JUDGES if check == kind or check.endswith(f"_{kind}")]
    return max(kinds, key=len, default=check)


def _text(model: str, fact: Any) -> None:
    assert isinstance(fact, str) and fact.strip(), "an answer"
    # until the limit that some clients must name, so perhaps more than once
    assert model != ECHO or fact.strip().startswith(QUESTION), "the words of the question"


def _texts(model: str, fact: Any) -> None:
    assert isinstance(fact, list) and fact, "answers"
    for text in fact:
        _text(model, text)


def _pieces(model: str, fact: Any) -> None:
    assert len([piece for piece in fact if piece]) > 1, "more than one piece"
    _text(model, "".join(piece or "" for piece in fact))


def _response(model: str, fact: Any) -> None:
    _text(model, fact["text"])
    assert fact.get("status", "completed") in {"completed", "incomplete"}, "an end"
    if "pieces" in fact:
        assert "".join(fact["pieces"]) == fact["text"], "the pieces of the text"


def _call(_: str, fact: Any) -> None:
    assert fact["name"] == "weather", "the offered tool"
    arguments = fact["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    assert list(arguments) == ["city"] and isinstance(arguments["city"], str), "the arguments"


def _loop(model: str, fact: Any) -> None:
    _call(model, fact)
    assert "rain" in fact["text"], "an answer that used the tool's result"


def _streamed_call(model: str, fact: Any) -> None:
    _call(model, fact)
    assert fact["pieces"] > 1, "arguments in pieces"


def _person(_: str, fact: Any) -> None:
    assert set(fact) == {"name", "age"}, "the fields of the schema"
    assert isinstance(fact["name"], str) and isinstance(fact["age"], int), "their types"


def _json_text(_: str, fact: Any) -> None:
    assert isinstance(json.loads(fact["text"]), dict), "a JSON object"


def _vectors(_: str, fact: Any) -> None:
    assert len(fact) == len(TREES) and fact[0] == fact[1] > 0, "vectors of one length"


def _models(model: str, fact: Any) -> None:
    assert model in fact, "the model's name"


def _count(_: str, fact: Any) -> None:
    assert isinstance(fact, int) and fact > 0, "a number of tokens"


def _refused_key(_: str, fact: Any) -> None:
    assert fact["status"] == 401 or "401" in str(fact), "status 401"


def _refused_model(_: str, fact: Any) -> None:
    assert fact["status"] == 404 or "404" in str(fact), "status 404"


def _freed(_: str, fact: Any) -> None:
    assert isinstance(fact, int | float), "the seconds after which the slot was free"


JUDGES: dict[str, Judge] = {
    "chat": _text,
    "batch": _texts,
    "stream": _pieces,
    "completions": _text,
    "responses": _response,
    "responses_stream": _response,
    "tools": _loop,
    "forced_tool": _call,
    "streamed_tool": _streamed_call,
    "structured": _person,
    "json_mode": _json_text,
    "embeddings": _vectors,
    "models": _models,
    "count_tokens": _count,
    "wrong_key": _refused_key,
    "unknown_model": _refused_model,
    "cancel": _freed,
}
