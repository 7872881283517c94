"""The process's broker client, set once while the application starts."""

from broker.client import Client

_running: list[Client] = []  # none or one


def use(client: Client) -> None:
    """Makes `client` the one that `client()` returns."""
    _running[:] = [client]


def forget() -> None:
    """The application stops."""
    _running.clear()


def client() -> Client:
    """The running broker client. Raises RuntimeError outside the application's life."""
    if not _running:
        raise RuntimeError("the broker client is not running")
    return _running[0]
