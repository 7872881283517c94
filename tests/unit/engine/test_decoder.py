"""How the decoding thread takes newcomers in."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from broker.wire import Job, Sampling
from tests.unit.engine.tiny import save_model
from worker.engines.transformers import decoder as decoder_module
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.text.chat_template import Prompts

BURST = 6


def sequence(prompt: str, max_tokens: int) -> Sequence:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    job = Job(
        request_id=prompt, model="tiny", reply_to="q", created=0.0, prompt=prompt, sampling=sampling
    )
    return Sequence(job, Mailbox())


def test_requests_of_one_burst_are_read_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANOPY_THREADS", "1")
    news: queue.Queue[list[Any]] = queue.Queue()
    decoder = Decoder(load(save_model("llama", tmp_path / "tiny"), "cpu", BURST + 1), 0, news.put)
    newcomers: list[int] = []  # of each step
    stepped = threading.Event()
    step = decoder._scheduler.step

    def counted() -> Any:
        newcomers.append(len(decoder._scheduler._waiting))
        stepped.set()
        return step()

    monkeypatch.setattr(decoder._scheduler, "step", counted)
    decoder.start()
    try:
        running = sequence("one that runs already", max_tokens=200)
        decoder.submit(running)
        assert stepped.wait(20)
        # so long that only the whole burst ends the wait
        monkeypatch.setattr(decoder_module, "_MAX_ADMITTED", BURST)
        monkeypatch.setattr(decoder_module, "_GAP_SECONDS", 60.0)
        monkeypatch.setattr(decoder_module, "_GATHER_SECONDS", 60.0)
        burst = [sequence(f"newcomer {number}", max_tokens=2) for number in range(BURST)]
        for newcomer in burst:
            decoder.submit(newcomer)
        while not all(newcomer.finished for newcomer in burst):
            news.get(timeout=20)
        running.cancel()
    finally:
        decoder.stop(20)
    assert [count for count in newcomers if count] == [1, BURST]


def test_a_cancel_while_the_prompt_is_prepared_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would take a slot to the end of an answer that nobody reads."""
    monkeypatch.setenv("CANOPY_THREADS", "1")
    loaded = load(save_model("llama", tmp_path / "tiny"), "cpu", 1)
    cancelled = sequence("cancelled before its turn", max_tokens=200)
    cancelled.cancel()
    cancelled.prepare(loaded, Prompts(loaded.tokenizer, loaded.context))
    assert cancelled.finished
