"""How one more worker joins a running instance: the line that `status` prints, and what `node` assumes."""

import re
import shlex
import socket
from collections.abc import Mapping
from typing import Any

from cli.errors import CliError

Record = Mapping[str, Any]  # instance.json


def lines(record: Record) -> list[str]:
    """A command for each model's tree, to be pasted into a shell."""
    url = _address(record)
    found = []
    for model, root in record["roots"].items():
        words = ["./canopy", "node", "NAME", "--parent", root, *_options(record, model)]
        found.append(f"CANOPY_AMQP_URL={shlex.quote(url)} {shlex.join(words)}")
    return found


def model_below(record: Record, parent: str | None) -> str:
    """What --model would say for a worker below that parent, or a standby. Raises CliError if that
    cannot be known.
    """
    asked: dict[str, str] = record["asked"]
    names = [model for model, root in record["roots"].items() if root == parent]
    if len(asked) == 1:
        names = list(asked)
    if not names:
        raise CliError(
            f"Several models are served here; say --model, one of: {', '.join(asked)}", code=2
        )
    return asked[names[0]]


def _options(record: Record, model: str) -> list[str]:
    options = ["--model", record["asked"][model], "--engine", record["engine"]]
    if record["engine"] == "openai":
        options += ["--upstream", record["upstream"]]
        options += (
            ["--upstream-model", record["upstream_model"]] if record["upstream_model"] else []
        )
    options += ["--policy", record["policy"]] if record["policy"] else []
    return options


def _address(record: Record) -> str:
    """The broker as other machines see it, where it listens on every address."""
    url: str = record["amqp"]["node"]
    if record["listen"] in ("0.0.0.0", "::"):  # noqa: S104 - a comparison
        url = re.sub(r"@[^@]+:(\d+)/", rf"@{socket.getfqdn()}:\1/", url)
    return url
