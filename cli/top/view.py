"""The figures as lines of a terminal. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from cli import colours
from cli.registry import printable
from cli.top.figures import Figures

Node = dict[str, Any]
Cell = tuple[str, str]  # text of a fixed width, and its colour
Line = list[Cell]

SORTS: dict[str, Callable[[Node], Any] | None] = {
    "tree": None,
    "name": lambda node: node["name"],
    "state": lambda node: node["shown"],
    "running": lambda node: -node["running"],
    "queue": lambda node: -node["queued"],
    "tok/s": lambda node: -node["tokens_per_second"],
    "failed": lambda node: -node["failed"],
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the reader chose. `first`: the number of the node at the top of the list."""

    sort: str = "tree"
    reverse: bool = False
    first: int = 0

    def next_sort(self) -> "Choice":
        """The next order."""
        names = list(SORTS)
        return replace(self, sort=names[(names.index(self.sort) + 1) % len(names)], first=0)

    def scrolled(self, lines: int, last: int) -> "Choice":
        """So many lines on. `last`: how far the list can be scrolled."""
        return replace(self, first=max(0, min(last, self.first + lines)))


def screen(
    figures: Figures, choice: Choice, width: int, height: int, note: str, coloured: bool
) -> list[str]:
    """At most `height` lines of `width` columns. `note`: why the figures are old, if they are."""
    lines = _above(figures)
    nodes = ordered(figures["nodes"], choice)
    room = _room(len(lines), height)
    first = min(choice.first, last_first(figures, height))
    lines += [_node(node, choice) for node in nodes[first : first + room]]
    lines = lines[: max(0, height - 1)]
    foot = (_foot(choice, len(nodes), first, room), colours.DIM)
    if note:
        foot = (note, colours.RED)
    lines.append([foot])
    return [render(line, width, coloured) for line in lines]


def last_first(figures: Figures, height: int) -> int:
    """How far the list can be scrolled."""
    above = len(_above(figures))
    return max(0, len(figures["nodes"]) - _room(above, height))


def _room(above: int, height: int) -> int:
    """Lines for the list, below so many and above the foot."""
    return max(1, height - above - 1)


def _above(figures: Figures) -> list[Line]:
    """All lines above the list."""
    return [*head(figures), [("", "")], *_trees(figures["trees"]), [("", "")], _titles()]


def whole(figures: Figures, coloured: bool) -> list[str]:
    """Everything, for `--once`."""
    nodes = [_node(node, Choice()) for node in figures["nodes"]]
    lines = [*_above(figures), *nodes]
    return [render(line, 1000, coloured).rstrip() for line in lines]


def ordered(nodes: Iterable[Node], choice: Choice) -> list[Node]:
    """The nodes in the chosen order; equal ones stay in the tree's."""
    key = SORTS[choice.sort]
    listed = list(nodes)
    if key is not None:
        listed.sort(key=key)
    if choice.reverse:
        listed.reverse()
    return listed


def head(figures: Figures) -> list[Line]:
    """The totals."""
    total = figures["total"]
    state = total["state"]
    text = (
        f"   {total['nodes']} nodes   {total['waiting']} waiting   {total['running']} running   "
        f"{total['in_use']}/{total['usable']} usable slots   "
        f"{total['tokens_per_second']:.1f} tok/s"
    )
    if total["oldest_wait"]:
        text += f"   oldest waits {total['oldest_wait']:.0f} s"
    time_of_day = figures["at"][11:19]
    line = [
        ("canopy ", colours.BOLD),
        (time_of_day, colours.DIM),
        ("   ", ""),
        (state, colours.of_state(state)),
        (text, ""),
    ]
    if total["state"] not in ("stuck", "empty", "gone") or not total["reason"]:
        return [line]
    blockers = ", ".join(map(printable, total["blockers"]))
    why = f"nothing can run: {total['reason'].replace('_', ' ')} {blockers}"
    return [line, [(why.rstrip(), colours.RED)]]


def _trees(trees: list[dict[str, Any]]) -> list[Line]:
    titles = (
        f"{'MODEL':<32} {'STATE':<9} {'WAITING':>8} {'RUNNING':>8} {'USABLE':>7} {'TOK/S':>8} "
        f"{'OLDEST':>8}"
    )
    lines: list[Line] = [[(titles, colours.BOLD)]]
    for tree in trees:
        numbers = (
            f" {tree['waiting']:>8} {tree['running']:>8} {tree['usable']:>7} "
            f"{tree['tokens_per_second']:>8.1f} {tree['oldest_wait']:>6.0f} s"
        )
        state = tree["state"]
        lines.append(
            [
                (f"{cut(tree['model'], 32):<32} ", ""),
                (f"{state:<9}", colours.of_state(state)),
                (numbers, ""),
            ]
        )
    return lines


def _titles() -> Line:
    titles = (
        f"{'NODE':<28} {'STATE':<14} {'SLOTS':>5} {'RUNNING':>7} {'QUEUE':>6} {'TOK/S':>8} "
        f"{'FAILED':>6}  {'DEVICE':<12} HOST"
    )
    return [(titles, colours.BOLD)]


def _node(node: Node, choice: Choice) -> Line:
    indent = "  " * min(node["level"], 8) if choice.sort == "tree" else ""
    state = node["shown"]
    numbers = (
        f" {node['slots']:>5} {node['running']:>7} {node['queued']:>6} "
        f"{node['tokens_per_second']:>8.1f} {node['failed']:>6}  "
    )
    place = f"{cut(node['device'] or '-', 12):<12} {printable(node['host'])}:{node['pid']}"
    words = " ".join(filter(None, (node["detail"], node["warning"])))
    return [
        (f"{cut(indent + node['name'], 28):<28} ", ""),
        (f"{state.replace('_', ' '):<14}", colours.of_state(state)),
        (numbers, ""),
        (place, colours.DIM),
        (f"  {printable(words)}" if words else "", colours.RED),
    ]


def _foot(choice: Choice, count: int, first: int, room: int) -> str:
    order = choice.sort
    if choice.reverse:
        order += " reversed"
    keys = f"q quit   s sort: {order}   r reverse   ↑↓ scroll"
    if count <= room:
        return keys
    return f"{keys}   nodes {first + 1} to {min(count, first + room)} of {count}"


def cut(text: str, width: int) -> str:
    """The text without control characters, in at most `width` columns."""
    clean = printable(text)
    if len(clean) <= width:
        return clean
    return f"{clean[: width - 1]}…"


def render(line: Line, width: int, coloured: bool) -> str:
    """The line in its colours, cut at `width` columns."""
    parts = []
    left = width
    for text, code in line:
        shown = text[:left]
        left -= len(shown)
        parts.append(colours.paint(shown, code, coloured))
    return "".join(parts)
