"""Questions about a tree given as child -> parent."""

from collections.abc import Collection, Iterator, Mapping


class BadEdge(ValueError):
    """An edge that would not leave a tree; the text says why."""


def ancestors(parents: Mapping[str, str], node: str) -> Iterator[str]:
    """The node's parent, its parent, and so on; stops where a name repeats."""
    seen = {node}
    while (parent := parents.get(node)) is not None and parent not in seen:
        yield parent
        seen.add(parent)
        node = parent


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
    """Dead nodes (registered, not present, no root) and who should empty their queues: the nearest living ancestor.

    A root's queue waits for the next root. A dead node without a living ancestor waits for one. Where the way up is
    broken (the exchange of a node that has left is gone, and its edges with it), the root takes its place, if there is
    only one.
    """
    found: dict[str, str] = {}
    fallback = tuple(roots) if len(roots) == 1 else ()
    for node in sorted(set(registered) - set(present) - set(roots)):
        above = (*ancestors(parents, node), *fallback)
        living = next((ancestor for ancestor in above if ancestor in present), None)
        if living is not None:
            found[node] = living
    return found
