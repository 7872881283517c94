"""How many histories these tests try: in a normal run the same few, for some seconds.

`HUNT=5000 pytest tests/unit/stateful --timeout 0` tries so many new ones.
"""

import os

from hypothesis import HealthCheck, settings

_HUNT = int(os.environ.get("HUNT", "0"))


def histories(normal: int, steps: int = 30) -> settings:
    """`normal`: histories in a normal run. `steps`: rules in each; a hunt's are longer."""
    return settings(
        max_examples=_HUNT or normal,
        stateful_step_count=steps * 2 if _HUNT else steps,
        derandomize=not _HUNT,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
