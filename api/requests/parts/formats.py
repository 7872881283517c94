"""The formats in which models write calls, by Start.tool_format."""

from dataclasses import dataclass

from api.requests.parts.calls import CallBody, CallFormat, Calls
from api.requests.parts.deepseek_calls import CALLS_BEGIN, DeepSeekCalls
from api.requests.parts.gemma_calls import GemmaCall
from api.requests.parts.json_calls import JSONCalls
from api.requests.parts.mistral_calls import MistralCalls
from api.requests.parts.parameters import Tools
from api.requests.parts.python_calls import PythonCalls
from api.requests.parts.tagged_calls import GLM, QWEN3_CODER, TaggedCall, TaggedOrJSON, Tags


@dataclass(frozen=True, slots=True)
class Hermes:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, and ours."""

    marks: tuple[str, ...] = ("<tool_call>",)
    bare: bool = False

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat."""
        return JSONCalls(mark, calls, close="</tool_call>", lists=True)


@dataclass(frozen=True, slots=True)
class Llama3:
    """`{"name": ..., "parameters": {...}}`, several with `;` between, perhaps behind a mark."""

    marks: tuple[str, ...] = ("<|python_tag|>",)
    bare: bool = True

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat. Without a mark, only an object that names a tool is a call."""
        return JSONCalls(
            mark, calls, names=None if mark else frozenset(tools), separator=";", lists=True
        )


@dataclass(frozen=True, slots=True)
class Mistral:
    """`[TOOL_CALLS]` and a list, or a name and arguments."""

    marks: tuple[str, ...] = ("[TOOL_CALLS]",)
    bare: bool = False

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat."""
        return MistralCalls(mark, calls)


@dataclass(frozen=True, slots=True)
class Gemma:
    """`call:NAME{...}` between marks, as FunctionGemma and Gemma 4 write it."""

    marks: tuple[str, ...]
    close: str
    quote: str
    bare: bool = False

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat."""
        return GemmaCall(mark, calls, close=self.close, quote=self.quote)


@dataclass(frozen=True, slots=True)
class Tagged:
    """Marks around each argument: Qwen3-Coder and GLM, which may write JSON, too."""

    tags: Tags
    marks: tuple[str, ...] = ("<tool_call>",)
    bare: bool = False

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat."""
        if mark == self.tags.name[0]:  # some models leave out the first mark
            return TaggedCall(mark, calls, tools, self.tags)
        return TaggedOrJSON(mark, calls, tools, self.tags)


@dataclass(frozen=True, slots=True)
class DeepSeek:
    """A name and JSON between marks, several calls behind one mark: DeepSeek V3, R1 and V3.1."""

    marks: tuple[str, ...] = (CALLS_BEGIN,)
    bare: bool = False

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat."""
        return DeepSeekCalls(mark, calls)


@dataclass(frozen=True, slots=True)
class Python:
    """A block of Python: Gemma 3."""

    marks: tuple[str, ...] = ("```tool_code",)
    bare: bool = False

    def body(self, mark: str, calls: Calls, tools: Tools) -> CallBody:
        """See CallFormat."""
        return PythonCalls(mark, calls, tools)


FORMATS: dict[str, CallFormat] = {
    "hermes": Hermes(),
    "llama3": Llama3(),
    "mistral": Mistral(),
    "mistral-named": Mistral(),
    "functiongemma": Gemma(("<start_function_call>",), "<end_function_call>", "<escape>"),
    "qwen3-coder": Tagged(QWEN3_CODER, ("<tool_call>", QWEN3_CODER.name[0])),
    "glm": Tagged(GLM),
    "deepseek-v3": DeepSeek(),
    "deepseek-v3.1": DeepSeek(),
    "tool-code": Python(),
    "gemma4": Gemma(("<|tool_call>",), "<tool_call|>", '<|"|>'),
}
