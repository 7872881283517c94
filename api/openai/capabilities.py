"""What a model's nodes can be asked for, as far as their states tell. Pure."""

from collections.abc import Iterable

from broker.node_state import NodeState

_KEEPS_GRAMMARS = ("transformers", "echo")
_CALLS_TOOLS = ("transformers", "openai", "echo")
_TELLS_LOGPROBS = ("transformers", "openai")


def capabilities(states: Iterable[NodeState]) -> dict[str, bool] | None:
    """What every one of these nodes, which serve one model, can do; None if there are none."""
    known = [_of_node(state) for state in states]
    if not known:
        return None
    return {name: all(each[name] for each in known) for name in known[0]}


def _of_node(state: NodeState) -> dict[str, bool]:
    generates = "generate" in state.tasks
    keeps_grammars = generates and state.engine in _KEEPS_GRAMMARS
    return {
        "chat": generates,
        "completions": generates,
        "structured_output": keeps_grammars,
        "tools": generates and state.engine in _CALLS_TOOLS,
        "logprobs": generates and state.engine in _TELLS_LOGPROBS,
        "tokenize": "tokenize" in state.tasks,
        "embeddings": "embed" in state.tasks,
        "rerank": "score" in state.tasks,
    }
