"""Names of everything Canopy declares in the broker, each written once.

The layout is described in docs/architecture.md. Names are plain strings that a person recognises
when listing queues with RabbitMQ's own tools.
"""

import hashlib
import re

JOBS_EXCHANGE = "canopy.jobs"  # direct: where jobs enter, routing key = model
CONTROL_EXCHANGE = "canopy.control"  # fanout: reaches every node's inbox (cancel)
EVENTS_EXCHANGE = "canopy.events"  # topic: node states for dashboards, key = node.<name>
DEAD_QUEUE = "canopy.dead"  # jobs given up on

NODE_PREFIX = "canopy.node."
INBOX_PREFIX = "canopy.inbox."
REPLY_PREFIX = "canopy.reply."
WATCH_PREFIX = "canopy.watch."
STANDBY_PREFIX = "canopy.standby."

SLUG_LETTERS = 40
DIGEST_LETTERS = 10
MAX_NAME_BYTES = 255  # AMQP's limit for routing keys and for names of queues and exchanges
NODE_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
_NODE_NAME = re.compile(NODE_NAME)


class BadName(ValueError):
    """A name that cannot be used in the broker or on a command line."""


def check_amqp_name(name: str) -> str:
    """Returns `name` unchanged.

    Raises BadName if AMQP cannot carry it as a routing key or a queue's name: it is longer than
    MAX_NAME_BYTES as UTF-8, or is not valid Unicode.
    """
    if name.isascii() and len(name) <= MAX_NAME_BYTES:
        return name
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise BadName(f"bad name {name[:60]!r}: it is not valid Unicode") from error
    if size > MAX_NAME_BYTES:
        raise BadName(
            f"bad name {name[:60]!r}…: {size} bytes, and at most {MAX_NAME_BYTES} are allowed"
        )
    return name


def is_amqp_name(name: str) -> bool:
    """True if AMQP can carry `name` as a routing key or a queue's name."""
    try:
        check_amqp_name(name)
    except BadName:
        return False
    return True


def check_node_name(name: str) -> str:
    """Returns `name` unchanged, or raises BadName with what is allowed."""
    if not is_node_name(name):
        raise BadName(
            f"bad node name {name!r}: use 1-63 of a-z, 0-9, '-' and '_', "
            "starting with a letter or digit"
        )
    return name


def is_node_name(name: str) -> bool:
    """True if a node may have that name."""
    return _NODE_NAME.fullmatch(name) is not None


def node(name: str) -> str:
    """The node's exchange and its queue; both carry this name."""
    return NODE_PREFIX + name


def inbox(name: str) -> str:
    """The node's exclusive inbox: its presence, and where control messages reach it."""
    return INBOX_PREFIX + name


def reply(process: str) -> str:
    """The exclusive reply queue of one API process."""
    return REPLY_PREFIX + process


def is_reply_queue(queue: str) -> bool:
    """True if `queue` can be the reply queue of an API process."""
    return queue.startswith(REPLY_PREFIX) and is_amqp_name(queue)


def watch(process: str) -> str:
    """An exclusive queue through which one process follows node states."""
    return WATCH_PREFIX + process


def standby(name: str, process: str) -> str:
    """An exclusive queue through which one process waits for a node's name to become free."""
    return f"{STANDBY_PREFIX}{name}.{process}"


def state_key(name: str) -> str:
    """Routing key of a node's state on the events exchange."""
    return f"node.{name}"


def node_of(queue: str) -> str | None:
    """The node's name if `queue` is a node's queue or exchange, else None."""
    return queue.removeprefix(NODE_PREFIX) if queue.startswith(NODE_PREFIX) else None


def inbox_owner(queue: str) -> str | None:
    """The node's name if `queue` is a node's inbox, else None."""
    return queue.removeprefix(INBOX_PREFIX) if queue.startswith(INBOX_PREFIX) else None


def root_name(model: str, default: str) -> str:
    """The name of `model`'s root: plain `root` for the default model, with a suffix for others.

    Different models have different roots: where the readable suffix is not the model's whole name,
    a digest of the name follows, after `_`, which no readable suffix contains.
    """
    if model == default:
        return "root"
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:SLUG_LETTERS]
    if slug == model:
        return f"root-{slug}"
    digest = hashlib.sha256(model.encode(errors="surrogatepass")).hexdigest()[:DIGEST_LETTERS]
    return f"root-{slug}_{digest}"
