"""Fixtures of the API's unit tests (see api_site.py), and what a process's garbage costs."""

import gc
from collections.abc import Iterator

import pytest

from tests.unit.api_site import database, fake, live, member, program, staff, user, web

__all__ = ["database", "fake", "live", "member", "program", "staff", "user", "web"]


def _nothing() -> None:
    """In the place of `gc.freeze` and `gc.unfreeze`."""


@pytest.fixture(autouse=True, scope="module")
def frozen_objects() -> Iterator[None]:
    """Takes what earlier files have left out of sight of the garbage collection.

    Engines and API processes collect when they start and stop. Beside a few thousand collected
    tests and their libraries that took half a second each time: it was a fifth of the tier. They
    freeze and thaw all objects, too, as if a process were theirs alone: here they do not.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gc, "freeze", _nothing)
        patched.setattr(gc, "unfreeze", _nothing)
        yield
