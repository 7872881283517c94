"""Flash decoding without a GPU: Triton's interpreter runs the kernels, against plain attention."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import attention
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.probe import create_runner
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import PrefillChunk

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
_BOUNDS = {F32: 1e-5, F16: 2e-3, BF16: 2e-2}  # the interpreter truncates bfloat16
_NAN = float("nan")


class Case(NamedTuple):
    dtype: torch.dtype
    size: int
    group: int  # query heads that share a key head
    groups: int  # key heads
    lengths: Sequence[int]
    window: int = 0
    softcap: float = 0.0
    splits: int = 0  # 0: as many as `decode` itself chooses


# Each pair of interacting features occurs once; keys are read 64 at a time, 32 of size 256.
CASES = {
    "nothing is held": Case(F32, 64, 1, 2, [1]),
    "less than a block": Case(F32, 80, 3, 1, [2, 40]),
    "around a block's end": Case(F32, 128, 4, 1, [64, 65, 66], splits=2),
    "around a smaller block's end": Case(F32, 256, 8, 1, [34, 32, 33], splits=1),
    "around the second block's end": Case(F32, 64, 8, 1, [128, 130, 129]),
    "blocks for some of the splits": Case(F32, 80, 1, 1, [1100, 1]),
    "two blocks for each split": Case(F32, 64, 3, 1, [2049]),
    "one split of several heads": Case(F32, 80, 3, 3, [66, 1, 200, 64], splits=1),
    "more query heads than sixteen": Case(F32, 64, 20, 1, [70, 3], splits=2),
    "more rows than can be split": Case(F32, 64, 4, 1, [1, 70, *[1] * 126, 2]),
    "a window below, at and above the length": Case(
        F32, 64, 4, 1, [300, 41, 40, 39, 7], 40, splits=4
    ),
    "a window of a block": Case(F32, 80, 8, 1, [64, 65, 128, 200], 64, splits=2),
    "a window that hides whole blocks": Case(F32, 256, 1, 2, [400], 70),
    "a window that many splits share": Case(F32, 128, 1, 1, [1500], 1000),
    "a window of the newest token alone": Case(F32, 128, 3, 1, [1, 65, 100], 1),
    "a window of two tokens across blocks": Case(F32, 64, 1, 1, [65, 66], 2, splits=1),
    "capped": Case(F32, 64, 3, 2, [1, 150], 0, 3.0),
    "capped within a window": Case(F32, 256, 4, 1, [90, 20], 25, 1.0, splits=1),
    "float16": Case(F16, 80, 4, 1, [1, 64, 200]),
    "float16, capped within a window": Case(F16, 256, 3, 1, [100], 33, 5.0),
    "bfloat16": Case(BF16, 128, 8, 1, [1, 65, 300]),
    "bfloat16 within a window": Case(BF16, 80, 1, 2, [150, 30], 64, splits=4),
    "bfloat16, capped": Case(BF16, 64, 4, 1, [500], 0, 4.0),
    "bfloat16 of the largest heads": Case(BF16, 256, 3, 1, [70, 2], splits=1),
    "bfloat16, capped within a window, one split": Case(
        BF16, 128, 1, 3, [130, 66], 65, 2.0, splits=1
    ),
}


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    """The kernels as Python runs them.

    Triton reads TRITON_INTERPRET when it is imported, and torch has imported it by now. So it is
    imported again for these tests, and the first one is put back after them. In another process
    torch would have to be imported, too, which takes as long as all of these tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in _loaded_of_triton():
            patch.delitem(sys.modules, name)
        made = _own_copy("worker.engines.transformers.model.triton_attention")
        builder = sys.modules["triton.runtime.interpreter"].InterpreterBuilder
        patch.setattr(builder, "create_dot", _dot(builder.create_dot, made.tl))
        yield made
        for name in _loaded_of_triton():
            del sys.modules[name]


def _loaded_of_triton() -> list[str]:
    """Without native modules, which a process can load only once."""
    names = [name for name in sys.modules if name.partition(".")[0] == "triton"]
    return [name for name in names if not name.startswith("triton._C")]


def _own_copy(name: str) -> Any:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dot(plainly: Any, tl: Any) -> Any:
    """numpy has no bfloat16: the interpreter would multiply the bits as integers."""

    def dot(self: Any, left: Any, right: Any, *more: Any) -> Any:
        factors = [
            self.cast_impl(it, tl.float32) if it.dtype.scalar == tl.bfloat16 else it
            for it in (left, right)
        ]
        return plainly(self, *factors, *more)

    return dot


