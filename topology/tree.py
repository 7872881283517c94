"""Questions about a tree given as child -> parent."""

from collections.abc import Collection, Iterator, Mapping


class BadEdge(ValueError):
    """An edge that would not leave a tree; the text says why."""


def ancestors(parents: Mapping[str, str], node: str) -> Iterator[str]:
    """The node's parent, its parent, and so on; stops where a name repeats."""
    seen = {node}
    parent = parents.get(node)
    while parent is not None and parent not in seen:
        yield parent
        seen.add(parent)
        parent = parents.get(parent)


def check_attach(parents: Mapping[str, str], node: str, parent: str) -> None:
    """Raises BadEdge if `node` hung below `parent` would make a loop."""
    if node == parent or node in ancestors(parents, parent):
        raise BadEdge(
            f"{parent!r} is {node!r} itself or hangs below it; a node cannot hang below itself"
        )


def orphans(
    parents: Mapping[str, str],
    roots: Collection[str],
    registered: Collection[str],
    present: Collection[str],
) -> dict[str, str]:
    """Dead nodes (registered, not present, no root), each with its nearest living ancestor.

    That ancestor should empty the dead node's queue. A root's queue waits for the next root. A dead
    node without a living ancestor waits for one. Where the way up is broken (a node that left took
    its exchange and edges with it), a root that is the only one counts as ancestor.
    """
    adopters: dict[str, str] = {}
    for node in sorted(set(registered) - set(present) - set(roots)):
        candidates = list(ancestors(parents, node))
        if len(roots) == 1:
            candidates.extend(roots)
        for candidate in candidates:
            if candidate in present:
                adopters[node] = candidate
                break
    return adopters
