"""When a process counts as frozen: the rule, apart from signs, clocks and signals."""

import os

from cli.errors import CliError

FROZEN_SECONDS = 30.0  # without a sign of life
FIRST_SIGN_SECONDS = 120.0  # a start, with its imports, on a slow and busy machine
LOOK_SECONDS = 1.0  # between two looks
_OWN_PAUSE_SECONDS = 5.0  # between two looks: then it was we who stood still


class Silence:
    """How long a process has been silent, for who looks at it every LOOK_SECONDS.

    A look that comes late says that the machine slept, or was so busy that the launcher itself did
    not run: that time counts for nobody. Until its first sign a process has longer, as it starts.
    """

    def __init__(self, limit: float, now: float) -> None:
        self._limit = limit
        self._allowed = max(limit, FIRST_SIGN_SECONDS)
        self._heard = now
        self._looked = now

    def sign(self, moment: float) -> None:
        """The process lived then."""
        self._heard = max(self._heard, moment)
        self._allowed = self._limit

    def is_frozen(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        if now - self._looked > _OWN_PAUSE_SECONDS:
            self._heard = now
        self._looked = now
        return now - self._heard > self._allowed


def frozen_seconds() -> float | None:
    """CANOPY_FROZEN_SECONDS; None, for 0, says that nobody is to be watched. Raises CliError."""
    text = os.environ.get("CANOPY_FROZEN_SECONDS") or str(FROZEN_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds != 0 and not 5 <= seconds <= 86_400:
        raise CliError(
            f"CANOPY_FROZEN_SECONDS must be from 5 to 86400, or 0 to watch nobody, not {text!r}."
        )
    return seconds or None
