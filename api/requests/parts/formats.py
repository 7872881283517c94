"""The formats in which models write calls, by Start.tool_format."""

from dataclasses import dataclass

from api.requests.parts.calls import CallBody, CallFormat, Calls
from api.requests.parts.gemma_calls import GemmaCall
from api.requests.parts.json_calls import JSONCalls
from api.requests.parts.mistral_calls import MistralCalls


@dataclass(frozen=True, slots=True)
class Hermes:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, and ours."""

    marks: tuple[str, ...] = ("<tool_call>",)
    bare: bool = False

    def body(self, mark: str, calls: Calls, names: frozenset[str]) -> CallBody:
        """See CallFormat."""
        return JSONCalls(mark, calls, close="</tool_call>", lists=True)


@dataclass(frozen=True, slots=True)
class Llama3:
    """`{"name": ..., "parameters": {...}}`, several with `;` between, perhaps behind a mark."""

    marks: tuple[str, ...] = ("<|python_tag|>",)
    bare: bool = True

    def body(self, mark: str, calls: Calls, names: frozenset[str]) -> CallBody:
        """See CallFormat. Without a mark, only an object that names a tool is a call."""
        return JSONCalls(mark, calls, names=None if mark else names, separator=";", lists=True)


@dataclass(frozen=True, slots=True)
class Mistral:
    """`[TOOL_CALLS]` and a list, or a name and arguments."""

    marks: tuple[str, ...] = ("[TOOL_CALLS]",)
    bare: bool = False

    def body(self, mark: str, calls: Calls, names: frozenset[str]) -> CallBody:
        """See CallFormat."""
        return MistralCalls(mark, calls)


@dataclass(frozen=True, slots=True)
class Gemma:
    """`call:NAME{...}` between marks, as FunctionGemma and Gemma 4 write it."""

    marks: tuple[str, ...]
    close: str
    quote: str
    bare: bool = False

    def body(self, mark: str, calls: Calls, names: frozenset[str]) -> CallBody:
        """See CallFormat."""
        return GemmaCall(mark, calls, close=self.close, quote=self.quote)


FORMATS: dict[str, CallFormat] = {
    "hermes": Hermes(),
    "llama3": Llama3(),
    "mistral": Mistral(),
    "mistral-named": Mistral(),
    "functiongemma": Gemma(("<start_function_call>",), "<end_function_call>", "<escape>"),
    "gemma4": Gemma(("<|tool_call>",), "<tool_call|>", '<|"|>'),
}
