"""The process's broker client, set once while the application starts."""

from broker.client import Client


class NotRunning(RuntimeError):
    """The application is starting or stopping."""


_running: list[Client] = []  # none or one


def use(client: Client) -> None:
    """Makes `client` the one that `client()` returns."""
    _running[:] = [client]


def forget() -> None:
    """The application stops."""
    _running.clear()


def client() -> Client:
    """The running broker client. Raises NotRunning outside the application's life."""
    if not _running:
        raise NotRunning("the broker client is not running")
    return _running[0]
