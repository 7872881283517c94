"""The texts of a request, in the several shapes in which clients send them. Pure."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.http.parsing import MAX_ECHOED
from broker.wire import MAX_INPUTS

MAX_ID = 2**32 - 1
_TEXT: dict[str, Any] = {"type": "string"}
_IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_ID},
    "minItems": 1,
}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_INPUTS}


def _as_inputs(value: Any) -> Any:
    """A text, texts, token ids, or lists of those, as a list of inputs. Raises
    PydanticCustomError.
    """
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        value = [value]
    _check_count(value, "a text, a list of texts, token ids, or a list of lists of token ids")
    return [_as_input(item, index) for index, item in enumerate(value)]


def _as_input(item: Any, index: int) -> str | tuple[int, ...]:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and all(map(_is_id, item)):
        return tuple(item)
    raise PydanticCustomError(
        "input", "item {index} is neither a text nor a list of token ids", {"index": index}
    )


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _as_texts(value: Any) -> Any:
    """Texts, or objects with one, as a list of texts. Raises PydanticCustomError."""
    if isinstance(value, str):
        value = [value]
    _check_count(value, "a text or a list of texts")
    return [_text_of(item, index) for index, item in enumerate(value)]


def _text_of(item: Any, index: int) -> str:
    if isinstance(item, dict):
        item = item.get("text")
    if isinstance(item, str):
        return item
    raise PydanticCustomError(
        "text", "item {index} is neither a text nor an object with one as text", {"index": index}
    )


def _check_count(value: Any, expected: str) -> None:
    if not isinstance(value, list):
        raise PydanticCustomError("input", "must be {expected}", {"expected": expected})
    if not 1 <= len(value) <= MAX_INPUTS:
        raise PydanticCustomError(
            "input",
            "must have 1 to {most} items, not {count}",
            {"most": MAX_INPUTS, "count": len(value)},
        )


_DOCUMENT = {
    "anyOf": [
        _TEXT,
        {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]},
    ]
}
Inputs = Annotated[
    list[str | tuple[int, ...]],
    BeforeValidator(_as_inputs),
    WithJsonSchema({"anyOf": [_TEXT, _array(_TEXT), _IDS, _array(_IDS)]}),
]
Texts = Annotated[
    list[str],
    BeforeValidator(_as_texts),
    WithJsonSchema({"anyOf": [_TEXT, _array(_DOCUMENT)]}),
]
Documents = Annotated[list[str], BeforeValidator(_as_texts), WithJsonSchema(_array(_DOCUMENT))]
PromptName = Annotated[str, Field(min_length=1, max_length=MAX_ECHOED)]
