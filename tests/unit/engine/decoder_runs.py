"""A decoder without an engine around it, and jobs for it."""

import queue
from collections.abc import Callable
from typing import Any

from broker.wire import Job, Sampling
from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence


def job(prompt: str, **settings: Any) -> Job:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 24, **settings})
    return Job(
        request_id="r", model="tiny", reply_to="q", created=0.0, prompt=prompt, sampling=sampling
    )


class Runs:
    """A decoder whose outputs are collected here, in order."""

    def __init__(self, loaded: LoadedModel, slots: int) -> None:
        self._step_outputs: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self.decoder = Decoder(loaded, slots, self._step_outputs.put)
        self.decoder.start()
        self.outputs: dict[Mailbox, list[Chunk | EngineError]] = {}

    def submit(self, submitted: Job) -> Sequence:
        sequence = Sequence(submitted, Mailbox())
        self.outputs[sequence.mailbox] = []
        self.decoder.submit(sequence)
        return sequence

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            for mailbox, item in self._step_outputs.get(timeout=30):
                self.outputs[mailbox].append(item)

    def texts(self, jobs: list[Job]) -> list[str]:
        sequences = [self.submit(each) for each in jobs]
        self.until(lambda: all(self.ended(sequence) for sequence in sequences))
        return [self.text(sequence) for sequence in sequences]

    def ended(self, sequence: Sequence) -> bool:
        outputs = self.outputs[sequence.mailbox]
        if not outputs:
            return False
        last = outputs[-1]
        return isinstance(last, EngineError) or last.finish is not None

    def text(self, sequence: Sequence) -> str:
        outputs = self.outputs[sequence.mailbox]
        if isinstance(outputs[-1], EngineError):
            raise outputs[-1]
        return "".join(chunk.text for chunk in outputs if isinstance(chunk, Chunk))
