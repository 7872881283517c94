"""A view of RabbitMQ's installation that holds only the plugins in use.

Erlang looks up a module in every folder on its path, and RabbitMQ puts 70 plugin folders there.
With the 27 that an instance needs, the broker starts in half the time. The view consists of links;
an installation with an unknown layout is used as it is.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

ENABLED = ("rabbitmq_management", "rabbitmq_event_exchange")
_ALWAYS = ("rabbit", "rabbitmq_prelaunch", "cuttlefish", "systemd", "syslog")


def server_script(
    installed: Path, view: Path, enabled: Sequence[str] = ENABLED
) -> tuple[Path, dict[str, str]]:
    """The start script to run, and the variables that keep it inside the view."""
    original = installed.resolve()
    base = original.parent.parent
    needed = closure(dependencies(base / "plugins"), (*enabled, *_ALWAYS))
    if not {"rabbit", *enabled} <= needed.keys():
        return installed, {}
    shutil.rmtree(view, ignore_errors=True)
    (view / "plugins").mkdir(parents=True)
    for name in ("sbin", "escript"):
        (view / name).mkdir()
        for entry in (base / name).iterdir():
            (view / name / entry.name).symlink_to(entry)
    for folder in needed.values():
        (view / "plugins" / folder.name).symlink_to(folder)
    return view / "sbin" / original.name, {"RABBITMQ_SCRIPTS_DIR": str(view / "sbin")}


def dependencies(plugins: Path) -> dict[str, tuple[Path, list[str]]]:
    """Application -> its folder and the applications it needs, from the plugins' `.app` files."""
    applications = {}
    for file in sorted(plugins.glob("*/ebin/*.app")):
        text = re.sub(r"%.*", "", file.read_text(errors="replace"))
        match = re.search(r"\{\s*applications\s*,\s*\[(.*?)\]", text, re.DOTALL)
        names: list[str] = []
        if match:
            names = re.findall(r"[a-z][A-Za-z0-9_@]*", match[1])
        applications[file.stem] = (file.parent.parent, names)
    return applications


def closure(known: dict[str, tuple[Path, list[str]]], roots: tuple[str, ...]) -> dict[str, Path]:
    """The folders of the `roots` and of all they need. Other applications are Erlang's own."""
    folders: dict[str, Path] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in known and name not in folders:
            folders[name], needs = known[name]
            todo += needs
    return folders
