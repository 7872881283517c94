"""Which tokens of its sequence a layer's attention sees."""

from typing import Any, NamedTuple


class Window(NamedTuple):
    """The newest `tokens` tokens, the present one included; with `chunked` those from the last
    multiple of `tokens` on (Llama 4). 0: all.
    """

    tokens: int = 0
    chunked: bool = False

    def first_visible(self, position: int) -> int:
        """The oldest token that the one at `position` sees."""
        if not self.tokens:
            return 0
        if self.chunked:
            return position // self.tokens * self.tokens
        return max(0, position - self.tokens + 1)


def layer_window(module: Any, sliding_window: int | None) -> Window:
    """Of an attention module of the library, which passes `sliding_window` to its attention. Some
    pass none and rely on a mask that follows from the layer's type. None if the runner has said
    that its sequences are too short for the window (`sees_all`).
    """
    if getattr(module, "sees_all", False):
        return Window()
    if sliding_window:
        return Window(int(sliding_window))
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    types = getattr(config, "layer_types", None)
    if types is None or layer is None or layer >= len(types):
        return Window()
    if types[layer] == "sliding_attention":
        return Window(int(getattr(config, "sliding_window", None) or 0))
    if types[layer] == "chunked_attention":
        return Window(int(getattr(config, "attention_chunk_size", None) or 0), chunked=True)
    return Window()
