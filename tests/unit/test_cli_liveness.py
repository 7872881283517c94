"""When a process counts as frozen: the rule alone, without processes."""

import pytest

from cli.errors import SettingError
from cli.liveness import FROZEN_SECONDS, SilenceTimer, parse_frozen_seconds


def silent_for(seconds: float, *, step: float = 1.0) -> bool:
    """Whether a process silent for `seconds`, checked each `step`, counts as frozen."""
    silence = SilenceTimer(30.0, 0.0)
    silence.sign(0.0)
    moments = [step * number for number in range(1, int(seconds / step) + 1)]
    return any(silence.is_frozen(moment) for moment in moments)


def test_silence_is_measured_in_time_that_we_saw_pass() -> None:
    assert not silent_for(30)
    assert silent_for(31)
    assert not silent_for(3600, step=3600), "the machine slept"
    assert not silent_for(600, step=6), "we hardly run ourselves"


def test_a_process_that_starts_has_longer() -> None:
    silence = SilenceTimer(30.0, 0.0)
    assert not any(silence.is_frozen(float(second)) for second in range(1, 121))
    assert silence.is_frozen(121.0)


@pytest.mark.parametrize("nonsense", ["1", "-5", "x", "nan", "inf", "1e9"])
def test_the_limit_of_silence_is_a_sensible_number(nonsense: str) -> None:
    with pytest.raises(SettingError, match="CANOPY_FROZEN_SECONDS must be from 5"):
        parse_frozen_seconds(nonsense)
    assert parse_frozen_seconds("0") is None
    assert parse_frozen_seconds("") == FROZEN_SECONDS
