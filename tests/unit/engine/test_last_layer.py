"""The last layer, computed of the tokens alone whose logits are wanted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from structlog.testing import capture_logs
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.engine.architectures import tiny
from tests.unit.engine.tiny import CONFIGS
from worker.engines.transformers.model import float8_linear, float8_tuning, linear_tiles
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.compilation import compile_layers, uncompile_layers
from worker.engines.transformers.model.cuda_graphs import MixedSize, kept_rows, mixed_sizes
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.fused_layers import fuse_layers, shorten_lookups
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.last_layer import LastLayer, keep_tail
from worker.engines.transformers.model.probe import create_runner, give_blocks
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import DecodeRows, PrefillChunk

SLOTS, CONTEXT = 3, 64
ROWS, PAGES = CacheSize(SLOTS, CONTEXT), CacheSize(SLOTS, CONTEXT, 48)
PROMPTS = ([5, 6, 7] * 6, [9] * 3, [11, 12] * 5)
KEPT = ["llama", "gemma3_text", "olmo2", "mixtral", "deepseek_v3", "gpt_neox", "opt"]
WHOLE = {
    "gpt2": "invalid for input of size",
    "phi": "for 1 tokens",  # attention and MLP side by side
    "jetmoe": "other parts",
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def llama() -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()


def runner_of(model: Any, size: CacheSize = ROWS) -> LocalModelRunner:
    runner = create_runner(model, KVCacheLayout(model), size)
    give_blocks(runner, SLOTS, CONTEXT)
    return runner


def prefill(runner: LocalModelRunner, **how: Any) -> torch.Tensor:
    """All prompts but one end; that one has another chunk to come."""
    chunks = [PrefillChunk(slot, 0, len(ids), len(ids)) for slot, ids in enumerate(PROMPTS)]
    with torch.inference_mode():
        return runner.prefill(chunks, list(PROMPTS), [True, False, True], **how).clone()


def answer(runner: LocalModelRunner, *, beside: bool) -> list[torch.Tensor]:
    """Of a prompt whose end does not come at first, of others, and of what decodes, `beside` the
    prompt or after it.
    """
    steps = [prefill(runner)]
    with torch.inference_mode():
        runner.feed(torch.tensor([20, 21]))
        rows, chunk = DecodeRows([0, 2], [18, 10]), PrefillChunk(1, 3, 4, 7)
        if beside:
            steps.append(runner.prefill([chunk], [[9] * 4], [True], rows).clone())
            runner.feed(torch.tensor([30, 31, 32]))
            steps.append(runner.decode([0, 2, 1], [19, 11, 7]).clone())
        else:
            steps.append(runner.decode(*rows).clone())
            steps.append(runner.prefill([chunk], [[9] * 4], [True]).clone())
    return steps


@pytest.mark.parametrize("pages", [False, True])
@pytest.mark.parametrize("kind", KEPT)
def test_logits_are_those_of_a_whole_layer(kind: str, pages: bool) -> None:
    runner = runner_of(tiny(kind), PAGES if pages else ROWS)
    assert runner.keeps_tail
    actual = answer(runner, beside=pages)
    runner.compute_whole_tail()
    for kept, whole in zip(actual, answer(runner, beside=pages), strict=True):
        assert kept.shape == whole.shape
        torch.testing.assert_close(kept, whole, rtol=1e-5, atol=1e-5)


def test_layers_of_fewer_operations_keep_the_same_tokens() -> None:
    model = llama()
    runner = runner_of(model)
    before = answer(runner, beside=False)
    replacements = fuse_layers(model, "sdpa")
    assert len(replacements) == 2 * len(model.model.layers)
    for replacement in replacements:
        replacement.keep()
    shorten_lookups(model)
    assert runner.keeps_tail
    for fused, library in zip(answer(runner, beside=False), before, strict=True):
        torch.testing.assert_close(fused, library, rtol=1e-4, atol=1e-4)


def test_logits_are_the_same_to_the_last_bit_where_shapes_are() -> None:
    """A decoding step has no token more than rows."""
    runner = runner_of(llama())
    prefill(runner)
    runner.feed(torch.tensor([20, 21]))
    with torch.inference_mode():
        kept = runner.decode([0, 2], [18, 10]).clone()
        runner.compute_whole_tail()
        assert torch.equal(kept, runner.decode([0, 2], [18, 10]))


@pytest.mark.parametrize("kind", WHOLE)
def test_another_kind_of_layer_is_computed_of_all_tokens(kind: str) -> None:
    model = tiny(kind)
    with capture_logs() as lines:
        runner = runner_of(model)
    assert not runner.keeps_tail
    [reason] = [line["reason"] for line in lines if "last layer" in line["event"]]
    assert WHOLE[kind] in reason
    assert not any(isinstance(module, LastLayer) for module in model.modules())
    assert prefill(runner).shape[0] == 2


def test_the_environment_may_ask_for_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_WHOLE_LAST_LAYER", "1")
    assert not runner_of(llama()).keeps_tail


def test_layers_on_several_devices_are_left_alone() -> None:
    model = llama()
    layout = KVCacheLayout(model)
    layout.devices[list(layout.shapes)[-1]] = torch.device("meta")
    with pytest.raises(UnsupportedModel, match="several devices"):
        keep_tail(model, layout)


def test_what_is_asked_of_all_tokens_is_computed_of_all() -> None:
    runner = runner_of(llama())
    tokens = sum(map(len, PROMPTS))
    logits, states = prefill(runner, every_token=True), prefill(runner, hidden=True)
    assert logits.shape[0] == states.shape[0] == tokens
    runner.compute_whole_tail()
    torch.testing.assert_close(logits, prefill(runner, every_token=True))
    torch.testing.assert_close(states, prefill(runner, hidden=True))


def test_a_model_is_left_as_it_was() -> None:
    model = llama()
    names = [name for name, _ in model.named_modules()]
    runner = runner_of(model)
    assert [name for name, _ in model.named_modules()] != names
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        beside = model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    runner.release()
    assert [name for name, _ in model.named_modules()] == names
    with torch.inference_mode():
        alone = model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    torch.testing.assert_close(beside, alone)  # without a step it computes all tokens


def test_an_error_within_the_layer_leaves_nothing_to_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = llama()
    runner = runner_of(model)
    expected = prefill(runner)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error")

    projection = model.model.layers[-1].body.layer.self_attn.q_proj
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="CUDA error"):
        patch.setattr(projection, "forward", fail)
        prefill(runner)
    torch.testing.assert_close(prefill(runner), expected)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False)


def test_the_products_of_all_other_tokens_are_saved() -> None:
    """Of two layers: the output projection and the three of the MLP."""
    model = llama()
    runner = runner_of(model)
    config, tokens, wanted = model.config, sum(map(len, PROMPTS)), 2

    def operations() -> int:
        with FlopCounterMode(display=False) as counter:
            prefill(runner)
        counts = counter.get_flop_counts()["Global"]
        return sum(count for name, count in counts.items() if "mm" in str(name))

    kept = operations()
    runner.compute_whole_tail()
    token = config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    assert operations() - kept == 2 * token * (tokens - wanted)


@pytest.mark.filterwarnings("ignore")  # torch's own, as it imports its compiler
@torch._dynamo.config.patch(recompile_limit=8)  # type: ignore[untyped-decorator]
def test_it_compiles_in_one_piece_for_any_number_of_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once of all tokens, and once of those that are kept."""
    model = llama()
    runner = runner_of(model, PAGES)
    expected = answer(runner, beside=True)
    layout = KVCacheLayout(model)
    compiled: list[str] = []
    compile_module = torch.nn.Module.compile

    def observed(module: torch.nn.Module, *_: Any, **options: Any) -> None:
        def backend(graph: Any, _: Any) -> Callable[..., Any]:
            compiled.append(type(module).__name__)
            return graph.forward  # type: ignore[no-any-return]

        compile_module(module, backend=backend, fullgraph=True, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", observed)
    assert compile_layers(model, layout) == 2
    for actual, plain in zip(answer(runner, beside=True), expected, strict=True):
        torch.testing.assert_close(actual, plain)
    bodies = compiled.count("_Body")
    assert 0 < bodies <= 3
    with torch.inference_mode():
        for length in (13, 17, 23):
            chunk = PrefillChunk(0, 0, length)
            for ends in (False, True):
                runner.prefill([chunk], [[4] * length], [ends])
    assert compiled.count("_Body") <= bodies + 1  # a step that keeps one token may be its own
    uncompile_layers(model, layout)
    assert model.model.layers[-1].body._compiled_call_impl is None


def test_a_graph_keeps_as_many_tokens_as_it_may_have_logits() -> None:
    kept = {size: kept_rows(size) for size in mixed_sizes(1024)}
    assert kept[MixedSize(2048, 0)] == 256
    assert kept[MixedSize(2048, 256)] == 384
    assert kept[MixedSize(2048, 1024)] == 1152
    assert kept[MixedSize(1024, 960)] == kept[MixedSize(256, 0)] == 0
    assert all(rows < size.tokens for size, rows in kept.items())


@pytest.mark.parametrize("slots", [1, 16, 64, 100, 128, 129, 200, 256, 1024])
def test_no_measurement_divides_the_products_of_kept_tokens(slots: int) -> None:
    """Steps of a request that names a seed must not depend on what is measured at a start."""
    for rows in {kept_rows(size) for size in mixed_sizes(slots)} - {0}:
        assert linear_tiles.bucket_of(rows) not in linear_tiles.measured_buckets(slots)
        before = [each for each in float8_linear.ROW_BUCKETS if each >= rows][:1]
        assert not set(before) & set(float8_tuning.measured_buckets(slots))
