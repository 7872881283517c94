"""Were the waiting times that people were told true? Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench import stats
from bench.fair.asking import Track


@dataclass(frozen=True, slots=True)
class Estimate:
    """The first time that a waiting reader was told, and the time that it then took to the first token; seconds."""

    told: float
    waited: float


@dataclass(frozen=True, slots=True)
class Honesty:
    """How true estimates were. Seconds: mean wait, mean absolute error, bias (above 0: told too long). `relative`: the
    absolute errors' median as a share of the wait.
    """

    count: int
    waited: float
    error: float
    bias: float
    relative: float

    @classmethod
    def of(cls, found: Sequence[Estimate]) -> "Honesty":
        """Raises ValueError for none."""
        if not found:
            raise ValueError("nobody was told a time")
        return cls(
            len(found),
            fmean(each.waited for each in found),
            fmean(abs(each.told - each.waited) for each in found),
            fmean(each.told - each.waited for each in found),
            stats.percentile(
                [abs(each.told - each.waited) / each.waited for each in found if each.waited > 0],
                50,
            ),
        )


def estimates(tracks: Iterable[Track]) -> list[Estimate]:
    """Of the requests that were told a time and have begun. Those that have not are left out: they were told longer
    times, on the whole, and whether these were true is not known yet.
    """
    return [
        Estimate(told.seconds, track.first - told.at)
        for track in tracks
        if track.first is not None
        and (told := track.estimate) is not None
        and told.seconds is not None
    ]
