"""Exact results of queueing theory that the simulator is checked against.

The mean service time is 1; `load` is a slot's.
"""

from collections.abc import Callable
from math import inf


def erlang_c(slots: int, load: float) -> float:
    """Probability that a job waits in M/M/c (Kleinrock, Queueing Systems, vol. 1; by Erlang B)."""
    offered = slots * load
    blocking = 1.0
    for busy in range(1, slots + 1):
        blocking = offered * blocking / (busy + offered * blocking)
    return blocking / (1 - load * (1 - blocking))


def central_queue_mean(slots: int, load: float) -> float:
    """Mean time in system of one central queue, Poisson arrivals, exponential service (M/M/c)."""
    return inf if load >= 1 else 1 + erlang_c(slots, load) / (slots * (1 - load))


def single_queue_mean(load: float, cv2: float) -> float:
    """Mean time in system of one slot, Poisson arrivals, service with CV² (Pollaczek-Khinchine)."""
    return inf if load >= 1 else 1 + load * (1 + cv2) / (2 * (1 - load))


# `paper` on 7 nodes of one slot, fan-out 2: n1 -> (n2, n3) -> (n4, n5, n6, n7); Poisson arrivals,
# exponential service. An inner node passes on what finds it busy, so it is a slot without a queue.
# Where the gaps of arrivals at such a slot have the Laplace transform p, the share p(1) overflows,
# and the gaps of that have the transform p(s + 1) / (1 - p(s) + p(s + 1)) (Palm 1943; Takacs,
# Introduction to the Theory of Queues, ch. 4). Each of two children gets every second one: p².


def paper_leaf_load(load: float) -> float:
    """Share of its time that a leaf of that tree is busy; above 1 its queue grows for ever."""
    rate = 7 * load
    return rate * _arriving(1, 1, rate) * _arriving(2, 1, rate) / 4


def paper_mean(load: float) -> float:
    """Mean time in system in that tree.

    A leaf is a queue GI/M/1: 1 / (1 - x) on average, where x is the root below 1 of x = p(1 - x)
    (Kleinrock, Queueing Systems, vol. 1, ch. 6).
    """
    leaf_load = paper_leaf_load(load)
    if leaf_load >= 1:
        return inf
    rate = 7 * load
    waits = _bisect(lambda x: _arriving(3, 1 - x, rate) < x, 0.0, 1.0 - 1e-9)
    at_leaves = 4 * leaf_load / rate
    return (1 - at_leaves) + at_leaves / (1 - waits)


def paper_saturation() -> float:
    """The load at which those leaves are busy all the time."""
    return _bisect(lambda load: paper_leaf_load(load) > 1, 0.5, 1.0)


def _arriving(level: int, s: float, rate: float) -> float:
    """Laplace transform, at `s`, of the gaps between jobs at a node of that level (1: n1)."""
    if level == 1:
        return rate / (rate + s)
    above, above_next = _arriving(level - 1, s, rate), _arriving(level - 1, s + 1, rate)
    return (above_next / (1 - above + above_next)) ** 2


def _bisect(beyond: Callable[[float], bool], low: float, high: float) -> float:
    """Where `beyond` turns from false to true between `low` and `high`, to 9 decimals."""
    while high - low > 1e-9:
        middle = (low + high) / 2
        if beyond(middle):
            high = middle
        else:
            low = middle
    return low
