"""Which of the stop sequences ended an answer: nodes say only that it stopped.

They are asked to show the sequence (Sampling.include_stop), and it is taken off the text here.
"""

from collections.abc import Sequence

import msgspec

from broker.wire import AnyFrame, Delta, Finished


class StopReader:
    """Passes an answer's frames on without the stop sequence at its end."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self.found: str | None = None
        self._sequences = sorted(sequences, key=len, reverse=True)
        self._held = ""  # text that may belong to a sequence

    def take(self, frame: AnyFrame) -> list[AnyFrame]:
        """What the next frame lets pass."""
        if not self._sequences:
            return [frame]
        if isinstance(frame, Delta):
            text = self._held + frame.text
            self._held = text[len(text) - self._undecided(text) :]
            shown = text[: len(text) - len(self._held)]
            return [msgspec.structs.replace(frame, text=shown)]
        if isinstance(frame, Finished):
            rest = self._without_sequence(frame)
            return [Delta(request_id=frame.request_id, text=rest, tokens=0), frame]
        return [frame]

    def _undecided(self, text: str) -> int:
        """How many of the last characters may begin a sequence, or are one."""
        longest = len(self._sequences[0])
        for length in range(min(longest, len(text)), 0, -1):
            if any(sequence.startswith(text[-length:]) for sequence in self._sequences):
                return length
        return 0

    def _without_sequence(self, end: Finished) -> str:
        for sequence in self._sequences:
            if end.reason == "stop" and self._held.endswith(sequence):
                self.found = sequence
                return self._held.removesuffix(sequence)
        return self._held
