"""Times in buckets of growing width, which can be added up: 60 minutes make an hour exactly. Pure.

The first bucket ends at LEAST, the last but one at MOST, the last has no end. A percentile is off
by less than a bucket's width, a third.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import msgspec

BUCKETS = 64
LEAST = 0.001  # seconds
MOST = 86_400.0
_decoder = msgspec.json.Decoder(list[tuple[int, int]])
_RATIO = (MOST / LEAST) ** (1 / (BUCKETS - 2))


def bucket_of(seconds: float) -> int:
    """The number of the bucket, from 0."""
    if seconds <= LEAST:
        return 0
    return min(BUCKETS - 1, math.ceil(math.log(seconds / LEAST, _RATIO) - 1e-9))


def upper_bound(bucket: int) -> float:
    """Where the bucket ends, in seconds; for the last one, where it would."""
    return float(LEAST * _RATIO**bucket)


@dataclass(slots=True)
class Histogram:
    """How many times fell into each bucket."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """How many times there are."""
        return self.counts.total()

    def add(self, seconds: float) -> None:
        """Counts one time."""
        self.counts[bucket_of(seconds)] += 1

    def merge(self, other: "Histogram") -> None:
        """Adds the other one's times."""
        self.counts.update(other.counts)

    def merge_encoded(self, text: str) -> None:
        """The same from what `encode` made. Raises ValueError for anything else."""
        if text:
            for bucket, count in _decoder.decode(text):
                self.counts[bucket] += count

    def quantile(self, part: float) -> float | None:
        """The time that `part` (0 to 1) of all times do not exceed; None without any.

        Inside a bucket the times count as spread evenly over the logarithm.
        """
        total = self.total
        if total == 0:
            return None
        rank = part * total
        below = 0
        for bucket, count in sorted(self.counts.items()):
            if below + count >= rank:
                inside = (rank - below) / count
                return upper_bound(bucket) / _RATIO ** (1 - inside)
            below += count
        return upper_bound(BUCKETS - 1)

    def encode(self) -> str:
        """As JSON: pairs of bucket and count, such as [[3,12],[5,1]]; empty for none."""
        if not self.counts:
            return ""
        return msgspec.json.encode(sorted(self.counts.items())).decode()

    @classmethod
    def decode(cls, text: str) -> "Histogram":
        """The opposite. Raises ValueError for anything else."""
        histogram = cls()
        histogram.merge_encoded(text)
        return histogram
