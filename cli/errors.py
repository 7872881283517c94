"""The one way in which a command fails on purpose. Standard library only."""

import errno


class CliError(Exception):
    """A failure to be told in one line. `code` is the exit status; `detail` is shown below the line."""

    def __init__(self, message: str, *, code: int = 1, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


def explain_os_error(error: OSError) -> CliError:
    """What an operating system's refusal means for the person at the terminal."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return CliError(f"The disk is full{place}: free some space, then run the command again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CliError(
            f"No permission{place}: {error.strerror}. Set CANOPY_HOME to a folder that you may write."
        )
    return CliError(f"{error.strerror or error}{place}")
