"""A process that runs as long as the instance, as the supervisor knows it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cli.process import Child, Spec

READY_SECONDS = 600.0  # a large model on a slow disk


@dataclass(frozen=True)
class Service:
    """`serves` waits until it serves; False if it ends first. `seconds`: how long that may take.

    `answers`: a probe, for a process that gives no signs of life itself.
    """

    group: str
    spec: Spec
    serves: Callable[[Child], Awaitable[bool]] = Child.until_ready
    seconds: float = READY_SECONDS
    answers: Callable[[], Awaitable[bool]] | None = None

    @property
    def name(self) -> str:
        """The process's name."""
        return self.spec.name
