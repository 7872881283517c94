"""Random JSON schemas: a complete answer satisfies its schema, and what cannot be kept is refused.

`CANOPY_SCHEMAS=300` tries as many; `CANOPY_SCHEMA_MODEL=FOLDER` uses another model.
"""

import collections
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from broker.wire import Grammar
from tests.unit.engine.decoder_runs import Runs, job
from tests.unit.engine.schemas import random_schema
from tests.unit.engine.tiny import save_model
from worker.engines.base import Chunk, EngineError, InvalidRequest
from worker.engines.transformers.model.loader import load

pytestmark = pytest.mark.timeout(1800)

COUNT = int(os.environ.get("CANOPY_SCHEMAS", "60"))
FOLDER = os.environ.get("CANOPY_SCHEMA_MODEL", "")
MAX_TOKENS = int(os.environ.get("CANOPY_SCHEMA_TOKENS", "400"))
SLOTS = 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = Path(FOLDER) if FOLDER else save_model("llama", tmp_path_factory.mktemp("tiny"))
    runs = Runs(load(folder, "cpu", SLOTS), SLOTS)
    yield runs
    assert runs.decoder.stop(10)


def test_complete_answers_satisfy_random_schemas(runs: Runs) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    broken: list[tuple[int, Any, str, str]] = []
    for first in range(0, COUNT, SLOTS):
        seeds = range(first, min(first + SLOTS, COUNT))
        submitted = {}
        for seed in seeds:
            grammar = Grammar(kind="json_schema", source=json.dumps(random_schema(seed)))
            # likelier ends of strings and objects: noise would hardly ever come to an end
            submitted[seed] = runs.submit(
                job("JSON: ", grammar=grammar, temperature=1.0, seed=seed, max_tokens=MAX_TOKENS)
            )
        runs.until(lambda waiting=submitted: all(map(runs.ended, waiting.values())))
        for seed, sequence in submitted.items():
            outcome, text = _outcome(runs.outputs[sequence.mailbox])
            outcomes[outcome] += 1
            if outcome == "stop":
                reason = _complaint(random_schema(seed), text)
                if reason:
                    broken.append((seed, random_schema(seed), text, reason))
    print(f"\nof {COUNT} schemas: {dict(outcomes)}")
    assert not broken
    assert outcomes["stop"] >= COUNT // 2


def _outcome(outputs: list[Chunk | EngineError]) -> tuple[str, str]:
    last = outputs[-1]
    if isinstance(last, EngineError):
        assert isinstance(last, InvalidRequest), last
        return "refused", str(last)
    text = "".join(chunk.text for chunk in outputs if isinstance(chunk, Chunk))
    return str(last.finish), text


def _complaint(schema: Any, text: str) -> str:
    """Why the text does not satisfy the schema; formats included."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    try:
        errors = [error.message for error in validator.iter_errors(json.loads(text))]
    except ValueError as error:
        return str(error)
    return "; ".join(errors)
