"""How preparation tells what it does."""

from collections.abc import Callable

Say = Callable[[str], None]  # one line, for a person who waits
