"""The broker's addresses as the environment gives them, with the prefix of our names."""

from cli import environment
from cli.errors import SettingError
from topology.names import BadName
from topology.prefix import DEFAULT, Prefix, with_prefix


def of_environment() -> tuple[str, str]:
    """The AMQP and the management address of a broker elsewhere, "" where there is none.

    Raises SettingError if CANOPY_PREFIX cannot be used.
    """
    env = environment.read()
    try:
        return with_prefix(env.amqp_url, env.prefix), with_prefix(env.management_url, env.prefix)
    except BadName as error:
        raise _wrong(error) from error


def own_prefix() -> Prefix:
    """Of the names in a broker of our own. Raises SettingError."""
    try:
        return Prefix(environment.read().prefix or DEFAULT)
    except BadName as error:
        raise _wrong(error) from error


def _wrong(error: BadName) -> SettingError:
    return SettingError(f"CANOPY_PREFIX: {error}")
