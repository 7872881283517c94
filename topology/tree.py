"""Questions about a tree given as child -> parent."""

from collections.abc import Iterator, Mapping


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
        raise BadEdge(f"{parent!r} is {node!r} itself or hangs below it; a node cannot hang below itself")
