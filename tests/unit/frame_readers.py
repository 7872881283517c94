"""Readers of one run's frames, in the place of a broker's reply channel."""

from broker.wire import AnyFrame, Delta, ResumeGrant


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.frames: list[AnyFrame] = []

    def send(self, frame: AnyFrame) -> None:
        self.frames.append(frame)

    async def confirm(self, frame: AnyFrame) -> None:
        self.frames.append(frame)

    async def request_resume(self, number: int) -> ResumeGrant:
        raise NotImplementedError

    async def flowing(self) -> None: ...

    def texts(self) -> list[str]:
        """One for each frame with text."""
        return [frame.text for frame in self.frames if isinstance(frame, Delta)]
