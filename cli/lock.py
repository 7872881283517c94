"""The lock of a CANOPY_HOME, held from the first moment of `up` to its last. Standard library only.

It is taken before anything is prepared and handed on, still locked, to the command line and to a
detached launcher. So there is no moment in which `down`, `status` or a second `up` could miss an
instance that is on its way. The kernel drops the lock when its last holder dies: it is never stale.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.errors import CliError
from cli.home import Home

LOCK_FD = "CANOPY_LOCK_FD"  # the number of the open, locked file in a program that takes over
_TRIES = 10  # whoever looks whether it is locked holds it for some microseconds
_TRY_SECONDS = 0.02


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock: by pid and start time, as a pid alone is used again."""

    pid: int
    start_ticks: int

    @classmethod
    def current(cls) -> "Holder":
        """This process."""
        return cls(os.getpid(), _start_ticks(os.getpid()) or 0)

    def lives(self) -> bool:
        """Whether that very process still runs."""
        return _start_ticks(self.pid) == self.start_ticks


class Lock:
    """A lock that this process holds, alone or together with one that it was handed on to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        with contextlib.suppress(OSError):  # on a full disk; `up` refuses that with a reason
            _write_holder(fd)

    def pass_on(self) -> None:
        """Lets the program that this process becomes adopt the lock."""
        os.set_inheritable(self.fd, True)
        os.environ[LOCK_FD] = str(self.fd)

    def release(self) -> None:
        """Closes the file; the lock is free unless it was handed on."""
        os.close(self.fd)


def take(home: Home) -> Lock:
    """Takes the lock, or adopts the one that was passed on. Raises CliError when another has it."""
    home.make()
    fd = _adopted(home)
    if fd is None:
        fd = os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(fd, home)  # again for one that was passed on: it may have been unlocked
        return Lock(fd)
    except BaseException:
        os.close(fd)
        raise


def is_held(home: Home) -> bool:
    """Whether an instance runs here, starts or stops."""
    try:
        fd = os.open(home.lock_file, os.O_RDONLY)  # also where nothing can be written any more
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
    """Who holds the lock; None if that process is gone, or has not written itself down yet."""
    try:
        record = json.loads(home.lock_file.read_text())
        found = Holder(int(record["pid"]), int(record["start_ticks"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if found.pid > 0 and found.lives() else None


@contextlib.contextmanager
def held(home: Home) -> Iterator[Lock]:
    """Holds the lock while the block runs. Raises CliError when another has it."""
    lock = take(home)
    try:
        yield lock
    finally:
        lock.release()


def _adopted(home: Home) -> int | None:
    """The lock that the program before us passed on; None without one, or for another folder's."""
    number = os.environ.pop(LOCK_FD, "")
    if not number.isdecimal():
        return None
    fd = int(number)
    try:
        same = os.path.samestat(os.fstat(fd), home.lock_file.stat())
    except OSError:  # it is closed: somebody only copied our environment
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
    raise CliError(_taken(home))


def _taken(home: Home) -> str:
    try:
        record = json.loads(home.instance_file.read_text())
        state = f"already runs here (pid {record['pid']}, {record['url']})"
    except (OSError, ValueError, LookupError, TypeError):
        state = f"is already starting or stopping here ({home.path})"
    return f"Canopy {state}. Stop it with ./canopy down"


def _write_holder(fd: int) -> None:
    text = json.dumps(asdict(Holder.current())).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, text, 0)


def _start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since the boot; None for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # what is before may hold spaces: the program's name
    state, start_ticks = fields[0], int(fields[19])
    return None if state in ("Z", "X") else start_ticks
