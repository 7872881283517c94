"""Brings a model onto slots, and proves by its own answers that it fits there.

The proof: the same few prompts once through the library's attention and once through slots, read in pieces and decoded.
An architecture with another kind of cache, or an attention that takes no function of ours, fails it and is computed the
library's way.
"""

from typing import Any

import torch
from transformers import AttentionInterface

from worker.engines import attention
from worker.engines.attention import Piece
from worker.engines.slotmodel import SlotModel, Unfit
from worker.errors import one_line

_PROBE = "canopy_probe"
_PROMPT, _MORE = 11, 3  # tokens of the proof: read as 7 + 4, then decoded one at a time


class Shape:
    """What slots need to know of a model: its attention modules in order, with what each keeps of a token."""

    def __init__(self, model: Any) -> None:
        """Runs one token through the model. Raises Unfit."""
        self.modules: dict[Any, tuple[int, int]] = {}
        self.places: dict[Any, torch.device] = {}  # where each of them computes
        self.attention: str = model.config._attn_implementation  # the library's choice

        def record(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **more: Any
        ) -> Any:
            if unknown := {"s_aux", "position_bias"} & {name for name, given in more.items() if given is not None}:
                raise Unfit(f"its attention wants {', '.join(sorted(unknown))}")
            if module in self.modules or key.shape != value.shape:
                raise Unfit("its attention is shared between layers, or keeps keys and values of different shapes")
            if not getattr(module, "is_causal", True):
                raise Unfit("its attention looks ahead")
            self.modules[module] = (key.shape[1], key.shape[3])
            self.places[module] = key.device
            return query.transpose(1, 2).contiguous(), None

        AttentionInterface.register(_PROBE, record)
        _use(model, _PROBE)
        try:
            with torch.inference_mode():
                model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
        except Unfit:
            raise
        except Exception as error:  # each architecture may fail in its own way; it is computed the library's way then
            raise Unfit(one_line(error)) from error
        layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
        if len(self.modules) != layers:
            raise Unfit(f"{len(self.modules)} of its {layers} layers are attention that takes a function")

    def bytes_per_token(self, dtype: torch.dtype, place: torch.device | None = None) -> int:
        """Memory that the keys and values of one token take, on that device alone or on all of them."""
        return sum(
            2 * heads * size * dtype.itemsize
            for module, (heads, size) in self.modules.items()
            if place is None or self.places[module] == place
        )


def fit(model: Any, shape: Shape, slots: int, context: int) -> SlotModel:
    """The model over that many slots, checked. Its attention function is ours from then on. Raises Unfit."""
    attention.register()
    over = SlotModel(model, slots, context)
    try:
        _use(model, attention.NAME)
        over.allocate(shape.modules, shape.places)
        if context >= _PROMPT + _MORE:
            _prove(model, shape, over)
    except Exception:
        over.release()
        raise
    return over


def give_back(model: Any, shape: Shape) -> None:
    """The library's own attention again, after Unfit."""
    _use(model, shape.attention)


def compile_layers(model: Any, shape: Shape) -> int:
    """Compiles the repeated blocks around the attention modules, once for all of them; returns how many there are."""
    blocks = _blocks(model, shape)
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)


def uncompile(model: Any, shape: Shape) -> None:
    """The blocks as they were."""
    for block in _blocks(model, shape):
        block._compiled_call_impl = None


def _blocks(model: Any, shape: Shape) -> list[Any]:
    found = {id(block): block for module in shape.modules if (block := _block(model, module)) is not None}
    return list(found.values())


def _block(model: Any, module: Any) -> Any:
    """The element of a list of layers that `module` is part of."""
    path = next((name for name, candidate in model.named_modules() if candidate is module), "")
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdecimal():
            return model.get_submodule(".".join(parts[:end]))
    return None


def _prove(model: Any, shape: Shape, over: SlotModel) -> None:
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)
    both = torch.randint(0, vocabulary, (2, _PROMPT + _MORE), generator=generator).tolist()
    prompts = [both[0], both[1][: _PROMPT - 2 + _MORE]]  # ragged
    slots = [0, 1 % over.slots]
    if over.slots == 1:
        prompts, slots = prompts[:1], slots[:1]
    with torch.inference_mode():
        got = _over_slots(over, prompts, slots)
        give_back(model, shape)
        try:
            wanted = [_by_library(model, prompt) for prompt in prompts]
        finally:
            _use(model, attention.NAME)
    for mine, theirs in zip(got, wanted, strict=True):
        spread = float(theirs.std()) or 1.0
        off = float((mine - theirs).abs().max()) / spread
        bound = 1e-3 if model.dtype == torch.float32 else 0.25
        if not off < bound:  # a NaN is not below anything
            raise Unfit(f"its answers over slots differ by {off:.2g} of their spread")


def _by_library(model: Any, prompt: list[int]) -> torch.Tensor:
    """Logits [1 + _MORE, vocabulary] after the prompt and each further token."""
    output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -_MORE - 1 :].float()
    return logits


def _over_slots(over: SlotModel, prompts: list[list[int]], slots: list[int]) -> list[torch.Tensor]:
    """The same of each prompt, read in two pieces, the rest decoded together."""
    lengths = [len(prompt) - _MORE for prompt in prompts]
    over.prefill([Piece(slot, 0, 7) for slot in slots], [prompt[:7] for prompt in prompts], [False] * len(slots))
    pieces = [Piece(slot, 7, length - 7) for slot, length in zip(slots, lengths, strict=True)]
    rest = [prompt[7:length] for prompt, length in zip(prompts, lengths, strict=True)]
    made = [over.prefill(pieces, rest, [True] * len(slots)).float()]
    for more in range(_MORE):
        newest = [prompt[length + more] for prompt, length in zip(prompts, lengths, strict=True)]
        over.feed(torch.tensor(newest, device=over.device))
        made.append(over.decode(slots, [length + more for length in lengths]).float().clone())
    return [torch.stack([logits[row] for logits in made]) for row in range(len(prompts))]


def _use(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise Unfit("it does not let its attention be replaced")
