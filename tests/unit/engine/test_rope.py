"""Rotary frequencies that depend on the length: each sequence has its own."""

import copy
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.unit.engine.architectures import answers, generated, loaded, made, prompts
from tests.unit.engine.pages import look_a_step_later, use_pages
from worker.engines.transformers.cache.manager import Allocation, CacheRequest
from worker.engines.transformers.cache.slot_cache import SlotCache
from worker.engines.transformers.model.rope import RopeLimit, choose_by_sequence
from worker.engines.transformers.model.shrunk_config import ORIGINAL, shrunk

_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * each for each in range(8)],
    "long_factor": [2.0 + 1.5 * each for each in range(8)],
    "original_max_position_embeddings": ORIGINAL,
}
_MSCALES = {"short_mscale": 1.1, "long_mscale": 1.4, "factor": 8.0}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"rope_parameters": {**_LONG, "partial_rotary_factor": 1.0}}),
    "phimoe": ("phimoe", {"rope_parameters": {**_LONG, **_MSCALES}}),
    "llama, longrope": ("llama", {"rope_parameters": {**_LONG, "factor": 8.0}}),
    "llama, dynamic": ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": ORIGINAL}),
}
LENGTHS = (3, ORIGINAL - 2, ORIGINAL, ORIGINAL + 1, 35)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_of(name: str) -> Any:
    kind, settings = ROPES[name]
    config = shrunk(CONFIG_MAPPING[kind]())
    for setting, value in settings.items():
        setattr(config, setting, copy.deepcopy(value))
    if "phi" in kind:
        config.original_max_position_embeddings = ORIGINAL
    return made(type(config).from_dict(config.to_dict()))


def by_library(name: str, asked: list[list[int]], length: int) -> list[list[int]]:
    """Each by a fresh model."""
    return [generated(model_of(name), prompt, length) for prompt in asked]


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("ahead", [False, True])
def test_short_and_long_sequences_side_by_side(
    name: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts below and beyond the limit, and answers that grow across it; as on a CPU, and with
    blocks and the host a step ahead, as on a GPU.
    """
    if ahead:
        use_pages(monkeypatch)
        look_a_step_later(monkeypatch)
    prompt_ids = prompts(LENGTHS)
    there = loaded(model_of(name), slots=4, read=7, context=64)
    assert there.runner is not None
    assert answers(there, prompt_ids, 16) == by_library(name, prompt_ids, 16)


@pytest.mark.parametrize("name", ROPES)
def test_one_by_one_in_turns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
    prompt_ids = prompts(LENGTHS)
    there = loaded(model_of(name), slots=4, context=64)
    assert not there.batched
    assert answers(there, prompt_ids, 16) == by_library(name, prompt_ids, 16)


@pytest.mark.parametrize("name", ["phi3", "llama, dynamic"])
def test_a_conversation_that_outgrows_the_limit(name: str) -> None:
    """What a slot holds of a shorter prompt is of no use for a longer one."""
    there = loaded(model_of(name), slots=2, read=64, context=64)
    [prompt] = prompts((10,))
    for _ in range(4):
        [answer] = answers(there, [prompt], 5)
        assert [answer] == by_library(name, [prompt], 5)
        prompt = prompt + answer + [7, 8]


def test_a_frequency_is_looked_up_by_sequence() -> None:
    model = model_of("phi3")
    assert choose_by_sequence(model) == RopeLimit(ORIGINAL, switched=True)
    assert choose_by_sequence(model) == RopeLimit(ORIGINAL, switched=True)  # idempotent
    assert choose_by_sequence(made(shrunk(CONFIG_MAPPING["llama"]()))) is None


def test_prompts_of_another_group_are_not_shared() -> None:
    cache = SlotCache(3)
    first = cache.allocate(CacheRequest([1, 2, 3, 4], [], group=0))
    assert isinstance(first, Allocation)
    cache.extend(first.slot, [1, 2, 3, 4])
    cache.release(first.slot)
    for group in (1, -1):
        allocation = cache.allocate(CacheRequest([1, 2, 3, 4, 5], [], group=group))
        assert isinstance(allocation, Allocation)
        assert allocation.cached == 0


@pytest.mark.parametrize(
    ("switched", "length", "group"),
    [(True, 16, 0), (True, 17, 1), (False, 16, 0), (False, 17, -1)],
)
def test_which_prompts_have_the_same_keys(switched: bool, length: int, group: int) -> None:
    assert RopeLimit(16, switched).group(length) == group
