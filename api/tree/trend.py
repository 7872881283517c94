"""The trees' figures of the last 15 minutes, so that a page has its sparklines at once."""

from collections import deque
from typing import Any

from broker.tree import Tree

SAMPLE_SECONDS = 5.0
SAMPLES = 180
FIGURES = (
    "waiting",
    "running",
    "usable",
    "in_use",
    "oldest_wait",
    "tokens_per_second",
    "errors",
)

Sample = dict[str, Any]


class Trend:
    """A ring of samples of the total over all trees."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)

    def add(self, tree: Tree) -> None:
        """Takes the tree of this moment; call it every SAMPLE_SECONDS."""
        total = tree["summary"]["total"]
        sample: Sample = {"at": tree["at"]}
        for figure in FIGURES:
            sample[figure] = total[figure]
        self._samples.append(sample)

    @property
    def samples(self) -> list[Sample]:
        """Oldest first."""
        return list(self._samples)
