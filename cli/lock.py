"""The lock of a CANOPY_HOME, held from the start of `up` to its end. Standard library only.

It is taken before anything is prepared, then passed on, still locked, to the command line and to a
detached launcher, so `down`, `status` and a second `up` never miss an instance that is starting.
The kernel drops the lock when its last holder dies: it is never stale.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from cli import procfs
from cli.errors import StateError
from cli.home import Home

LOCK_FD = "CANOPY_LOCK_FD"  # the descriptor of the locked file in a program that adopts it
_TRIES = 10  # `is_held` itself holds the lock for some microseconds
_TRY_SECONDS = 0.02


class Holder(NamedTuple):
    """The process that holds the lock, by pid and start time, as the kernel reuses pids."""

    pid: int
    start_ticks: int

    @classmethod
    def current(cls) -> "Holder":
        """This process."""
        return cls(os.getpid(), procfs.start_ticks(os.getpid()) or 0)

    def lives(self) -> bool:
        """Whether this very process still runs."""
        return procfs.start_ticks(self.pid) == self.start_ticks


class Lock:
    """A lock that this process holds, alone or with the process that it was passed on to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        with contextlib.suppress(OSError):  # a full disk, which `up` refuses later with a reason
            _write_holder(fd)

    def pass_on(self) -> None:
        """Lets the program that this process becomes adopt the lock."""
        os.set_inheritable(self.fd, True)
        os.environ[LOCK_FD] = str(self.fd)

    def release(self) -> None:
        """Closes the file; the lock is free unless it was passed on."""
        os.close(self.fd)


def take(home: Home) -> Lock:
    """Takes the lock, or adopts the one passed on to us. Raises StateError when it is held."""
    home.make()
    fd = _adopted(home)
    if fd is None:
        fd = os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(fd, home)  # also after adoption: it may have been unlocked
        return Lock(fd)
    except BaseException:
        os.close(fd)
        raise


def is_held(home: Home) -> bool:
    """Whether an instance runs, starts or stops here."""
    try:
        fd = os.open(home.lock_file, os.O_RDONLY)  # works on a read-only disk too
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def holder(home: Home) -> Holder | None:
    """The lock's holder; None if it has ended or has not recorded itself yet."""
    try:
        record = json.loads(home.lock_file.read_text())
        recorded = Holder(int(record["pid"]), int(record["start_ticks"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if recorded.pid <= 0 or not recorded.lives():
        return None
    return recorded


@contextlib.contextmanager
def hold(home: Home) -> Iterator[Lock]:
    """Holds the lock while the block runs. Raises StateError when it is held already."""
    lock = take(home)
    try:
        yield lock
    finally:
        lock.release()


def _adopted(home: Home) -> int | None:
    """The descriptor passed on to us; None without one, or if it is another folder's lock."""
    number = os.environ.pop(LOCK_FD, "")
    if not number.isdecimal():
        return None
    fd = int(number)
    try:
        same = os.path.samestat(os.fstat(fd), home.lock_file.stat())
    except OSError:  # closed: the variable was only copied
        return None
    if not same:
        return None
    os.set_inheritable(fd, False)
    return fd


def _lock(fd: int, home: Home) -> None:
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_TRY_SECONDS)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    raise StateError(_refusal(home))


def _refusal(home: Home) -> str:
    try:
        record = json.loads(home.instance_file.read_text())
        state = f"already runs here (pid {record['pid']}, {record['url']})"
    except (OSError, ValueError, LookupError, TypeError):
        state = f"is already starting or stopping here ({home.path})"
    return f"Canopy {state}. Stop it with ./canopy down"


def _write_holder(fd: int) -> None:
    text = json.dumps(Holder.current()._asdict()).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, text, 0)
