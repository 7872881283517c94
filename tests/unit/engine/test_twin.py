"""What is proved before a model is computed over slots: the same tokens as `generate`, also beyond
its windows.
"""

from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.unit.engine.architectures import (
    answers,
    generated,
    loaded,
    made,
    prompts,
    tiny,
    tokenizer,
)
from worker.engines.transformers.model import attention
from worker.engines.transformers.model import loader as loading
from worker.engines.transformers.model.loader import ready
from worker.engines.transformers.model.probe import Shape, attention_of, fit
from worker.engines.transformers.model.runner import SlotModel, Unfit
from worker.engines.transformers.model.shrunk_config import LIMIT, shrunk
from worker.engines.transformers.model.twin import Twin, prove_rows, prove_slots

_LAYERS = {"num_hidden_layers": 4}
WINDOWED = {
    "llama4_text": {},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1, **_LAYERS},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **_LAYERS},
    "phimoe": {"sliding_window": 2047},
    "doge": {},
    "mistral": {},
    "gemma3_text": {},
    "cohere2": {},
    "gpt_neo": {},
    "gpt_oss": {},
    "modernbert-decoder": {},
    "exaone4": {"sliding_window": 4096, "sliding_window_pattern": 2, **_LAYERS},
    "smollm3": {"use_sliding_window": True, "sliding_window": 4096},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", WINDOWED)
def test_tokens_beyond_a_window_are_the_librarys(kind: str) -> None:
    model = tiny(kind, **WINDOWED[kind])
    asked = prompts((3, LIMIT - 2, 4 * LIMIT, 70))
    wanted = [generated(model, prompt, 20) for prompt in asked]
    assert answers(loaded(model), asked, 20) == wanted


@pytest.mark.parametrize("kind", ["llama4_text", "qwen2_moe", "doge"])
def test_a_window_that_is_far_away_is_noticed(kind: str) -> None:
    """The model is small and its window is not: no prompt of the proof comes near it, but its
    twin's does.
    """
    config = shrunk(CONFIG_MAPPING[kind](**WINDOWED[kind]))
    for name in ("attention_chunk_size", "floor_scale", "sliding_window", "keep_window_size"):
        if hasattr(config, name):
            setattr(config, name, 4096)
    model = made(config)
    with attention_of(model, "sdpa"):
        fit(model, Shape(model), 2, 64).release()  # by itself it seems to fit
    assert ready(model, tokenizer(), 2, 64).over is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gpt_oss", "s_aux"),
        ("deepseek_v3", "keys of"),
        ("diffllama", "more than once"),
        ("mamba", "0 of its 2 layers"),
        ("bloom", "does not let"),
        ("llama4_text", "differ"),
    ],
)
def test_what_does_not_fit_is_left_as_it_was(kind: str, reason: str) -> None:
    model = tiny(kind)
    before = {id(each): each._attn_implementation for each in _configs(model)}
    with pytest.raises(Unfit, match=reason):
        loading._onto_slots(model, Twin(model), 2, 64)
    assert {id(each): each._attn_implementation for each in _configs(model)} == before
    assert not any(hasattr(module, "slot_keys") for module in model.modules())


def _configs(model: Any) -> list[Any]:
    return [module.config for module in model.modules() if hasattr(module, "config")]


def test_a_mask_that_slots_do_not_know_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a window that the attention function is not told of."""
    attend = attention.attend_layer

    def without(*tensors: Any, sliding_window: int | None = None, **settings: Any) -> Any:
        return attend(*tensors, **settings)

    monkeypatch.setattr(attention, "attend_layer", without)
    model = tiny("mistral")
    with pytest.raises(Unfit, match="differ"):
        prove_slots(Twin(model), Shape(model).kinds)


def test_a_twin_without_the_models_kinds_of_layers_proves_nothing() -> None:
    model = tiny("mistral")
    kinds = {kind._replace(windowed=not kind.windowed) for kind in Shape(model).kinds}
    with pytest.raises(Unfit, match="no MistralAttention like it"):
        prove_slots(Twin(model), kinds)


def test_what_cannot_be_made_small_is_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(_: Any) -> Any:
        raise ValueError("a condition of its own")

    monkeypatch.setattr("worker.engines.transformers.model.twin.shrunk", impossible)
    model = tiny("llama")
    asked = prompts()
    wanted = [generated(model, prompt, 6) for prompt in asked]
    with capture_logs() as lines:
        there = loaded(model)
    assert (there.over, there.alone) == (None, True)
    assert [line["reason"] for line in lines if line["event"] == "computed the library's way"] == [
        "what it does beyond its windows cannot be tried: a condition of its own"
    ]
    assert answers(there, asked, 6) == wanted


def test_rows_that_give_other_tokens_together_are_noticed() -> None:
    model = tiny("mamba")
    with pytest.raises(Unfit):
        prove_rows(Twin(model), model)


def test_a_twin_leaves_the_dice_alone() -> None:
    model = tiny("llama")
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    prove_slots(Twin(model), Shape(model).kinds)
    assert torch.equal(torch.rand(4), wanted)


def test_a_proof_that_fails_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(loading, "prove_slots", lambda *_: None)
    monkeypatch.setattr(SlotModel, "feed", lambda *_: None)
    monkeypatch.setattr(
        SlotModel, "decode", lambda _, slots, *__, **___: torch.zeros(len(slots), 96)
    )
    with pytest.raises(Unfit, match="differ"):
        loading._onto_slots(model, Twin(model), 2, 64)
    assert not any(hasattr(module, "slot_keys") for module in model.modules())


def test_a_model_whose_steps_cannot_be_recorded_is_computed_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where a model asks the device for a number in the middle of a step."""
    model = tiny("llama")
    over = fit(model, Shape(model), 2, 64)

    def impossible(_: Any) -> None:
        monkeypatch.setitem(over._graphs, 1, None)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(over, "capture", impossible)
    with capture_logs() as lines:
        loading._record(over)
    assert [line["event"] for line in lines] == ["decoding steps are not recorded"]
    assert not over._graphs
