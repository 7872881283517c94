"""The token with which another machine joins: one line with all that it has to know.

It has a password in it, of a broker's user that may do little; see docs/joining.md.
"""

import base64
import binascii
import re
import time
from typing import Annotated

import msgspec

from broker.bounds import Moment, Name, NodeName
from cli.errors import UsageError
from topology.version import VERSION

BEGINNING = "canopy1."
MAX_LETTERS = 8192
MAX_PASTED = 2 * MAX_LETTERS  # with what mails, chats and terminals put around it and into it
MAX_URLS = 64

_NOT_CODED = re.compile(r"[\s\"'`<>\u200b\ufeff]+")
_ANOTHER = "./canopy node-token create, on the machine that runs Canopy, prints a new one"


class JoinToken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`urls`: the broker at each of its addresses; `model_argument`: what --model says there."""

    name: NodeName
    urls: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=1024)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_URLS),
    ]
    model: Name
    model_argument: Name
    engine: Name
    parent: NodeName
    version: Name
    expires: Moment | None = None  # Unix seconds
    task: Name = "auto"
    policy: Name = ""
    upstream: Name = ""
    upstream_model: Name = ""

    @property
    def amqp_url(self) -> str:
        """All addresses, as CANOPY_AMQP_URL has them."""
        return ",".join(self.urls)


def encode(token: JoinToken) -> str:
    """The line that `join` takes. Raises UsageError if it would be too long."""
    text = BEGINNING + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")
    if len(text) > MAX_LETTERS:
        raise UsageError("The token would be too long: the broker has too many addresses.")
    return text


def decode(text: str) -> JoinToken:
    """The token in pasted text: of line breaks, quotes, or words before it nothing is left.

    Raises UsageError with what is wrong, and never the text, which has a password in it.
    """
    if len(text) > MAX_PASTED:
        raise UsageError(f"This is no token: it has {len(text)} letters. {_ANOTHER}.")
    _, found, rest = text.partition(BEGINNING)
    if not found:
        raise UsageError(f"This is no token: one begins with {BEGINNING!r}. {_ANOTHER}.")
    text = BEGINNING + _NOT_CODED.sub("", rest)
    if len(text) > MAX_LETTERS:
        raise UsageError(f"This is no token: it has {len(text)} letters. {_ANOTHER}.")
    coded = text.removeprefix(BEGINNING)
    try:
        content = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(content, type=JoinToken)
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        raise UsageError(
            f"The token is damaged; copy the whole line again, or: {_ANOTHER}."
        ) from None


def is_whole(text: str) -> bool:
    """False while the rest of a pasted token may still follow."""
    if text.strip() and BEGINNING not in text:
        return True
    try:
        decode(text)
    except UsageError:
        return False
    return True


def check(token: JoinToken, version: str = VERSION) -> None:
    """Raises UsageError if it was made by a release with other messages."""
    if release(token.version) != release(version):
        raise UsageError(
            f"The token is of Canopy {token.version}, and this copy is {version}: "
            f"update this folder to {token.version}, or the other machine's to {version}."
        )


def expired(token: JoinToken) -> str:
    """When it expired by this machine's clock, which may be wrong; "" if it did not."""
    if token.expires is None or token.expires > time.time():
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(token.expires))


def release(version: str) -> str:
    """Major and minor number: nodes of one such release understand each other."""
    return ".".join(version.split(".")[:2])
