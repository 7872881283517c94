"""How the preparation of a model reports its progress."""

from collections.abc import Callable

Say = Callable[[str], None]  # a line for the waiting user
