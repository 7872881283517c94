"""The runner's CUDA graphs, on a CPU: a fake graph calls the function that it recorded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from structlog.testing import capture_logs
from triton.runtime.errors import OutOfResources

from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import cuda_graphs, step_graphs
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.cuda_graphs import DecodeInputs, GraphRecorder, PrefixInputs
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.probe import create_runner, give_blocks
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import (
    DecodeRows,
    PrefillChunk,
    SharedPrefix,
    SharedPrefixes,
)

PROMPTS = {2: [5, 6, 7] * 4, 0: [9] * 3, 1: [11, 12] * 5}
SLOTS, CONTEXT = 3, 64
PAGES = CacheSize(SLOTS, CONTEXT, 48)  # enough for layers in several groups, too


class FakeGraph:
    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self._run = run
        self.output = run().clone()

    def replay(self) -> None:
        self.output.copy_(self._run())


class FakeEvent:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def record(self: GraphRecorder, run: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
    graph = FakeGraph(run)
    return graph, graph.output


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpinned(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def create_unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            return create(*args, **kwargs)

        return create_unpinned

    monkeypatch.setattr(cuda_graphs.torch, "empty", unpinned(torch.empty))
    monkeypatch.setattr(cuda_graphs.torch, "tensor", unpinned(torch.tensor))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(GraphRecorder, "record", record)
    monkeypatch.setattr(cuda_graphs, "GRAPH_STEP_TOKENS", (8, 32))
    monkeypatch.setattr(cuda_graphs, "GRAPH_MIXED_ROWS", (0, 2, 256))
    monkeypatch.setattr(cuda_graphs, "_MIN_PROMPT_TOKENS", 6)


@torch.inference_mode()
def answer(model_runner: LocalModelRunner, batch_invariant: bool) -> list[torch.Tensor]:
    """Logits of prompts in two parts, then of three decoding steps with fewer and fewer rows."""
    fixed = {"batch_invariant": batch_invariant}
    first = [PrefillChunk(slot, 0, 2, len(ids)) for slot, ids in PROMPTS.items()]
    rest = [PrefillChunk(slot, 2, len(ids) - 2) for slot, ids in PROMPTS.items()]
    parts = [[ids[:2] for ids in PROMPTS.values()], [ids[2:] for ids in PROMPTS.values()]]
    model_runner.prefill(first, parts[0], [False] * 3, **fixed)
    logits = [model_runner.prefill(rest, parts[1], [True] * 3, **fixed).clone()]
    slots = list(PROMPTS)
    for step in range(3):
        model_runner.feed(torch.tensor([20 + step, 30 + step, 40 + step][: len(slots)]))
        positions = [len(PROMPTS[slot]) + step for slot in slots]
        logits.append(model_runner.decode(slots, positions, **fixed).clone())
        if len(slots) > 1:
            slots = slots[:-1]
            model_runner._logits_slots = model_runner._logits_slots[:-1]
    return logits


@torch.inference_mode()
def answer_beside_a_prompt(model_runner: LocalModelRunner) -> list[torch.Tensor]:
    """Two sequences decode while the third one's prompt is computed in three parts."""
    slots = [2, 0]
    chunks = [PrefillChunk(slot, 0, len(PROMPTS[slot])) for slot in slots]
    model_runner.prefill(chunks, [PROMPTS[slot] for slot in slots], [True] * 2)
    model_runner.feed(torch.tensor([20, 21]))
    logits = []
    for step, start in enumerate((0, 3, 7)):
        length = min(4, len(PROMPTS[1]) - start)
        rows = DecodeRows(slots, [len(PROMPTS[slot]) + step for slot in slots])
        chunk = PrefillChunk(1, start, length, len(PROMPTS[1]))
        ends = chunk.end == len(PROMPTS[1])
        part = PROMPTS[1][start : chunk.end]
        logits.append(model_runner.prefill([chunk], [part], [ends], rows).clone())
        model_runner.feed(torch.tensor([30 + step, 40 + step, 50][: 2 + ends]))
    positions = [len(PROMPTS[slot]) + 3 for slot in slots] + [len(PROMPTS[1])]
    logits.append(model_runner.decode([*slots, 1], positions).clone())
    return logits


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_graphs_compute_what_eager_steps_do(kind: str, batch_invariant: bool) -> None:
    torch.manual_seed(5)
    config = CONFIGS[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    layout = KVCacheLayout(model)
    eager = create_runner(model, layout, CacheSize(SLOTS, CONTEXT))
    expected = answer(eager, batch_invariant)
    eager.release()
    model.set_attn_implementation("sdpa")
    eager = create_runner(model, layout, PAGES)
    give_blocks(eager, SLOTS, CONTEXT)
    expected += answer_beside_a_prompt(eager)
    eager.release()
    model.set_attn_implementation("sdpa")
    recorded = create_runner(model, layout, PAGES)
    give_blocks(recorded, SLOTS, CONTEXT)
    recorded._inputs = DecodeInputs(SLOTS, recorded.device)
    steps: list[str] = []
    with torch.inference_mode():
        recorded.capture_graphs(steps.append)
    assert list(recorded._graphs.decode) == [1, 2, 3]
    # the largest first, whose memory the smaller ones use again
    assert list(recorded._graphs.mixed) == [(32, 3), (32, 2), (32, 0), (8, 2), (8, 0)]
    assert len(steps) == 9
    answers = answer(recorded, batch_invariant) + answer_beside_a_prompt(recorded)
    for graph, plain in zip(answers, expected, strict=True):
        torch.testing.assert_close(graph, plain)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_graphs_compute_the_last_layer_of_few_tokens(
    batch_invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many in each step of a graph, whatever is wanted of it."""
    for name in ("_MIN_KEPT_ROWS", "_KEPT_TILE"):
        monkeypatch.setattr(cuda_graphs, name, 8)
    monkeypatch.setattr(cuda_graphs, "GRAPH_STEP_TOKENS", (96,))
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).double().eval()
    recorded = create_runner(model, KVCacheLayout(model), PAGES)
    assert recorded.keeps_tail
    rows: list[int] = []
    mlp = model.model.layers[-1].body.layer.mlp
    mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    give_blocks(recorded, SLOTS, CONTEXT)
    recorded._inputs = DecodeInputs(SLOTS, recorded.device)
    with torch.inference_mode():
        recorded.capture_graphs(lambda _: None)
    rows.clear()
    kept = answer(recorded, batch_invariant) + answer_beside_a_prompt(recorded)
    assert set(rows) == ({64, 72, 3} if batch_invariant else {64, 72, 3, 2, 1})
    recorded.compute_whole_tail()
    recorded.drop_graphs()
    whole = answer(recorded, batch_invariant) + answer_beside_a_prompt(recorded)
    for graph, plain in zip(kept, whole, strict=True):
        torch.testing.assert_close(graph, plain)


@pytest.mark.usefixtures("graphs")
def test_steps_read_shared_prefixes_once_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "_MIN_SHARING_ROWS", 2)
    monkeypatch.setattr(cuda_graphs, "_MIN_SAVED_BYTES", 100_000)
    monkeypatch.setattr("worker.engines.transformers.model.step.PREFIX_TILE_COST", 1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).double().eval()
    recorded = create_runner(model, KVCacheLayout(model), PAGES)
    give_blocks(recorded, SLOTS, CONTEXT)
    recorded._inputs = DecodeInputs(SLOTS, recorded.device)
    shared: list[bool] = []
    of_rows = PrefixInputs.of_rows

    def observed(inputs: PrefixInputs, slots: torch.Tensor) -> SharedPrefixes:
        shared.append(True)
        return of_rows(inputs, slots)

    monkeypatch.setattr(PrefixInputs, "of_rows", observed)
    with torch.inference_mode():
        recorded.capture_graphs(lambda _: None)
    assert list(recorded._graphs.sharing_decode) == [3, 2]
    assert list(recorded._graphs.sharing_mixed) == [(32, 3), (32, 2), (8, 2)]

    def shares(slots: list[int], **more: bool) -> bool:
        shared.clear()
        with torch.inference_mode():
            recorded.decode(slots, [20] * len(slots), **more)
        return bool(shared)

    assert not shares([0, 1, 2])
    recorded.share_prefixes([SharedPrefix(16, (0, 1, 2))])
    assert not shares([0, 1, 2])  # too little is saved
    recorded.share_prefixes([SharedPrefix(1 << 20, (0, 1, 2))])
    assert shares([0, 1, 2])
    assert shares([0, 1])
    assert not shares([0])
    assert not shares([0, 1], batch_invariant=True)
    recorded.share_prefixes([])
    assert not shares([0, 1, 2])


@pytest.mark.usefixtures("graphs")
def test_graphs_that_share_are_left_out_if_they_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "_MIN_SHARING_ROWS", 2)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).double().eval()
    recorded = create_runner(model, KVCacheLayout(model), PAGES)
    recorded._inputs = DecodeInputs(SLOTS, recorded.device)

    def too_large(_: PrefixInputs, slots: torch.Tensor) -> SharedPrefixes:
        if len(slots) == 2:
            raise OutOfResources(262_144, 232_448, "shared memory")
        return of_rows(_, slots)

    of_rows = PrefixInputs.of_rows
    monkeypatch.setattr(PrefixInputs, "of_rows", too_large)
    with capture_logs() as lines, torch.inference_mode():
        recorded.capture_graphs(lambda _: None)
    assert [line["event"] for line in lines] == ["shared prefixes are read for each sequence"]
    assert list(recorded._graphs.decode) == [1, 2, 3]
    assert recorded._graphs.mixed
    assert not recorded._graphs.sharing_decode
    assert not recorded._graphs.sharing_mixed


@pytest.mark.usefixtures("graphs")
def test_short_rows_have_graphs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_SHORT_ROWS", range(2, 4))
    for module in (cuda_graphs, step_graphs):
        monkeypatch.setattr(module, "SHORT_TOKENS", 32)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).double().eval()
    recorded = create_runner(model, KVCacheLayout(model), PAGES)
    give_blocks(recorded, SLOTS, CONTEXT)
    recorded._inputs = DecodeInputs(SLOTS, recorded.device)
    longest: list[int] = []
    decode_step = LocalModelRunner.decode_step

    def observed(runner: LocalModelRunner, size: int, **more: int) -> Callable[[], torch.Tensor]:
        run = decode_step(runner, size, **more)

        def observe() -> torch.Tensor:
            longest.append(more.get("longest", 0))
            return run()

        return observe

    monkeypatch.setattr(LocalModelRunner, "decode_step", observed)
    with torch.inference_mode():
        recorded.capture_graphs(lambda _: None)
        assert list(recorded._graphs.short_decode) == [3, 2]
        for positions, fixed, expected in (
            ([31, 3], False, 32), ([32, 3], False, 0), ([31], False, 0), ([3, 3], True, 0)
        ):  # fmt: skip
            longest.clear()
            recorded.decode(list(range(len(positions))), positions, batch_invariant=fixed)
            assert longest == [expected]
