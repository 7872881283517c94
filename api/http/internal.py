"""Requests of this process to its own endpoints, on behalf of a user who was authenticated before.

Lines of batches and stored jobs take the same way as a client's request: the same address, the same
validation, the same answer. Only the connection is missing, and with it the client's key.
"""

from django.http import HttpRequest

from api.accounts.models import User


class InternalRequest(HttpRequest):
    """A POST of a JSON document by `user`. `headers`: as in META, such as HTTP_IDEMPOTENCY_KEY."""

    def __init__(self, user: User, path: str, body: bytes, headers: dict[str, str]) -> None:
        super().__init__()
        self.method = "POST"
        self.path = self.path_info = path
        self.META = {
            "REQUEST_METHOD": "POST",
            "CONTENT_TYPE": "application/json",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "0",
            **headers,
        }
        self.content_type = "application/json"
        self.acts_for = user
        self._body = body
