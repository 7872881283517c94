"""The environment variables that the command line reads. Standard library only.

CANOPY_HOME is read in `cli/home.py`, CANOPY_NODE_LDAP_… in `cli/node_directory.py`; click reads
those of options (`cli/options.py`). What the launcher of every command imports has no dataclasses:
they take 5 ms to import.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Environment(NamedTuple):
    """The variables as they are, "" where one is not set."""

    amqp_url: str
    """A broker elsewhere: `up` starts none, other commands use it instead of this instance's."""
    management_url: str
    """Its management API."""
    rabbitmq: str
    """RabbitMQ's start script, in place of the one that is found."""
    queue_type: str
    """classic, or quorum on a cluster."""
    prefix: str
    """Begins all names in the broker, so that several instances can share one."""
    url: str
    """How users reach the proxy in front of the API, which checks it (`api/environment.py`)."""
    hosts: str
    """Names under which users reach the API, instead of those of this machine."""
    frozen_seconds: str
    """After how long without a sign of life a process is replaced."""
    gpu_nodes: str
    """How many nodes share a GPU."""
    threads: str
    """CPU threads of one node."""
    spin_count: str
    """How long OpenMP threads spin before they sleep."""
    ldap_url: str
    """The directory that checks people's passwords."""
    log_format: str
    """text or json: how every process writes its log."""
    drills: str
    """1: administrators may kill nodes of this machine, to see what happens."""


def read(environ: Mapping[str, str] = os.environ) -> Environment:
    """The present environment."""
    return Environment(
        amqp_url=environ.get("CANOPY_AMQP_URL", ""),
        management_url=environ.get("CANOPY_MANAGEMENT_URL", ""),
        rabbitmq=environ.get("CANOPY_RABBITMQ", ""),
        queue_type=environ.get("CANOPY_QUEUE_TYPE") or "classic",
        prefix=environ.get("CANOPY_PREFIX", ""),
        url=environ.get("CANOPY_URL") or environ.get("CANOPY_PUBLIC_URL", ""),
        hosts=environ.get("CANOPY_HOSTS", ""),
        frozen_seconds=environ.get("CANOPY_FROZEN_SECONDS", ""),
        gpu_nodes=environ.get("CANOPY_GPU_NODES", ""),
        threads=environ.get("CANOPY_THREADS", ""),
        spin_count=environ.get("GOMP_SPINCOUNT", ""),
        ldap_url=environ.get("CANOPY_LDAP_URL", ""),
        log_format=environ.get("CANOPY_LOG_FORMAT") or "text",
        drills=environ.get("CANOPY_DRILLS", ""),
    )
