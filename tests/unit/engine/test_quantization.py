"""Quantization schemes, and their choice: measured, then checked by the model's own answers."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.unit.engine.tiny import CONFIGS, save_model, tokenizer
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import quantization
from worker.engines.transformers.model import quantized_linear as linears
from worker.engines.transformers.model.attention import use_step
from worker.engines.transformers.model.int4_linear import MAX_DECODING_ROWS, Int4, divides
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.model.perplexity import perplexity_loss
from worker.engines.transformers.model.quantized_linear import (
    SCHEMES,
    BFloat16Embedding,
    Int8,
    Int8Fast,
    UnsupportedScheme,
    is_exact_in_bfloat16,
)
from worker.engines.transformers.model.step import PrefillChunk, Step

ROUGH = {
    "float32": 0.0,
    "bfloat16": 0.01,
    "int8": 0.02,
    "int8-fast": 0.04,
    "int4": 0.08,
}  # error of a layer's output, in standard deviations


@pytest.fixture(autouse=True)
def _attend_with_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")
    monkeypatch.delenv("CANOPY_PRECISION", raising=False)


def layer(bias: bool = False) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(96, 192, bias=bias).eval()


def model(kind: str = "llama") -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()


def fastest(expected: str) -> quantization.Timer:
    """A timer by which that scheme takes a tenth of the others' time."""
    of = {"float32": nn.Linear, "bfloat16": linears.BFloat16, "int8": Int8, "int4": Int4}[expected]
    return lambda made, rows: 0.001 * rows if isinstance(made, of) else 0.01 * rows


@torch.inference_mode()
def off(way: str, exact: nn.Linear, inputs: torch.Tensor) -> float:
    expected = exact(inputs)
    outputs = SCHEMES[way](exact)(inputs)
    assert outputs.shape == expected.shape
    assert outputs.dtype == expected.dtype
    return float((outputs - expected).std() / expected.std())


@pytest.mark.parametrize("way", SCHEMES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (1, 5, 96), (2, 3, 96)])
def test_each_scheme_computes_the_same_layer(way: str, bias: bool, shape: tuple[int, ...]) -> None:
    assert off(way, layer(bias), torch.randn(shape)) <= ROUGH[way]


def test_nothing_comes_of_nothing() -> None:
    with torch.inference_mode():
        assert torch.equal(Int8(layer())(torch.zeros(2, 96)), torch.zeros(2, 192))


def test_four_bits_are_sixteen_levels_of_each_group() -> None:
    """So weights that were published so, as packaged models are, come back as they were."""
    torch.manual_seed(4)
    scales, least = torch.rand(128, 3, 1).bfloat16() + 0.125, -torch.randint(1, 4, (128, 3, 1))
    levels = torch.randint(0, 16, (128, 3, 32))
    levels[..., 0], levels[..., 1] = 0, 15
    exact = nn.Linear(96, 128, bias=False)
    exact.weight.data = (scales.float() * levels + least * scales.float()).flatten(1)
    assert off("int4", exact, torch.randn(5, 96).bfloat16().float()) < 0.005


@pytest.mark.parametrize("rows", [2, 3, 5, 16, 40])
def test_a_four_bit_row_is_the_same_in_any_batch(rows: int) -> None:
    torch.manual_seed(5)
    made, hidden = Int4(nn.Linear(96, 192)), torch.randn(rows, 96)
    with torch.inference_mode():
        alone = torch.cat([made(row[None]) for row in hidden])
        assert torch.equal(made(hidden), alone)


def test_a_prompt_s_rows_are_multiplied_in_eight_bits() -> None:
    exact, hidden = nn.Linear(96, 192), torch.randn(3, 96)
    made, empty = SCHEMES["int4"](exact), torch.zeros(0, dtype=torch.long)
    decoding = Step(empty, empty, empty)
    with torch.inference_mode():
        with use_step(decoding):
            assert torch.equal(made(hidden), Int4(exact)(hidden))
        with use_step(replace(decoding, chunk_starts=empty)):
            assert torch.equal(made(hidden), Int8(exact)(hidden))


