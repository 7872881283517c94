"""Expected failures: one line for the user and an exit status. Standard library only."""

import errno

from cli.home import read


class CliError(Exception):
    """An expected failure. `code`: the exit status; `detail`: printed before the message."""

    code = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class UsageError(CliError):
    """The command line is wrong: permanent, the user's to correct."""

    code = 2


class SettingError(CliError):
    """An environment variable is wrong or missing: permanent, the user's to correct."""


class StateError(CliError):
    """The instance is not in the state that the command needs: start, stop or await it first."""


class HiddenError(StateError):
    """The command's user of the broker lacks the right to see what it shows."""


class MachineError(CliError):
    """The machine lacks a package, a right, a free port or disk space: mend that, then retry."""


class ProcessError(CliError):
    """A program that the command started has failed; its log says why."""


class UnreachableError(CliError):
    """The broker, the launcher or the API does not answer: retry later."""


def explain_os_error(error: OSError) -> MachineError:
    """An operating system's refusal as a sentence, with what to do about it where that is known."""
    place = ""
    if error.filename:
        place = f" ({error.filename})"
    if error.errno == errno.ENOSPC:
        return MachineError(
            f"The disk is full{place}: free some space, then run the command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(f"No permission{place}: {error.strerror}. {_advice(error)}")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return MachineError(f"A file is where a folder is needed{place}. {_advice(error)}")
    return MachineError(f"{error.strerror or error}{place}")


def _advice(error: OSError) -> str:
    home = str(read().path)
    if (
        not error.filename
        or str(error.filename).startswith(home)
        or home.startswith(str(error.filename))
    ):
        return "Set CANOPY_HOME to a folder that you may write."
    return "Choose another place, or change its rights."


def first_error(error: BaseException) -> BaseException:
    """The first of a group of errors, at any depth, as task groups raise them; or the error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
