"""The prefix of all names in a broker, by which several instances share one.

The code names objects as `topology.names` does, beginning with `canopy.`. A session and the reader
of the management API put the instance's own prefix in its place on the way to the broker, and take
it away on the way back, so nothing else knows it. It travels as an option of the broker's address,
`?prefix=NAME`, because whoever has the address needs it; `CANOPY_PREFIX` adds that option.
"""

import re

from topology.names import OURS, BadName

DEFAULT = "canopy"
MAX_LETTERS = 32
_OPTION = "prefix="
_RESERVED = "amq"  # begins RabbitMQ's own names
_PREFIX = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class Prefix:
    """Translates between the code's names and those in the broker.

    Names that do not begin with `canopy.`, such as RabbitMQ's own, are the same in both.
    """

    def __init__(self, name: str = DEFAULT) -> None:
        """Raises BadName."""
        if _PREFIX.fullmatch(name) is None or name == _RESERVED:
            raise BadName(
                f"bad prefix {name[:60]!r}: use 1-{MAX_LETTERS} of a-z, 0-9, '-' and '_', "
                f"starting with a letter, but not {_RESERVED!r}"
            )
        self.name = name
        self._begins = f"{name}."

    @classmethod
    def of(cls, url: str) -> "Prefix":
        """The prefix in one address. Raises BadName."""
        for option in _options(url):
            if option.startswith(_OPTION):
                return cls(option.removeprefix(_OPTION))
        return cls()

    def outside(self, name: str) -> str:
        """The name in the broker."""
        if name.startswith(OURS) and self.name != DEFAULT:
            return self._begins + name[len(OURS) :]
        return name

    def inside(self, name: str) -> str:
        """The code's name of an object in the broker; "" for one of another instance."""
        if self.name == DEFAULT:
            return name
        if name.startswith(self._begins):
            return OURS + name[len(self._begins) :]
        return "" if name.startswith(OURS) else name


def with_prefix(urls: str, prefix: str) -> str:
    """The addresses, separated by commas, with that prefix; as they are if it is empty.

    Raises BadName if it cannot be used, or an address has another one already.
    """
    if not urls or not prefix:
        return urls
    Prefix(prefix)
    return ",".join(_with_prefix(url.strip(), prefix) for url in urls.split(",") if url.strip())


def without_prefix(url: str) -> str:
    """One address as the broker's client library understands it."""
    base, _, _ = url.partition("?")
    others = [option for option in _options(url) if not option.startswith(_OPTION)]
    return f"{base}?{'&'.join(others)}" if others else base


def _with_prefix(url: str, prefix: str) -> str:
    present = [option for option in _options(url) if option.startswith(_OPTION)]
    if present and present != [_OPTION + prefix]:
        raise BadName(f"CANOPY_PREFIX is {prefix!r}, but the broker's address has {present[0]!r}")
    if present or prefix == DEFAULT:
        return url
    return f"{url}{'&' if '?' in url else '?'}{_OPTION}{prefix}"


def _options(url: str) -> list[str]:
    _, _, query = url.partition("?")
    return [option for option in query.split("&") if option]