def test_a_layer_that_does_not_divide_into_groups_stays_in_eight_bits() -> None:
    odd = nn.Linear(96, 160)
    assert not divides(odd)
    assert type(SCHEMES["int4"](odd)) is Int8
    with pytest.raises(UnsupportedScheme, match="160 outputs of 96 inputs"):
        Int4(odd)


def test_an_outlier_costs_the_other_inputs_nothing() -> None:
    inputs = torch.randn(4, 96)
    inputs[:, 7] = 60.0
    exact = layer()
    exact.weight.data[:, 7] = 0  # the outlier's own product would hide the rest
    assert off("int8", exact, inputs) <= ROUGH["int8"] < off("int8-fast", exact, inputs)


@pytest.mark.parametrize("way", [Int8, Int8Fast])
def test_a_row_is_the_same_in_any_company_to_the_last_bit(way: type[Int8]) -> None:
    quantized, rows = way(layer(bias=True)), torch.randn(7, 96)
    rows[3] *= 1000
    with torch.inference_mode():
        together = quantized(rows)
        assert all(
            torch.equal(quantized(row[None])[0], out)
            for row, out in zip(rows, together, strict=True)
        )


def test_a_cpu_whose_sums_saturate_gets_fewer_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = linears._multiply

    def cutting(inputs: torch.Tensor, zero: int, *rest: Any) -> torch.Tensor:
        out = multiply(inputs, zero, *rest)
        return out - 1 if int(inputs.max()) > 127 else out

    monkeypatch.setattr(linears, "_multiply", cutting)
    assert linears.max_input_level() == 63
    assert off("int8", layer(), torch.randn(3, 96)) <= ROUGH["int8"]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_bfloat16_embedding_looks_up_what_the_embedding_did(kind: str) -> None:
    made = model(kind).to(torch.bfloat16).float()
    embedding, ids = made.get_input_embeddings(), torch.tensor([[5, 258, 5], [0, 7, 99]])
    assert is_exact_in_bfloat16(embedding)
    assert torch.equal(BFloat16Embedding(embedding)(ids), embedding(ids))


def test_an_embedding_that_bfloat16_would_round_stays() -> None:
    assert not is_exact_in_bfloat16(model().get_input_embeddings())


def test_the_distance_is_that_of_perplexities() -> None:
    logits = torch.randn(20, 50)
    assert perplexity_loss(logits, logits + 3) == pytest.approx(0, abs=1e-6)
    certain, guess = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert perplexity_loss(certain, guess) == pytest.approx(1.0)  # a perplexity of 2, not 1
    assert perplexity_loss(logits, logits * torch.nan) == float("inf")


def test_a_small_model_stays_as_it_is() -> None:
    network = model()
    before = dict(network.named_modules())
    assert quantization.quantize(network, tokenizer(), 2, "sdpa") == "float32"
    assert dict(network.named_modules()) == before


