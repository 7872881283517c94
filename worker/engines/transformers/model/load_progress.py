"""How far the loading of weights is, as transformers' own progress bar would show it."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import transformers

from worker import load_status
from worker.models.progress import gigabytes

log = structlog.get_logger(__name__)

_DESCRIPTION = "Loading weights"  # of transformers' bar
_REPORT_SECONDS = 2.0


class LoadProgress:
    """Logs at most every two seconds. `clock`: seconds."""

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`size`: bytes on disk."""
        self._size = size
        self._clock = clock
        self._began = self._reported = clock()

    def advance(self, done: int, total: int) -> None:
        """So many tensors are there, of all."""
        if not 0 < done < total:
            return
        now = self._clock()
        left = round((now - self._began) * (total - done) / done)
        loaded, of = gigabytes(self._size * done // total), gigabytes(self._size)
        load_status.report(f"loading weights: {loaded} of {of}, {left} s left", done / total)
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            log.info("loading weights", loaded=loaded, of=of, seconds_left=left)


@contextmanager
def reporting(size: int) -> Iterator[None]:
    """Reports on what transformers loads meanwhile, in this process. `size`: bytes on disk; 0: not
    known.
    """
    progress = LoadProgress(size)

    def hook(factory: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if size and arguments and options.get("desc") == _DESCRIPTION:
            return _each(arguments[0], progress)
        return factory(*arguments, **options)

    before = transformers.utils.logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


def _each(items: Iterable[Any], progress: LoadProgress) -> Iterator[Any]:
    total = len(items) if isinstance(items, Collection) else 0
    for done, item in enumerate(items):
        progress.advance(done, total)
        yield item
