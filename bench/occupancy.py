"""Did a request wait while a slot was free? Decided from moments, pure.

A request *wants* a slot from the moment its job entered the broker until it runs, and *holds* one from there to its
end. A slot is free when fewer requests hold one than there are slots. A job needs a moment to travel to a free slot,
so every request waits beside one for a little; what counts is how long.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """One request's moments in seconds of one clock."""

    entered: float
    started: float
    ended: float
    node: str


def waited_beside_a_free_slot(requests: Sequence[Times], slots: int) -> list[float]:
    """For each request the seconds that it waited while fewer than `slots` requests ran."""
    free = _stretches_with_room(requests, slots)
    return [
        sum(_shared(each.entered, each.started, *stretch) for stretch in free) for each in requests
    ]


def most_at_once(requests: Sequence[Times]) -> dict[str, int]:
    """The most requests each node ran at the same time."""
    return {
        node: _peak([each for each in requests if each.node == node])
        for node in sorted({r.node for r in requests})
    }


def _stretches_with_room(requests: Sequence[Times], slots: int) -> list[tuple[float, float]]:
    """The times (from, until) in which a slot was free, before the first start and after the last end included."""
    found = []
    since, running = float("-inf"), 0
    for at, step in _steps(requests):
        was, running = running, running + step
        if was < slots <= running:
            found.append((since, at))
        elif running < slots <= was:
            since = at
    return [*found, (since, float("inf"))]


def _peak(requests: Sequence[Times]) -> int:
    running = most = 0
    for _, step in _steps(requests):
        running += step
        most = max(most, running)
    return most


def _steps(requests: Sequence[Times]) -> list[tuple[float, int]]:
    """(moment, change of the number of running requests); at one moment ends come before starts."""
    return sorted(
        [(each.started, 1) for each in requests] + [(each.ended, -1) for each in requests]
    )


def _shared(start: float, end: float, other_start: float, other_end: float) -> float:
    return max(0.0, min(end, other_end) - max(start, other_start))
