"""Quantized checkpoints: each format gives the answers of its dequantized weights, by the runner,
or is refused before weights are read.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.integrations.compressed_tensors import CompressedTensorsFP8Linear

from tests.unit.engine.published import FORMATS, Format, compressed, save
from tests.unit.engine.tiny import CONFIGS, save_model, tokenizer
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import checkpoint_format, gpu_precision
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.float8 import quantize_weight
from worker.engines.transformers.model.float8_linear import Float8Linear
from worker.engines.transformers.model.fused_qkv import fuse_qkv
from worker.engines.transformers.model.kv_cache import KVCacheLayout
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.model.probe import create_runner
from worker.engines.transformers.model.step import PrefillChunk

# torch's own, where compressed-tensors has it compile.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PROMPT = list(range(3, 40))


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")
    monkeypatch.setenv("CANOPY_PRECISION", "float32")


def config(settings: Any) -> Any:
    return transformers.LlamaConfig(quantization_config=settings)


def on_gpu(patch: pytest.MonkeyPatch, precision: str, capability: tuple[int, int] = (9, 0)) -> None:
    patch.setenv("CANOPY_PRECISION", precision)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


def without(patch: pytest.MonkeyPatch, *modules: str) -> None:
    found = checkpoint_format.find_spec
    patch.setattr(
        checkpoint_format, "find_spec", lambda name: None if name in modules else found(name)
    )


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_published_format_is_computed_by_the_runner(form: Format, tmp_path: Path) -> None:
    weights = save(form, tmp_path / "published")
    plain = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    plain.load_state_dict(weights)
    runner = load(tmp_path / "published", "cpu", 2).runner
    assert runner is not None
    with torch.inference_mode():
        expected = plain(input_ids=torch.tensor([PROMPT])).logits[0, -1]
        actual = runner.prefill([PrefillChunk(1, 0, len(PROMPT))], [PROMPT], [True])[0]
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("method", "missing", "advice"),
    [
        ("awq", ("gptqmodel",), "pip install gptqmodel"),
        ("gptq", ("gptqmodel", "optimum"), "pip install gptqmodel optimum"),
        ("gptq", ("optimum",), "pip install optimum"),
        ("compressed-tensors", ("compressed_tensors",), "pip install compressed-tensors"),
        ("fbgemm_fp8", ("compressed_tensors",), "pip install compressed-tensors"),
    ],
)
def test_a_missing_package_is_named_before_weights_are_read(
    method: str, missing: tuple[str, ...], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"gptqmodel", "optimum", "compressed_tensors"} - set(missing)
    monkeypatch.setattr(
        checkpoint_format, "find_spec", lambda name: name if name in found else None
    )
    with pytest.raises(EngineUnavailable) as refused:
        checkpoint_format.choose_loading(config({"quant_method": method}), CPU, divided=False)
    assert str(refused.value).endswith(f"{method}, which needs: {sys.executable} -m {advice}")


def test_the_refusal_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "gptqmodel")
    folder = tmp_path / "published"
    save(Format({"quant_method": "awq", "bits": 4}, FORMATS["fbgemm"].store), folder)
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(EngineUnavailable, match=f"cannot load the model in {folder}: .*awq"):
        load(folder, "cpu", 2)


@pytest.mark.parametrize("method", ["", "a new one", "x" * 9000, 7, None])
def test_an_unknown_format_is_refused(method: Any) -> None:
    with pytest.raises(
        EngineUnavailable, match="which transformers cannot load; take a"
    ) as refused:
        checkpoint_format.choose_loading(config({"quant_method": method}), CPU, divided=False)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("method", ["fbgemm_fp8", "compressed-tensors", "fp8"])
@pytest.mark.parametrize("setting", ["modules_to_not_convert", "ignore"])
@pytest.mark.parametrize("names", [7, "lm_head", [1], {"lm_head": 1}, [None], True])
def test_names_of_layers_are_a_list(method: str, setting: str, names: Any) -> None:
    chosen = config({"quant_method": method, setting: names})
    with pytest.raises(EngineUnavailable, match=f"{setting} must be a list of names, not"):
        checkpoint_format.choose_loading(chosen, CPU, divided=False)


def test_plain_weights_are_loaded_as_ever() -> None:
    plain = transformers.LlamaConfig()
    checkpoint_format.choose_loading(plain, CPU, divided=False)
    assert not hasattr(plain, "quantization_config")


# ---- what a GPU makes of them


@pytest.mark.parametrize(
    ("form", "precision", "capability", "divided", "as_loaded"),
    [
        ("compressed float8, rows", "auto", (9, 0), False, True),
        ("compressed float8, one scale", "fp8", (8, 9), False, True),
        ("fbgemm", "auto", (9, 0), False, True),
        ("fbgemm", "bfloat16", (9, 0), False, False),
        ("fbgemm", "auto", (8, 6), False, False),
        ("fbgemm", "auto", (9, 0), True, False),
        ("compressed float8, blocks", "auto", (9, 0), False, False),
        ("compressed int8", "auto", (9, 0), False, False),
        ("compressed int4", "fp8", (9, 0), False, False),
    ],
)
def test_float8_stays_float8_where_the_gpu_can(
    form: str,
    precision: str,
    capability: tuple[int, int],
    divided: bool,
    as_loaded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu(monkeypatch, precision, capability)
    chosen = config(dict(FORMATS[form].settings))
    checkpoint_format.choose_loading(chosen, GPU, divided=divided)
    settings = chosen.quantization_config
    assert settings["quant_method"] == "compressed-tensors"
    assert settings["use_optimized_inference"] is as_loaded
    assert settings["dequantize"] is not as_loaded


@pytest.mark.parametrize("groups", [None, [], {}, {"a": 5}, {"a": {"weights": None}}])
def test_settings_without_groups_are_not_taken_for_float8(
    groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, "auto")
    chosen = config({**compressed("float-quantized", {}), "config_groups": groups})
    checkpoint_format.choose_loading(chosen, GPU, divided=False)
    assert chosen.quantization_config["dequantize"]


@pytest.mark.parametrize(
    ("precision", "installed", "dequantized"),
    [("bfloat16", True, True), ("fp8", False, True), ("auto", True, False)],
)
def test_blocks_are_the_librarys_or_get_other_scales(
    precision: str, installed: bool, dequantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, precision)
    monkeypatch.setattr(checkpoint_format, "find_spec", lambda _: installed or None)
    chosen = config(dict(FORMATS["float8 blocks"].settings))
    checkpoint_format.choose_loading(chosen, GPU, divided=False)
    assert chosen.quantization_config["dequantize"] is dequantized


def test_blocks_without_kernels_are_refused_with_what_to_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu(monkeypatch, "auto")
    without(monkeypatch, "kernels")
    chosen = config(dict(FORMATS["float8 blocks"].settings))
    with pytest.raises(EngineUnavailable, match=r"say --precision fp8 .* or --precision bfloat16"):
        checkpoint_format.choose_loading(chosen, GPU, divided=False)


@pytest.mark.parametrize("precision", ["auto", "fp8", "bfloat16"])
def test_our_layers_compute_what_was_published_in_float8(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_PRECISION", precision)
    folder = save_model("llama", tmp_path / "llama")
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        _as_the_library_loads_float8(network)
        expected = network(input_ids=ids).logits
        chosen = gpu_precision.quantize(network, tokenizer(), "sdpa")
        if precision == "bfloat16":
            assert chosen == ""
            return
        assert chosen == "fp8"
        layout = KVCacheLayout(network)
        assert all(fuse_qkv(module) for module in layout.shapes)
        assert any(type(module) is Float8Linear for module in network.modules())
        torch.testing.assert_close(network(input_ids=ids).logits, expected, rtol=0.05, atol=0.05)
    create_runner(network, layout, CacheSize(2, 64))


def _as_the_library_loads_float8(network: Any) -> None:
    for name, module in list(network.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            layer = CompressedTensorsFP8Linear(module.in_features, module.out_features)
            weight, scales = quantize_weight(module.weight.detach())
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.weight_scale = nn.Parameter(scales.t().contiguous(), requires_grad=False)
            network.set_submodule(name, layer)
