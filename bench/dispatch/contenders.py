"""Who is measured: which programs, with which settings."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import extras
from bench.instance import Instance

PEERS = (
    "celery==5.7.0",
    "dramatiq[rabbitmq]==2.2.1",
    "faststream[rabbit]==0.7.8",
    "gevent==26.9.0",
)
BARE = "bare AMQP"
CANOPY = "Canopy"
CELERY = "Celery"
DRAMATIQ = "dramatiq"
FASTSTREAM = "FastStream"
_HERE = "bench.dispatch.peers"


@dataclass(frozen=True)
class Contender:
    """One way to have a job done through the broker.

    `hops`: the queues that a job passes on its way to whoever runs it. `workers` by name and `driver`: words of command
    lines; the driver's standard input and output are those of `loop.serve`.
    """

    name: str
    family: str
    hops: int
    settings: str
    workers: Mapping[str, Sequence[str]]
    driver: Sequence[str]
    environment: Mapping[str, str]
    confirmed: bool = True  # whoever asks knows that the broker has the job


def everybody(canopy: Instance, slots: int) -> list[Contender]:
    """All contenders, in the order of the table. Installs the peers. Raises NotStarted."""
    peers = extras.environment("dispatch", *PEERS)
    admin = {"BENCH_AMQP_URL": canopy.amqp("admin")}
    return [
        *(_bare(hops, admin) for hops in (1, 2, 3)),
        *(_tree(canopy, hops, "hold-high", slots) for hops in (1, 2, 3)),
        _tree(canopy, 2, "paper", slots),
        *(_celery(peers, admin, pool) for pool in ("threads", "gevent", "")),
        *(_dramatiq(peers, admin, confirmed=confirmed) for confirmed in (False, True)),
        _faststream(peers, admin, "replies"),
        _faststream(peers, admin, "request"),
    ]


def _module(python: Path | str, name: str, *words: str) -> tuple[str, ...]:
    return (str(python), "-P", "-m", name, *words)


def _bare(hops: int, environment: Mapping[str, str]) -> Contender:
    return Contender(
        f"{BARE}, {hops} {_hops(hops)}",
        BARE,
        hops,
        "pika alone: durable, persistent, mandatory + confirmed on every hop, prefetch 256",
        {},  # the driver starts its hops
        _module(sys.executable, f"{_HERE}.bare_driver", str(hops)),
        environment,
    )


def _tree(canopy: Instance, hops: int, policy: str, slots: int) -> Contender:
    """A tree that is one path, of nodes without slots above one with the engine. Of one hop it is a root that has the
    engine itself.
    """
    model = f"bench-{policy}-{hops}"
    names = [f"{model}-{number}" for number in range(1, hops + 1)]
    workers = {}
    for name, parent in zip(names, [None, *names], strict=False):
        last = name == names[-1]
        words = [
            "--name",
            name,
            "--model",
            model,
            "--policy",
            policy,
            "--slots",
            str(slots),
            "--wait",
            "30",
        ]
        words += ["--engine", "echo" if last else "none"]
        words += ["--parent", parent] if parent else []
        workers[name] = _module(sys.executable, "worker", *words)
    return Contender(
        f"{CANOPY} {policy}, {hops} {_hops(hops)}",
        CANOPY,
        hops,
        f"{hops} {'nodes in a row' if hops > 1 else 'node, a root with an engine'}, echo without delay, {slots} slots",
        workers,
        _module(sys.executable, f"{_HERE}.canopy_driver", model),
        {"BENCH_AMQP_URL": canopy.amqp("api"), "CANOPY_AMQP_URL": canopy.amqp("node")},
    )


def _celery(python: Path, environment: Mapping[str, str], pool: str) -> Contender:
    """Tuned for short tasks, with that pool; or, without a pool, as it starts when nothing is said."""
    name = pool or "default"
    words = [
        "-A",
        f"{_HERE}.celery_app",
        "worker",
        "--loglevel",
        "WARNING",
        "--hostname",
        f"{name}@bench",
    ]
    tuned = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--pool", pool]
    tuned += ["--concurrency", "8" if pool == "threads" else "100"]
    settings = (
        f"{pool} pool of {tuned[-1]}, prefetch 128 for each, acks_late, no events, no remote control"
        if pool
        else "prefork pool of a process a core, prefetch 4 for each, early acks"
    )
    return Contender(
        f"{CELERY} rpc, {name}",
        CELERY,
        1,
        f"{settings}; persistent, unconfirmed",
        {"worker": _module(python, "celery", *words, *(tuned if pool else ()))},
        _module(python, f"{_HERE}.celery_driver"),
        {**environment, "BENCH_TUNED": str(int(bool(pool))), "BENCH_QUEUE": f"bench.celery.{name}"},
        confirmed=False,
    )


def _dramatiq(python: Path, environment: Mapping[str, str], *, confirmed: bool) -> Contender:
    words = (f"{_HERE}.dramatiq_app", "--processes", "2", "--threads", "8")
    how = "confirmed" if confirmed else "unconfirmed"
    return Contender(
        f"{DRAMATIQ}, {how}",
        DRAMATIQ,
        1,
        f"2 processes of 8 threads, prefetch 128 each, results by reply queue; persistent, {how}",
        {"worker": _module(python, "dramatiq", *words)},
        _module(python, f"{_HERE}.dramatiq_driver"),
        {
            **environment,
            "BENCH_CONFIRM": str(int(confirmed)),
            "BENCH_QUEUE": f"bench.dramatiq.{how}",
            "dramatiq_queue_prefetch": "128",
        },
        confirmed=confirmed,
    )


def _faststream(python: Path, environment: Mapping[str, str], way: str) -> Contender:
    return Contender(
        f"{FASTSTREAM} {way}",
        FASTSTREAM,
        1,
        "prefetch 256, persistent, confirmed; "
        + (
            "broker.request"
            if way == "request"
            else "publish with reply_to and a subscriber for the answers"
        ),
        {"worker": _module(python, f"{_HERE}.faststream_app")},
        _module(python, f"{_HERE}.faststream_driver", way),
        {**environment, "BENCH_QUEUE": f"bench.faststream.{way}"},
    )


def _hops(hops: int) -> str:
    return "hop" if hops == 1 else "hops"
