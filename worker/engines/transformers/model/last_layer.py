"""The last layer, of the tokens alone whose logits are wanted.

What follows the last attention (its output projection, the MLP, the final norm) is computed token
by token, and of a prompt nobody reads it but for the last token. The keys and values of all tokens
are needed. The library's layer stays as it is: its residual begins with the kept tokens, the module
that reads them first reads all tokens instead, and the attention's last module keeps those rows.

A layer that is written otherwise (attention and MLP side by side, inputs of its own for each token)
does not get the same answers so, or an error: then it is computed of all tokens (see `probe`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from worker.engines.transformers.model.attention import current_step
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.kv_cache import KVCacheLayout, attention_function
from worker.errors import one_line

_RECORDER = "canopy_last_layer"  # the attention function that tells when attention is called
_NO_PRODUCT = (nn.Dropout, nn.Identity)


class _Kept:
    """Of the call in progress: the layer's whole input, until its first module has read it, and
    the rows to keep, until its attention has kept them.
    """

    hidden: torch.Tensor | None = None
    rows: torch.Tensor | None = None


class _WholeInput(nn.Module):
    """Stands where the layer's first module stood, which gets all tokens."""

    def __init__(self, module: nn.Module, kept: _Kept) -> None:
        super().__init__()
        self.module = module
        self._kept = kept

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        whole, self._kept.hidden = self._kept.hidden, None
        return self.module(hidden_states if whole is None else whole, *args, **kwargs)


class _KeptOutput(nn.Module):
    """Stands where the attention's output projection stood, which gets the kept tokens."""

    def __init__(self, module: nn.Module, kept: _Kept) -> None:
        super().__init__()
        self.module = module
        self._kept = kept

    def forward(self, attended: torch.Tensor) -> Any:
        rows, self._kept.rows = self._kept.rows, None
        return self.module(attended if rows is None else attended.index_select(-2, rows))


class _Body(nn.Module):
    """What is compiled of a `LastLayer`."""

    def __init__(self, layer: nn.Module, kept: _Kept) -> None:
        super().__init__()
        self.layer = layer
        self._kept = kept

    def forward(
        self, hidden: torch.Tensor, rows: torch.Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        if rows is not None:
            self._kept.hidden, self._kept.rows = hidden, rows
            hidden = hidden.index_select(-2, rows)
        return self.layer(hidden, *args, **kwargs)


class LastLayer(nn.Module):
    """Stands where a model's last layer stood: [1, tokens, features] to [1, kept, features], with
    the `kept` of the step; without one as the layer itself. Raises RuntimeError if the layer gives
    another shape.
    """

    def __init__(self, layer: nn.Module, kept: _Kept) -> None:
        super().__init__()
        self._kept = kept
        self.body = _Body(layer, kept)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        step = current_step()
        rows = None if step is None else step.kept
        try:
            output = self.body(hidden, rows, *args, **kwargs)
        finally:  # an error must not leave them to the next call
            self._kept.hidden = self._kept.rows = None
        if rows is not None and output.shape != (1, len(rows), hidden.shape[-1]):
            raise RuntimeError(f"the last layer gave {tuple(output.shape)} for {len(rows)} tokens")
        return output


class Place(NamedTuple):
    """Where a module is in another one."""

    parent: Any
    attribute: str

    def get(self) -> Any:
        return getattr(self.parent, self.attribute)

    def put(self, module: nn.Module) -> None:
        setattr(self.parent, self.attribute, module)


class KeptTail:
    """A model's last layer in its new form, until `remove`."""

    def __init__(self, layer: Place, first: Place, output: Place) -> None:
        kept = _Kept()
        self._layer, self._first, self._output = layer, first, output
        first.put(_WholeInput(first.get(), kept))
        output.put(_KeptOutput(output.get(), kept))
        layer.put(LastLayer(layer.get(), kept))

    def remove(self) -> None:
        """The model is as it was, but for what others have replaced within."""
        self._layer.put(self._layer.get().body.layer)
        self._first.put(self._first.get().module)
        self._output.put(self._output.get().module)


def keep_tail(model: Any, layout: KVCacheLayout) -> KeptTail:
    """Has the last layer computed of a step's `kept` tokens. Raises UnsupportedModel where its
    parts are not known; the model is as it was then.
    """
    if len(set(layout.devices.values())) > 1:
        raise UnsupportedModel("its layers are on several devices")
    attention = list(layout.shapes)[-1]
    path = next(path for path, module in model.named_modules() if module is attention)
    place = enclosing_place(model, path)
    if place is None:
        raise UnsupportedModel("its layers are not in a list")
    layer = place.get()
    before, after = _recorded_calls(model, layer, attention)
    if not before or not after:
        raise UnsupportedModel("its last layer has other parts")
    return KeptTail(place, Place(layer, before[0]), Place(attention, after[-1]))


def enclosing_place(model: Any, path: str) -> Place | None:
    """Of the innermost list element on `path`, such as `model.layers.3`."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdecimal():
            return Place(model.get_submodule(".".join(parts[: end - 1])), parts[end - 1])
    return None


def _recorded_calls(model: Any, layer: Any, attention: Any) -> tuple[list[str], list[str]]:
    """The children of `layer` that get its input before attention is called, and those of
    `attention` that are called after it, as one token goes through the model.
    """
    inputs: list[Any] = []  # of `layer`
    attended: list[bool] = []
    before: list[str] = []
    after: list[str] = []

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        if module is attention:
            attended.append(True)
        out = query.new_zeros(*query.shape[:3], value.shape[3])
        return out.transpose(1, 2).contiguous(), None

    def observe_layer(_: Any, args: tuple[Any, ...]) -> None:
        inputs.append(args[0] if args else None)

    def observe_first(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        if not attended and any(each is inputs[-1] for each in given):
            before.append(name)

    with ExitStack() as hooks:
        hooks.enter_context(attention_function(model, _RECORDER, attend))
        hooks.enter_context(_removed(layer.register_forward_pre_hook(observe_layer)))
        for name, child in layer.named_children():

            def first(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                observe_first(name, args, kwargs)

            handle = child.register_forward_pre_hook(first, with_kwargs=True)
            hooks.enter_context(_removed(handle))
        for name, child in attention.named_children():
            if isinstance(child, _NO_PRODUCT):
                continue

            def later(_: Any, __: Any, name: str = name) -> None:
                if attended:
                    after.append(name)

            hooks.enter_context(_removed(child.register_forward_pre_hook(later)))
        try:
            with torch.inference_mode():
                token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
                model(input_ids=token, use_cache=False)
        except Exception as error:  # each architecture may fail in its own way
            raise UnsupportedModel(one_line(error)) from error
    return before, after


@contextmanager
def _removed(handle: RemovableHandle) -> Iterator[None]:
    """The hook is there meanwhile."""
    try:
        yield
    finally:
        handle.remove()
