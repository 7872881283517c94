"""The process's broker client, set once while the application starts."""

from broker.client import Client

_client: Client | None = None


def use(client: Client | None) -> None:
    """Makes `client` the one that `client()` returns; None when the application stops."""
    global _client
    _client = client


def client() -> Client:
    """The running broker client. Raises RuntimeError outside the application's life."""
    if _client is None:
        raise RuntimeError("the broker client is not running")
    return _client
