"""When a process counts as frozen: the rule alone, without pipes, clocks and signals. Pure."""

from cli.errors import SettingError

FROZEN_SECONDS = 30.0  # without a sign of life
FIRST_SIGN_SECONDS = 120.0  # a start, with its imports, on a slow and busy machine
CHECK_SECONDS = 1.0  # between two checks
_OWN_PAUSE_SECONDS = 5.0  # after a longer gap between two checks the launcher itself was stopped


class SilenceTimer:
    """Decides whether a process has been silent for too long; checked every CHECK_SECONDS.

    After a late check (the machine slept, or the launcher got no CPU) the silence starts anew.
    Until its first sign a process has FIRST_SIGN_SECONDS, as it is still starting.
    """

    def __init__(self, limit: float, now: float) -> None:
        self._limit = limit
        self._allowed = max(limit, FIRST_SIGN_SECONDS)
        self._last_sign = now
        self._last_check = now

    def sign(self, moment: float) -> None:
        """Records a sign of life at `moment`."""
        self._last_sign = max(self._last_sign, moment)
        self._allowed = self._limit

    def is_frozen(self, now: float) -> bool:
        """Whether the process has been silent for too long."""
        if now - self._last_check > _OWN_PAUSE_SECONDS:
            self._last_sign = now
        self._last_check = now
        return now - self._last_sign > self._allowed


def parse_frozen_seconds(text: str) -> float | None:
    """CANOPY_FROZEN_SECONDS, FROZEN_SECONDS if empty, None for 0: watch no process.

    Raises SettingError.
    """
    if not text:
        return FROZEN_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds != 0 and not 5 <= seconds <= 86_400:
        raise SettingError(
            "CANOPY_FROZEN_SECONDS must be from 5 to 86400, or 0 to watch no process, "
            f"not {text!r}."
        )
    return seconds or None