class Given(NamedTuple):
    """What `decode` is called with."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    scale: float


def given(case: Case) -> Given:
    """Random where the slots are in use; NaN elsewhere, and in the keys that a window hides."""
    torch.manual_seed(1)
    rows, heads, context = len(case.lengths), case.groups * case.group, max(case.lengths) + 3
    slots = (torch.randperm(rows + 1) + 1).tolist()[
        :rows
    ]  # one is unused, and the first and last have neighbours
    caches = [
        torch.full((rows + 3, context, case.groups, case.size), _NAN, dtype=case.dtype)
        for _ in range(2)
    ]
    for cache in caches:
        for slot, length in zip(slots, case.lengths, strict=True):
            held = cache[slot, : length - 1]
            held.copy_(torch.randn(held.shape))
            hidden = max(0, length - case.window) if case.window else 0
            held[:hidden] = _NAN if cache is caches[0] else 1000.0
    # Each has another layout: heads first, a part of longer rows, heads with a gap.
    joined = torch.randn(rows, case.groups + 2, case.size).to(case.dtype)
    return Given(
        query=torch.randn(heads, rows, case.size).to(case.dtype).transpose(0, 1),
        key=joined[:, 1:-1],
        value=torch.randn(case.groups, rows + 1, case.size).to(case.dtype)[:, 1:].transpose(0, 1),
        keys=caches[0],
        values=caches[1],
        slots=torch.tensor(slots, dtype=torch.int32),
        lengths=torch.tensor(case.lengths, dtype=torch.int32),
        scale=1.5 * case.size**-0.5,
    )


def written_out(case: Case, it: Given) -> torch.Tensor:
    """Attention in float64 over caches that hold the newest tokens."""
    answers = []
    for row, (slot, length) in enumerate(zip(it.slots.tolist(), case.lengths, strict=True)):
        begin = max(0, length - case.window) if case.window else 0
        keys, values = (
            cache[slot, begin:length].double().repeat_interleave(case.group, 1)
            for cache in (it.keys, it.values)
        )
        scores = torch.einsum("hd,thd->ht", it.query[row].double(), keys) * it.scale
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        answers.append(torch.einsum("ht,thd->hd", scores.softmax(-1), values))
    return torch.stack(answers)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_decoded_token_sees_its_own_slot_and_is_kept_there(
    case: Case, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = given(case)
    wanted_keys, wanted_values = it.keys.clone(), it.values.clone()
    places = it.slots.long(), it.lengths.long() - 1
    wanted_keys[places], wanted_values[places] = it.key, it.value
    if case.splits:
        monkeypatch.setattr(kernels, "_MIN_PROGRAMS", case.splits * len(case.lengths) * case.groups)
    got = kernels.decode(*it, case.window, case.softcap)
    assert (got.shape, got.dtype, got.is_contiguous()) == (it.query.shape, case.dtype, True)
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(it.keys, wanted_keys, **exactly)
    torch.testing.assert_close(it.values, wanted_values, **exactly)
    bound = _BOUNDS[case.dtype]
    torch.testing.assert_close(got.double(), written_out(case, it), rtol=bound, atol=bound)


class Launches(dict[tuple[int, ...], Any]):
    """Stands for a kernel, and keeps the grids of its launches."""

    def __missing__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **__: self.update({grid: None})


@pytest.mark.parametrize(
    ("rows", "groups", "splits"),
    [(1, 1, 16), (16, 1, 16), (4, 8, 8), (33, 2, 4), (64, 2, 2), (129, 1, 1), (300, 8, 1)],
)
def test_rows_are_split_until_there_is_work_for_the_whole_gpu(
    rows: int, groups: int, splits: int, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, combining = Launches(), Launches()
    monkeypatch.setattr(kernels, "_decode", decoding)
    monkeypatch.setattr(kernels, "_combine", combining)
    new = torch.empty(rows, groups, 8)
    kernels.decode(new.repeat(1, 2, 1), new, new, new[None], new[None], None, None, 1.0, 0, 0.0)
    assert list(decoding) == [(rows, groups, splits)]
    assert list(combining) == ([(2 * rows * groups,)] if splits > 1 else [])


def gemma2() -> Any:
    return transformers.Gemma2Config(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=70,
        attn_logit_softcapping=2.0, initializer_range=0.3,
    )  # fmt: skip


@pytest.mark.parametrize(
    "config", [CONFIGS["gemma3"], CONFIGS["gpt2"], gemma2], ids=["gemma3", "gpt2", "gemma2"]
)
def test_a_model_decodes_through_them_as_it_does_without(
    config: Callable[[], Any], kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_MAX_SPLITS", 2)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config()).eval()
    runner = create_runner(model, KVCacheLayout(model), 3, 160)
    expected = decoded(runner, 0.0)
    plainly, calls = attention.attend, 0

    def through_kernels(*given: Any) -> torch.Tensor:
        nonlocal calls
        step = attention._local.step
        if step.chunk_starts is not None:
            return plainly(*given)
        calls += 1
        return kernels.decode(*given[:5], step.slots, step.lengths, *given[5:])

    monkeypatch.setattr(attention, "attend", through_kernels)
    torch.testing.assert_close(decoded(runner, _NAN), expected, rtol=1e-4, atol=1e-4)
    assert calls == 3 * 2  # steps, layers


def decoded(runner: LocalModelRunner, before: float) -> torch.Tensor:
    """Logits [steps, rows, vocabulary] after two prompts, in caches full of `before`."""
    for module in runner._attention_modules:
        module.key_cache.fill_(before)
        module.value_cache.fill_(before)
    slots, lengths = [2, 0], [126, 3]
    logits = []
    with torch.inference_mode():
        chunks = [
            PrefillChunk(slot, 0, length) for slot, length in zip(slots, lengths, strict=True)
        ]
        runner.prefill(
            chunks, [[n * 7 % 259 for n in range(length)] for length in lengths], [True] * 2
        )
        for step in range(3):
            runner.feed(torch.tensor([40 + step, 90 - step]))
            logits.append(runner.decode(slots, [length + step for length in lengths]).clone())
    return torch.stack(logits)
