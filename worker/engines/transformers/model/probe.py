"""Brings a model onto slots, and proves by its own answers that it fits there.

The proof is twofold. The model itself answers the same few prompts through the library's attention
and over slots. And a twin of it, small enough to read beyond every window and limit of its
architecture, does the same: see `twin`. What has another kind of cache, an attention that takes no
function of ours, or a mask that slots do not know, fails one of them and is computed the library's
way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, PretrainedConfig

from worker.engines.transformers.model import attention
from worker.engines.transformers.model.attention import Piece
from worker.engines.transformers.model.runner import SlotModel, Unfit
from worker.errors import one_line

_PROBE = "canopy_probe"
_PROMPT, _MORE = 11, 3  # tokens of the proof: read as 7 + 4, then decoded one at a time


class Kind(NamedTuple):
    """What distinguishes the attention of one layer from that of another."""

    module: str  # its class
    windowed: bool
    capped: bool
    masked: bool


class Shape:
    """What slots need to know of a model: its attention modules in order, with what each keeps of a
    token.
    """

    def __init__(self, model: Any) -> None:
        """Runs one token through the model, which is as it was afterwards. Raises Unfit."""
        self.modules: dict[Any, tuple[int, int]] = {}
        self.places: dict[Any, torch.device] = {}  # where each of them computes
        self.kinds: set[Kind] = set()
        AttentionInterface.register(_PROBE, self._record)
        with attention_of(model, _PROBE):
            try:
                with torch.inference_mode():
                    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
                    model(input_ids=token, use_cache=False)
            except Unfit:
                raise
            except Exception as error:  # each architecture may fail in its own way; it is computed the library's way
                raise Unfit(one_line(error)) from error
        layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
        if len(self.modules) != layers:
            raise Unfit(
                f"{len(self.modules)} of its {layers} layers are attention that takes a function"
            )

    def _record(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """For transformers, as `attention.attend_layer` is."""
        given = {name for name, setting in more.items() if setting is not None}
        if unknown := {"s_aux", "position_bias"} & given:
            raise Unfit(f"its attention wants {', '.join(sorted(unknown))}")
        if key.shape != value.shape:
            raise Unfit(f"it keeps keys of {key.shape[-1]} numbers and values of {value.shape[-1]}")
        if module in self.modules:
            raise Unfit("a layer calls its attention more than once, or shares it with another")
        if not getattr(module, "is_causal", True):
            raise Unfit("its attention looks ahead")
        self.modules[module] = (key.shape[1], key.shape[3])
        self.places[module] = key.device
        windowed = bool(more.get("sliding_window"))
        capped = bool(more.get("softcap"))
        self.kinds.add(Kind(type(module).__name__, windowed, capped, attention_mask is not None))
        return query.transpose(1, 2).contiguous(), None

    def bytes_per_token(self, dtype: torch.dtype, place: torch.device | None = None) -> int:
        """Memory that the keys and values of one token take, on that device alone or on all of
        them.
        """
        return sum(
            2 * heads * size * dtype.itemsize
            for module, (heads, size) in self.modules.items()
            if place is None or self.places[module] == place
        )


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """The attention function of that name meanwhile, and what was there before on every way out.
    Raises Unfit.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        _use(model, name)
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def fit(model: Any, shape: Shape, slots: int, context: int) -> SlotModel:
    """The model over that many slots, checked. Its attention function is ours from then on; what
    does not fit is left as it was. Raises Unfit.
    """
    attention.register()
    over = SlotModel(model, slots, context)
    try:
        over.allocate(shape.modules, shape.places)
        if context >= _PROMPT + _MORE:
            with attention_of(model, attention.NAME):
                got = _over_slots(over, *_probes(model, slots))
            prompts, _ = _probes(model, slots)
            check_equal(model.dtype, got, [_by_library(model, prompt) for prompt in prompts])
        _use(model, attention.NAME)
    except Exception:
        over.release()
        raise
    return over


def check_equal(dtype: torch.dtype, mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Logits of the same tokens in two ways. Raises Unfit if they are not the same but for
    rounding.
    """
    bound = 1e-3 if dtype == torch.float32 else 0.25
    for ours, wanted in zip(mine, theirs, strict=True):
        spread = float(wanted.std()) or 1.0
        off = float((ours - wanted).abs().max()) / spread
        if not off < bound:  # a NaN is not below anything
            raise Unfit(f"its answers differ by {off:.2g} of their spread")


def compile_layers(model: Any, shape: Shape) -> int:
    """Compiles the repeated blocks around the attention modules, once for all of them; returns how
    many there are.
    """
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
    found = {
        id(block): block for module in shape.modules if (block := _block(model, module)) is not None
    }
    return list(found.values())


def _block(model: Any, module: Any) -> Any:
    """The element of a list of layers that `module` is part of."""
    path = next((name for name, candidate in model.named_modules() if candidate is module), "")
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdecimal():
            return model.get_submodule(".".join(parts[:end]))
    return None


def _probes(model: Any, slots: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of different lengths, and the slots they are computed in."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(1)
    both = torch.randint(0, vocabulary, (2, _PROMPT + _MORE), generator=generator).tolist()
    if slots == 1:
        return [both[0]], [0]
    return [both[0], both[1][: _PROMPT - 2 + _MORE]], [0, 1]


def _by_library(model: Any, prompt: list[int]) -> torch.Tensor:
    """Logits [1 + _MORE, vocabulary] after the prompt and each further token."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -_MORE - 1 :].float()
    return logits


@torch.inference_mode()
def _over_slots(over: SlotModel, prompts: list[list[int]], slots: list[int]) -> list[torch.Tensor]:
    """The same of each prompt, read in two pieces, the rest decoded together."""
    lengths = [len(prompt) - _MORE for prompt in prompts]
    over.prefill(
        [Piece(slot, 0, 7) for slot in slots],
        [prompt[:7] for prompt in prompts],
        [False] * len(slots),
    )
    pieces = [Piece(slot, 7, length - 7) for slot, length in zip(slots, lengths, strict=True)]
    rest = [prompt[7:length] for prompt, length in zip(prompts, lengths, strict=True)]
    made = [over.prefill(pieces, rest, [True] * len(slots)).float()]
    for more in range(_MORE):
        newest = [prompt[length + more] for prompt, length in zip(prompts, lengths, strict=True)]
        over.feed(torch.tensor(newest, device=over.device))
        made.append(over.decode(slots, [length + more for length in lengths]).float().clone())
    return [torch.stack([logits[row] for logits in made]) for row in range(len(prompts))]


def _configs(model: Any) -> list[Any]:
    """Every config that a part of the model looks at, once."""
    found = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found[id(config)] = config
    for config in list(found.values()):
        text = config.get_text_config(decoder=True)
        found.setdefault(id(text), text)
    return list(found.values())


def _use(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise Unfit("it does not let its attention be replaced")
