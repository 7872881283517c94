"""The messages of a conversation as a tree: each follows another, and several may follow one. Pure.

A message is stored after the one that it follows, so a parent's id is always the smaller one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Parents = Mapping[int, int | None]  # of each message, in the order of their ids


@dataclass(frozen=True, slots=True)
class Node:
    """A message's place as stored.

    `is_root`: it begins the conversation, or a branch from its very beginning. A message with
    neither that nor a parent was stored by a process of the former release, which knew no branches.
    """

    id: int
    parent: int | None
    is_root: bool

    @property
    def unplaced(self) -> bool:
        """True for a message of the former release: it follows the one stored before it."""
        return self.parent is None and not self.is_root


def parents_of(nodes: Iterable[Node]) -> dict[int, int | None]:
    """The parent of each message; `nodes` in the order of their ids."""
    parents: dict[int, int | None] = {}
    latest: int | None = None
    for node in nodes:
        parent = node.parent
        if node.unplaced:
            parent = latest
        parents[node.id] = parent
        latest = node.id
    return parents


def head_of(nodes: Iterable[Node], stored: int | None) -> int | None:
    """The leaf that is shown; None in an empty conversation.

    `stored`: the leaf shown last, unless a process of the former release has added messages since.
    """
    latest: int | None = None
    latest_unplaced: int | None = None
    has_stored = False
    for node in nodes:
        latest = node.id
        if node.unplaced:
            latest_unplaced = node.id
        has_stored = has_stored or node.id == stored
    if stored is None or not has_stored:
        return latest
    if latest_unplaced is not None and latest_unplaced > stored:
        return latest_unplaced
    return stored


def path_to(parents: Parents, message: int | None) -> list[int]:
    """The messages from the root to `message`, which is the last of them."""
    path: list[int] = []
    while message is not None and message in parents:
        path.append(message)
        parent = parents[message]
        if parent is not None and parent >= message:
            break  # not a tree: stored by somebody else
        message = parent
    path.reverse()
    return path


def newest_leaf(parents: Parents, message: int) -> int:
    """The leaf below `message` that is reached by the newest message at each fork."""
    newest_child: dict[int, int] = {}
    for child, parent in parents.items():
        if parent is not None and parent < child:
            newest_child[parent] = max(child, newest_child.get(parent, 0))
    while message in newest_child:
        message = newest_child[message]
    return message


def has_children(parents: Parents, message: int) -> bool:
    """True if another message follows this one."""
    return message in parents.values()
