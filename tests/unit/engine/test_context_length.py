"""Configs have many names for the context length; longer prompts are refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.engine.architectures import answers, loaded, prompts, tiny
from worker.engines.base import EngineError
from worker.engines.transformers.model.context_length import context_length


def model(**settings: Any) -> Any:
    text = SimpleNamespace(**settings)
    config = SimpleNamespace(get_text_config=lambda decoder: text)
    return SimpleNamespace(config=config, named_modules=list)


def yarn(**settings: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, **settings}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_seq_len": 65536}, 65536),
        ({"n_positions": 1024, "n_ctx": 512}, 512),
        ({"max_target_positions": 448, "max_source_positions": 1500}, 448),
        ({"model_max_length": 4096}, 4096),
        ({"seq_length": 32768, "max_position_embeddings": None}, 32768),
        ({"max_position_embeddings": True}, 8192),
        ({"max_position_embeddings": -1}, 8192),
        ({}, 8192),
        ({"max_position_embeddings": 10**30}, 8192),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default"}}, 100),
        (
            {
                "max_position_embeddings": 100,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2},
            },
            200,
        ),
        (
            {
                "max_position_embeddings": 100,
                "rope_parameters": {"rope_type": "linear", "factor": 2},
            },
            100,
        ),
        (
            {
                "max_position_embeddings": 100,
                "rope_parameters": yarn(original_max_position_embeddings=100),
            },
            400,
        ),
        (
            {
                "max_position_embeddings": 400,
                "rope_parameters": yarn(original_max_position_embeddings=100),
            },
            400,
        ),
        (
            {
                "max_position_embeddings": 100,
                "rope_parameters": {"full": yarn(original_max_position_embeddings=50)},
            },
            200,
        ),
    ],
)
def test_names_of_a_context(settings: dict[str, Any], expected: int) -> None:
    assert context_length(model(**settings)) == expected


@pytest.mark.parametrize(("limit", "expected"), [(1024, 1024), (int(1e30), 8192), (None, 8192)])
def test_a_tokenizer_says_it_where_no_config_does(limit: int | None, expected: int) -> None:
    tokenizer = SimpleNamespace(model_max_length=limit)
    assert context_length(model(), tokenizer) == expected
    assert context_length(model(max_position_embeddings=77), tokenizer) == 77


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("mpt", 128),
        ("gpt2", 128),
        ("opt", 128),
        ("whisper", 128),
        ("roberta", 126),
        ("ctrl", 128),
        ("bloom", 8192),
    ],
)
def test_the_context_is_read_to_its_last_token_and_no_further(kind: str, context: int) -> None:
    there = loaded(tiny(kind))
    assert there.context == context
    long = 124 if context == 8192 else context - 2
    assert [len(answer) for answer in answers(there, prompts((long, 5)), 2)] == [2, 2]
    if context < 8192:
        with pytest.raises(EngineError, match="this node reads at most") as caught:
            answers(there, prompts((context,)), 2)
        assert caught.value.code == "too_long"
