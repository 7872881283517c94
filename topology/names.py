"""Names of everything Canopy declares in the broker, each written once.

The layout is described in docs/architecture.md. Names are plain strings that a person recognises
when listing queues with RabbitMQ's own tools.
"""

import hashlib
import re

JOBS_EXCHANGE = "canopy.jobs"  # direct: where jobs enter, routing key = model
CONTROL_EXCHANGE = "canopy.control"  # fanout: reaches every node's inbox (cancel)
# topic: node states for dashboards, key = node.<name>, or joined.<tree>.<name>; job reports, key =
# jobs.<name>;
# changes of conversations, key = chat.<user>, and of settings, key = setting.<name>
EVENTS_EXCHANGE = "canopy.events"
# topic: what joined nodes send to queues, key = joined_key(queue, model)
JOINED_EXCHANGE = "canopy.joined"
JOINED_STATES = "joined.*.*"  # on the events exchange: states of joined nodes
METRICS_KEY = "metrics"  # on the events exchange: metrics of API processes
DRILL_KEY = "drill"  # on the events exchange: what API processes count while a node is killed
DEAD_QUEUE = "canopy.dead"  # jobs given up on

OURS = "canopy."  # begins every name in the broker
NODE_PREFIX = "canopy.node."
INBOX_PREFIX = "canopy.inbox."
REPLY_PREFIX = "canopy.reply."
WATCH_PREFIX = "canopy.watch."
STANDBY_PREFIX = "canopy.standby."
AGENT_PREFIX = "canopy.agent."
DEAD_READER = WATCH_PREFIX + "dead-letters"  # exclusive: its owner alone reads DEAD_QUEUE
RECORDER_QUEUE = "canopy.watch.recorder"  # exclusive: whoever has it is the recorder
OVERVIEW_KEY = "broker.overview"  # on the events exchange: what the recorder read

_DRILLS = ".drills"
SLUG_LETTERS = 40
DIGEST_LETTERS = 10
TREE_LETTERS = 16
MAX_NAME_BYTES = 255  # AMQP's limit for routing keys and for names of queues and exchanges
MAX_QUEUE_BYTES = MAX_NAME_BYTES - 32  # of a queue named in a message: a prefix may be longer
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


def _is_queue_name(name: str) -> bool:
    return is_amqp_name(name) and len(name.encode()) <= MAX_QUEUE_BYTES


def check_node_name(name: str) -> str:
    """Returns `name` unchanged, or raises BadName with what is allowed."""
    if not is_node_name(name):
        raise BadName(
            f"bad node name {name!r}: use 1-63 of a-z, 0-9, '-' and '_' (no dots), "
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
    return queue.startswith(REPLY_PREFIX) and _is_queue_name(queue)


def watch(process: str) -> str:
    """An exclusive queue through which one process follows node states."""
    return WATCH_PREFIX + process


def standby(name: str, process: str) -> str:
    """An exclusive queue through which one process waits for a node's name to become free."""
    return f"{STANDBY_PREFIX}{name}.{process}"


def agent(host: str) -> str:
    """The exclusive queue of a host's agent: its presence, and where requests reach it."""
    return AGENT_PREFIX + host


def agent_key(host: str) -> str:
    """Routing key of a host's state on the events exchange."""
    return f"agent.{host}"


def hosts_watch(process: str) -> str:
    """An exclusive queue through which one API process follows the hosts' states."""
    return f"{WATCH_PREFIX}{process}.hosts"


def state_key(name: str) -> str:
    """Routing key of a node's state on the events exchange."""
    return f"node.{name}"


def joined_state_key(name: str, model: str) -> str:
    """The same for a joined node, whose right is for one name and one model."""
    return f"joined.{tree_digest(model)}.{name}"


def overview_watch(process: str) -> str:
    """An exclusive queue through which one process hears the recorder's overview of the broker."""
    return f"{WATCH_PREFIX}{process}.overview"


def edges_watch(process: str) -> str:
    """An exclusive queue through which one process hears the broker's events of the tree."""
    return f"{WATCH_PREFIX}{process}.edges"


def conversations_watch(process: str) -> str:
    """An exclusive queue through which one API process hears of changes in conversations."""
    return f"{WATCH_PREFIX}{process}.chat"


def conversation_key(user: str) -> str:
    """Routing key on the events exchange of changes in one user's conversations."""
    return f"chat.{user}"


def metrics_watch(process: str) -> str:
    """An exclusive queue through which one API process hears of scrapes, and of others' metrics."""
    return f"{WATCH_PREFIX}{process}.metrics"


def jobs_key(name: str) -> str:
    """Routing key on the events exchange of a node's job report."""
    return f"jobs.{name}"


def answers(process: str) -> str:
    """An exclusive queue for what nodes tell one process about their jobs."""
    return f"{WATCH_PREFIX}{process}.jobs"


def settings_watch(process: str) -> str:
    """An exclusive queue through which one API process hears of changed settings."""
    return f"{WATCH_PREFIX}{process}.settings"


def drills_watch(process: str) -> str:
    """An exclusive queue through which one API process takes part in drills."""
    return f"{WATCH_PREFIX}{process}{_DRILLS}"


def drills_watcher(queue: str) -> str | None:
    """The API process that takes part in drills through that queue, else None."""
    if queue.startswith(WATCH_PREFIX) and queue.endswith(_DRILLS):
        return queue.removeprefix(WATCH_PREFIX).removesuffix(_DRILLS)
    return None


def setting_key(setting: str) -> str:
    """Routing key on the events exchange of a changed setting."""
    return f"setting.{setting}"


def is_watch_queue(queue: str) -> bool:
    """True if `queue` can be one through which a process follows nodes."""
    return queue.startswith(WATCH_PREFIX) and _is_queue_name(queue)


def joined_user(name: str) -> str:
    """The broker's user of a joined node, which nobody else has."""
    return node(name)


def joined_node(user: str) -> str | None:
    """The joined node's name if `user` is the broker's user of one, else None."""
    return node_of(user)


def tree_digest(model: str) -> str:
    """What the keys of one tree's nodes on JOINED_EXCHANGE end in."""
    return hashlib.sha256(model.encode(errors="surrogatepass")).hexdigest()[:TREE_LETTERS]


def joined_key(queue: str, model: str) -> str:
    """Routing key on JOINED_EXCHANGE of a message for that queue, of that model's tree.

    The keys of nodes' queues and inboxes differ by tree, so that a right can be for one tree alone.
    """
    if queue.startswith((NODE_PREFIX, INBOX_PREFIX)):
        return f"{queue}.{tree_digest(model)}"
    return queue


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
