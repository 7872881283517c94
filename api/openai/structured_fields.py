"""The fields that say what an answer must look like: OpenAI's, and vLLM's."""

from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from api.http.parsing import Body
from api.requests import structured
from broker.wire import Grammar, GrammarKind


class NamedSchema(Body):
    """A JSON schema with a name, which changes nothing."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = Field(default=None, description="an answer keeps its schema anyway")


class ResponseFormat(Body):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(Body):
    """vLLM's."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class _Wanted(NamedTuple):
    """One of the fields, with a value."""

    field: tuple[str, ...]
    kind: GrammarKind
    value: Any


class StructuredFields(Body):
    """The part of a request that says what its answer must look like; one field at most."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = Field(
        default=None, description="in llguidance's Lark syntax, or in GBNF"
    )
    _grammar: Grammar | None = PrivateAttr(default=None)

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must look like; None: anything."""
        return self._grammar

    @model_validator(mode="after")
    def _find_grammar(self) -> Self:
        if self.model_fields_set.isdisjoint(_STRUCTURED_FIELDS):
            return self
        wanted = [*self._response_format(), *self._structured_outputs(), *self._guided()]
        if len(wanted) > 1:
            raise PydanticCustomError(
                "grammar",
                "only one field may say what the answer looks like",
                {"at": wanted[1].field},
            )
        if wanted:
            self._grammar = _grammar(wanted[0])
        return self

    def _response_format(self) -> list[_Wanted]:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return []
        if wanted.type == "json_object":
            return [_Wanted(("response_format",), "json_object", "")]
        schema = wanted.json_schema.schema_ if wanted.json_schema is not None else None
        return [_Wanted(("response_format", "json_schema", "schema"), "json_schema", schema)]

    def _structured_outputs(self) -> list[_Wanted]:
        wanted = self.structured_outputs
        if wanted is None:
            return []
        values: dict[str, Any] = {
            "json": wanted.json_,
            "regex": wanted.regex,
            "choice": wanted.choice,
            "grammar": wanted.grammar,
            "json_object": wanted.json_object or None,
        }
        return _set_ones(values, "structured_outputs", "")

    def _guided(self) -> list[_Wanted]:
        values: dict[str, Any] = {
            "json": self.guided_json or None,
            "regex": self.guided_regex or None,
            "choice": self.guided_choice or None,
            "grammar": self.guided_grammar or None,
        }
        return _set_ones(values, "", "guided_")


_STRUCTURED_FIELDS = frozenset(StructuredFields.model_fields)
_KINDS: dict[str, GrammarKind] = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}


def _set_ones(values: dict[str, Any], parent: str, prefix: str) -> list[_Wanted]:
    """Those that are not None; `parent` and `prefix`: of the field's name."""
    wanted: list[_Wanted] = []
    for name, value in values.items():
        if value is not None:
            field = (f"{prefix}{name}",)
            wanted.append(_Wanted((parent, *field) if parent else field, _KINDS[name], value))
    return wanted


def _grammar(wanted: _Wanted) -> Grammar:
    """Raises PydanticCustomError that names the field."""
    try:
        return structured.grammar(wanted.kind, wanted.value)
    except PydanticCustomError as error:
        context = {**(error.context or {}), "at": wanted.field}
        raise PydanticCustomError("grammar", "{reason}", context) from error
