"""How one more worker joins a running instance: `status` prints it, `node` assumes it."""

import re
import shlex
from urllib.parse import unquote, urlsplit

from cli import listener
from cli.errors import UsageError
from cli.instance import Record

_LOGIN = re.compile(r"//[^/@,]*@")  # the user and password of a URL


def is_own_broker(record: Record) -> bool:
    """Whether the instance has started its broker, with a user for nodes alone.

    An operator's is used with one user, who may do everything.
    """
    return bool(record["amqp"]["node"] != record["amqp"].get("admin"))


def lines(record: Record) -> list[str]:
    """For each model's tree the command that adds a worker with all rights of the tree's own, on
    any machine, ready for a shell. It has the broker's password in it.
    """
    url = shlex.quote(_address(record))
    return [f"CANOPY_AMQP_URL={url} {line}" for line in local_lines(record)]


def local_lines(record: Record) -> list[str]:
    """The same for this machine, where the running instance says which broker."""
    commands = []
    for model, root in record["roots"].items():
        words = ["./canopy", "node", "NAME", "--parent", root, *_options(record, model)]
        commands.append(shlex.join(words))
    return commands


def elsewhere(record: Record) -> str:
    """How a node joins from another machine, or what is in the way of that."""
    if is_own_broker(record) and not record.get("tls"):
        return "the broker listens on this machine only; start with --listen 0.0.0.0 first"
    if not record.get("management"):
        return "set CANOPY_MANAGEMENT_URL, for ./canopy node-token create"
    return "./canopy node-token create, and there ./canopy join TOKEN"


def model_below(record: Record, parent: str | None) -> str:
    """The --model of a worker below that parent, or of a standby of it.

    Raises UsageError where several models are served and the parent is not the root of one.
    """
    arguments: dict[str, str] = record["asked"]  # by public name
    if len(arguments) == 1:
        return next(iter(arguments.values()))
    for model, root in record["roots"].items():
        if root == parent:
            return arguments[model]
    raise UsageError(f"Several models are served here; say --model, one of: {', '.join(arguments)}")


def _options(record: Record, model: str) -> list[str]:
    options = ["--model", record["asked"][model], "--engine", record["engine"]]
    if record["engine"] == "openai":
        options += ["--upstream", record["upstream"]]
        if record["upstream_model"]:
            options += ["--upstream-model", record["upstream_model"]]
    if record.get("task", "auto") != "auto":
        options += ["--task", record["task"]]
    if record["policy"]:
        options += ["--policy", record["policy"]]
    return options


def _address(record: Record) -> str:
    """The broker's URL: at all addresses where other machines may reach it, if it listens there."""
    url: str = record["amqp"]["node"]
    if not is_own_broker(record):
        return _LOGIN.sub("//USER:PASSWORD@", url)
    reached = listener.from_record(record)
    if reached is None or not reached.addresses:
        return url
    login = urlsplit(url)
    user, password = unquote(login.username or ""), unquote(login.password or "")
    return ",".join(reached.urls(user, password))
