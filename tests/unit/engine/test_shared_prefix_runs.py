"""What the runner knows of shared prefixes is true in every step that it computes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.decoder_runs import Runs, job
from tests.unit.engine.pages import look_a_step_later, use_pages
from tests.unit.engine.tiny import save_model
from worker.engines.transformers.cache import shared_prefixes
from worker.engines.transformers.model.cache_size import BLOCK_SIZE
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import NO_ROWS, SharedPrefix

SYSTEM = "You are a model that reads the same at the beginning of each conversation, at length."
SLOTS = 6


class Watch:
    """Compares the shared prefixes with the blocks that its rows have."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.prefixes: list[SharedPrefix] = []
        self.updates: list[list[SharedPrefix]] = []
        self.grouped_steps = 0
        decode_of, prefill_of = LocalModelRunner.decode, LocalModelRunner.prefill

        def share_prefixes(_: Any, prefixes: list[SharedPrefix]) -> None:
            self.updates.append(prefixes)
            self.prefixes = prefixes

        def decode(runner: Any, slots: Any, positions: Any, **more: Any) -> Any:
            self._check(runner, slots, positions)
            return decode_of(runner, slots, positions, **more)

        def prefill(
            runner: Any, chunks: Any, tokens: Any, ends: Any, rows: Any = NO_ROWS, **more: Any
        ) -> Any:
            self._check(runner, *rows)
            return prefill_of(runner, chunks, tokens, ends, rows, **more)

        for replacement in (share_prefixes, decode, prefill):
            patch.setattr(LocalModelRunner, replacement.__name__, replacement)

    def _check(self, runner: Any, slots: Any, positions: Any) -> None:
        position_of = dict(zip(slots, positions, strict=True))
        table = runner._block_tables[runner.device][0]
        for prefix in self.prefixes:
            computed = [slot for slot in prefix.slots if slot in position_of]
            blocks = prefix.tokens // BLOCK_SIZE
            for slot in computed:
                assert position_of[slot] >= prefix.tokens
                assert table[slot, :blocks].equal(table[computed[0], :blocks])
            self.grouped_steps += len(computed) > 1


@pytest.fixture(params=[None, 800], ids=["pages", "few pages"])
def runs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runs]:
    monkeypatch.setenv("CANOPY_THREADS", "1")
    monkeypatch.setattr(shared_prefixes, "_MIN_TOKENS", 64)
    use_pages(monkeypatch, request.param)
    look_a_step_later(monkeypatch)
    created = Runs(load(save_model("llama", tmp_path), "cpu", SLOTS), SLOTS)
    yield created
    assert created.decoder.stop(10)


def test_groups_hold_while_sequences_come_end_and_are_preempted(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    jobs = [job(f"{SYSTEM} {n}", max_tokens=10 + 9 * (n % 4)) for n in range(16)]
    jobs += [job(f"{n} {SYSTEM}", max_tokens=20) for n in range(3)]
    jobs += [job(f"{SYSTEM} seeded", seed=3, temperature=1.0)]
    runs.texts(jobs)
    assert watch.grouped_steps > 10
    assert len(watch.updates) > 5
    assert watch.updates[-1] == []
