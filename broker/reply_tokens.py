"""Which answers an API process believes.

Frames that arrive straight in the reply queue come from a user that may publish to any queue, and
are believed. What came through JOINED_EXCHANGE may be anybody's who has a joined node's password:
it must carry the token of its job, which only the nodes that were given the job know. A job that
comes back from a joined node may have been altered, so trusted nodes pass its token on in all
frames about a job that is not running here, and the API checks it wherever there is one.
"""

import hashlib
import hmac
import secrets

_BYTES = 16  # of a token, which is told in hexadecimal


class ReplyTokens:
    """The tokens of one API process's jobs. They are derived, so none has to be remembered."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def token(self, request_id: str) -> str:
        """The token of that request's jobs: keyed BLAKE2b (RFC 7693).

        OpenSSL's HMAC gives up the interpreter's lock, and waits for it up to 5 ms, for each job.
        """
        message = request_id.encode(errors="surrogatepass")
        return hashlib.blake2b(message, key=self._key, digest_size=_BYTES).hexdigest()

    def is_valid(self, request_id: str, token: str) -> bool:
        """Whether a frame with this token is about a job that was given to its sender."""
        genuine = self.token(request_id).encode()
        return hmac.compare_digest(genuine, token.encode(errors="surrogatepass"))
