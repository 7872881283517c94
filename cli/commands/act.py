"""`attach`, `drain`, `resume`, `remove`, and `restart NODE`: change the tree while it runs.

Each waits until the tree shows what was asked for. Where the tree cannot be read, for want of
rights, the message is sent all the same.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial

import click

from broker import tree_actions
from broker.errors import BadAction, NoSuchNode
from broker.tree_actions import CONFIRM_SECONDS, Action, Effect
from cli import audit, options, registry
from cli.errors import HiddenError, ProcessError, StateError

_LOOK_SECONDS = 0.3  # between two looks at the tree
_LEVEL_SECONDS = 600.0  # for the nodes of one level to load their models again

_node_name = click.argument("name")
_preview = click.option("--preview", is_flag=True, help="Say what it would do, and do nothing.")


@click.command()
@_node_name
@click.option("--parent", metavar="P", required=True, help="The node to hang NAME below.")
@_preview
@options.as_json
def attach(name: str, parent: str, preview: bool, as_json: bool) -> None:
    """Move a running node, with all below it, under another parent."""
    _act("move", name, f"{name} moves below {parent}", preview, as_json, parent=parent)


@click.command()
@_node_name
@click.option(
    "--wait", type=click.FloatRange(min=0), help="Seconds to wait for the end of its jobs."
)
@_preview
@options.as_json
def drain(name: str, wait: float | None, preview: bool, as_json: bool) -> None:
    """Let a node finish its jobs; hand it and all below it nothing new."""
    said = f"{name} drains; ./canopy resume {name} lets it take jobs again"
    _act("drain", name, said, preview, as_json)
    if wait is not None and not preview:
        _await_idle(name, wait)


@click.command()
@_node_name
@_preview
@options.as_json
def resume(name: str, preview: bool, as_json: bool) -> None:
    """Let a drained node take jobs again."""
    _act("resume", name, f"{name} takes jobs", preview, as_json)


@click.command()
@_node_name
@_preview
@options.as_json
def remove(name: str, preview: bool, as_json: bool) -> None:
    """End a node for good; its children move to its parent.

    Its jobs go on elsewhere, its queue is deleted, and nothing starts it again. Of a tree that
    has ended, naming its root removes what is left.
    """
    _act("remove", name, f"{name} has left the tree", preview, as_json)


def restart_node(name: str, subtree: bool, preview: bool, as_json: bool) -> None:
    """Restarts one node, or it and all below it, from the leaves up. Raises CliError."""
    if not subtree:
        _act("restart", name, f"{name} restarts", preview, as_json)
        return
    tree = registry.read_tree()
    effect = _effect(tree, "restart", name, whole=True)
    if not preview:
        with audit.recorded("restart", name, tree_actions.sentence(effect)) as entry:
            for level in tree_actions.levels(tree, name):
                _restart(level)
            entry.result = f"restarted {len(effect.nodes)}"
    _say(effect, f"restarted {', '.join(effect.nodes)}", preview, as_json)


def _act(
    action: Action,
    name: str,
    said: str,
    preview: bool,
    as_json: bool,
    *,
    parent: str | None = None,
) -> None:
    read = registry.read_tree
    if registry.reads_local_nodes():
        read = registry.local_tree  # to the end, when there may be no node any more
    try:
        effect = _effect(read(), action, name, parent)
    except HiddenError:
        if preview or as_json:
            raise
        with audit.recorded(action, name, said):
            registry.send(name, tree_actions.message(action, parent))
        print(said)
        return
    if not preview:
        with _recorded(action, name, tree_actions.sentence(effect)):
            sent_at = time.monotonic()
            if effect.gone:
                registry.remove_gone(effect.nodes[::-1])
            else:
                registry.send(name, tree_actions.message(action, parent))
            happened = partial(_has_happened, effect=effect, sent_at=sent_at)
            _await(happened, name, CONFIRM_SECONDS, read)
    _say(effect, said, preview, as_json)


def _recorded(action: Action, name: str, detail: str) -> AbstractContextManager[object]:
    """Where only nodes of other trees run there is no audit log; the node's log has it."""
    if registry.reads_local_nodes():
        return nullcontext()
    return audit.recorded(action, name, detail)


def _effect(
    tree: registry.Tree, action: Action, name: str, parent: str | None = None, whole: bool = False
) -> Effect:
    try:
        effect = tree_actions.effect(tree, action, name, parent=parent, whole=whole)
    except (NoSuchNode, BadAction) as error:
        raise StateError(str(error)) from error
    if effect.gone:
        registry.check_removes_gone()
    return effect


def _has_happened(tree: registry.Tree, effect: Effect, sent_at: float) -> bool:
    seconds = time.monotonic() - sent_at
    return tree_actions.has_happened(
        tree,
        effect.action,
        effect.node,
        parent=effect.parent,
        seconds=seconds,
        gone=effect.gone,
    )


def _restart(level: list[str]) -> None:
    """Restarts nodes of one depth and waits for them. Raises ProcessError."""
    sent_at = time.monotonic()
    for name in level:
        registry.send(name, tree_actions.message("restart"))

    def are_back(tree: registry.Tree) -> bool:
        seconds = time.monotonic() - sent_at
        return all(tree_actions.is_back(tree, name, seconds) for name in level)

    _await(are_back, ", ".join(level), _LEVEL_SECONDS, registry.read_tree)


def _await_idle(name: str, within: float) -> None:
    """Returns when the node has nothing to do. Raises ProcessError when it still has."""
    deadline = time.monotonic() + within
    while running := registry.find(registry.read_tree(), name)["running"]:
        if time.monotonic() > deadline:
            raise ProcessError(
                f"{name} still runs {running} jobs after {within:.0f} s; "
                "they go on at other nodes when it stops"
            )
        time.sleep(_LOOK_SECONDS)


def _await(
    happened: Callable[[registry.Tree], bool],
    who: str,
    within: float,
    read: Callable[[], registry.Tree],
) -> None:
    deadline = time.monotonic() + within
    while not happened(read()):
        if time.monotonic() > deadline:
            raise ProcessError(
                f"{who} was told, but the tree does not show it after {within:.0f} s: "
                "look at ./canopy tree and the node's log"
            )
        time.sleep(_LOOK_SECONDS)


def _say(effect: Effect, said: str, preview: bool, as_json: bool) -> None:
    text = tree_actions.sentence(effect)
    if as_json:
        print(json.dumps({"done": not preview, **asdict(effect), "text": text}))
    elif preview:
        print(text)
    else:
        print(said)