@pytest.mark.parametrize("expected", ["float32", "bfloat16", "int8", "int4"])
def test_the_fastest_is_chosen(expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_MIN_WEIGHTS", 0)
    monkeypatch.setattr(quantization, "MAX_LOSS", 0.5)  # random weights answer anything
    network = model()
    assert quantization.quantize(network, tokenizer(), 4, "sdpa", fastest(expected)) == expected
    schemes = (nn.Linear, linears.BFloat16, Int8, Int4)
    kinds = {type(module) for module in network.modules() if isinstance(module, schemes)}
    heads = {"float32": nn.Linear, "bfloat16": linears.BFloat16, "int8": Int8, "int4": Int8}
    assert kinds == ({Int4, Int8} if expected == "int4" else {heads[expected]})
    assert type(network.get_output_embeddings()) is heads[expected]


def test_what_is_not_precise_enough_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_MIN_WEIGHTS", 0)
    monkeypatch.setattr(quantization, "MAX_LOSS", -1.0)
    network = model()
    before = dict(network.named_modules())
    assert quantization.quantize(network, tokenizer(), 4, "sdpa", fastest("int8")) == "float32"
    assert dict(network.named_modules()) == before
    assert network.config._attn_implementation == "sdpa"


def test_nodes_of_a_machine_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not between two formats that are about as fast: a seed holds on every node."""
    monkeypatch.setattr(quantization, "_MIN_WEIGHTS", 0)
    monkeypatch.setattr(quantization, "MAX_LOSS", 0.5)

    def as_fast(made: nn.Module, rows: int) -> float:
        if isinstance(made, Int4):
            return 0.00097 * rows
        return 0.001 * rows if isinstance(made, Int8) else 0.01 * rows

    assert quantization.quantize(model(), tokenizer(), 4, "sdpa", as_fast) == "int8"


def test_the_check_computes_as_answers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long paragraph would be a prompt, which `int4` computes in `int8`."""
    monkeypatch.setenv("CANOPY_PRECISION", "int4")
    rows: list[int] = []
    forward = Int4.forward

    def counted(self: Int4, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.shape[:-1].numel())
        return forward(self, hidden)

    monkeypatch.setattr(Int4, "forward", counted)
    quantization.quantize(model(), tokenizer(), 4, "sdpa")
    assert rows and max(rows) <= MAX_DECODING_ROWS


def test_a_torch_without_such_products_computes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: torch.Tensor) -> torch.Tensor:
        raise UnsupportedScheme("no 8-bit products in this torch")

    monkeypatch.setattr(linears, "_prepack", missing)
    monkeypatch.setattr(quantization, "_MIN_WEIGHTS", 0)
    monkeypatch.setattr(quantization, "MAX_LOSS", 0.5)
    assert quantization.quantize(model(), tokenizer(), 4, "sdpa", fastest("bfloat16")) == "bfloat16"
    monkeypatch.setenv("CANOPY_PRECISION", "int8")
    with pytest.raises(
        EngineUnavailable, match="CANOPY_PRECISION=int8 is not supported here: no 8-bit products"
    ):
        quantization.quantize(model(), tokenizer(), 4, "sdpa")


def test_an_unknown_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", "int3")
    with pytest.raises(EngineUnavailable, match="auto, float32, bfloat16, int8"):
        quantization.quantize(model(), tokenizer(), 4, "sdpa")


def test_the_float_weights_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", "int8")
    network = model().to(torch.bfloat16).float()
    floats = [weakref.ref(part.weight) for part in quantization._linears(network).values()]
    floats.append(weakref.ref(network.get_input_embeddings().weight))
    assert quantization.quantize(network, tokenizer(), 4, "sdpa") == "int8"
    gc.collect()
    assert not [one for one in floats if one() is not None]


@pytest.mark.parametrize("way", ["bfloat16", "int8", "int8-fast", "int4"])
def test_a_quantized_runner_answers_almost_as_before(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model("llama", tmp_path / "llama")
    prompt = list(range(3, 60))
    answers = []
    for each in ("float32", way):
        monkeypatch.setenv("CANOPY_PRECISION", each)
        runner = load(folder, "cpu", 2).runner
        assert runner is not None
        with torch.inference_mode():
            runner.prefill([PrefillChunk(1, 0, len(prompt))], [prompt], [True])
            runner.feed(torch.tensor([9]))
            answers.append(runner.decode([1], [len(prompt)])[0])
    exact, rough = answers
    allowed = 0.25 if way == "int4" else 0.1  # random weights have no groups of 16 levels
    assert float((exact - rough).std() / exact.std()) < allowed
    assert not torch.equal(exact, rough)


def test_layers_that_share_an_input_differ_from_none_that_do_not() -> None:
    """A layer's quantized input serves the next one only if that reads the very same tensor."""
    first, second = Int8(layer()), Int8(layer(bias=True))
    one, other = torch.randn(3, 96), torch.randn(3, 96)
    with torch.inference_mode():
        apart = [made(inputs.clone()) for inputs in (one, other) for made in (first, second)]
        shared = [made(inputs) for inputs in (one, other) for made in (first, second)]
        assert all(
            torch.equal(mine, expected) for mine, expected in zip(shared, apart, strict=True)
        )
        assert not torch.equal(Int8Fast(layer())(other), first(other))
