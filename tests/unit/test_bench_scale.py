"""bench scale's pure parts: the shapes, the kinds of messages, the lines and what they say of the goal."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import Report
from bench.scale import messages, shapes, table
from bench.scale.fit import Line
from bench.scale.measure import GROUPS, Measured
from bench.scale.shapes import Shape
from broker.session import Delivery
from broker.wire import Ancestors, Capacity, encode
from topology import names


@pytest.mark.parametrize("depth", shapes.DEPTHS)
def test_every_leaf_is_as_deep_as_the_tree(depth: int) -> None:
    for series in shapes.SERIES:
        (shape,) = shapes.series(series, [depth])
        assert {hops(shape, leaf) for leaf in shape.leaves} == {shape.depth}
        assert set(shape.leaves) | set(shape.inner) == set(shape.parents)
        assert not set(shape.leaves) & set(shape.inner)


def hops(shape: Shape, name: str) -> int:
    return 0 if name == shape.root else 1 + hops(shape, shape.parents[name])


def test_the_series_vary_depth_and_number_as_they_say() -> None:
    def found(name: str) -> list[tuple[int, int, int]]:
        return [
            (each.nodes, each.depth, len(each.leaves)) for each in shapes.series(name, (1, 2, 6))
        ]

    assert found("tree") == [(1, 1, 1), (3, 2, 2), (63, 6, 32)]
    assert found("chain") == [(1, 1, 1), (2, 2, 1), (6, 6, 1)]
    assert found("flat") == [(1, 1, 1), (3, 1, 3), (63, 1, 63)]


def test_a_tree_is_the_one_that_up_makes() -> None:
    (tree,) = shapes.series("tree", [2])
    assert tree.parents == {
        "tree3-n1": "tree3-root",
        "tree3-n2": "tree3-n1",
        "tree3-n3": "tree3-n1",
    }
    assert tree.children("tree3-n1") == {"tree3-n2", "tree3-n3"}
    assert (tree.leaves, tree.inner) == (["tree3-n2", "tree3-n3"], ["tree3-n1"])
    assert all(names.check_node_name(name) for name in (tree.root, *tree.parents))


def test_a_single_node_is_the_same_in_every_series() -> None:
    assert len({shapes.series(name, [1])[0].outline for name in shapes.SERIES}) == 1
    assert len({shapes.series(name, [3])[0].outline for name in shapes.SERIES}) == 3


def test_an_unknown_series_is_refused() -> None:
    with pytest.raises(ValueError, match="no series 'ring'"):
        shapes.series("ring", [1])


@given(st.lists(st.text(), max_size=50), st.integers(1, 10))
def test_who_shares_a_process(members: list[str], size: int) -> None:
    groups = shapes.shared(members, size)
    assert [name for group in groups for name in group] == members
    assert all(0 < len(group) <= size for group in groups)


CAPACITY = encode(Capacity(node="n1", slots=1, free=1, received=0, finished=0))


@pytest.mark.parametrize(
    ("exchange", "key", "body", "kind"),
    [
        (names.JOBS_EXCHANGE, "echo", b"{}", "job"),
        (names.node("n1"), "n2", b"{}", "job"),
        ("", names.node("n1"), b"{}", "job"),
        ("", names.inbox("n1"), CAPACITY, "capacity"),
        ("", names.inbox("n1"), encode(Ancestors(names=())), "control"),
        ("", names.inbox("n1"), b"nonsense", "other"),
        (names.CONTROL_EXCHANGE, "", b"{}", "control"),
        ("", names.reply("p.1"), b"{}", "frames"),
        (names.EVENTS_EXCHANGE, "node.n1", b"{}", "state"),
        ("amq.topic", "x", b"{}", "other"),
        ("", names.DEAD_QUEUE, b"{}", "other"),
    ],
)
def test_what_a_message_is_for(exchange: str, key: str, body: bytes, kind: str) -> None:
    headers = {"routing_keys": [key]}
    copy = Delivery(
        body, "amq.rabbitmq.trace", f"publish.{exchange}", headers, False, lambda _done: None
    )
    assert messages.taken_apart(copy) == kind
    assert kind in messages.KINDS


@given(st.floats(-50, 50), st.floats(-5, 5), st.lists(st.integers(1, 100), min_size=2, unique=True))
def test_points_on_a_line_give_that_line(level: float, slope: float, places: list[int]) -> None:
    found = Line.through([(float(x), level + slope * x) for x in places])
    assert found.level == pytest.approx(level, abs=1e-6)
    assert found.slope == pytest.approx(slope, abs=1e-6)


def test_one_place_gives_no_line() -> None:
    with pytest.raises(ValueError, match="two places"):
        Line.through([(1.0, 2.0), (1.0, 3.0)])


def test_a_parabola_is_off_its_line() -> None:
    found = Line.through([(float(x), float(x * x)) for x in range(1, 7)])
    assert found.off > 0.2
    assert found.r2 < 0.97


def measured(shape: Shape, cost: float, count: float) -> Measured:
    net = dict.fromkeys(GROUPS, cost / len(GROUPS))
    kinds = dict.fromkeys(messages.KINDS, count / len(messages.KINDS))
    return Measured(shape, 2, net, net, net, [net], [0.01, 0.02], kinds, kinds, 20.0, 5.0)


def notes(series: str, costs: dict[int, float]) -> list[str]:
    found = [measured(each, costs[each.depth if series == "chain" else each.nodes], 1.0 + each.depth)
             for each in shapes.series(series, shapes.DEPTHS)]  # fmt: skip
    result = Report("scale", {})
    table.tell(result, {"broker": 4.0, "client": 5.0}, found)
    return [note for note in result.notes if "ms a job, " in note]


def test_linear_in_depth_is_met_and_quadratic_is_missed() -> None:
    assert notes("chain", {depth: 3.0 + 2.0 * depth for depth in range(1, 7)})[0].startswith(
        "met: "
    )
    assert notes("chain", {depth: 3.0 + 2.0 * depth**2 for depth in range(1, 7)})[0].startswith(
        "MISSED: "
    )


def test_flat_in_number_is_met_and_growth_is_missed() -> None:
    counts = (1, 3, 7, 15, 31, 63)
    assert notes("flat", dict.fromkeys(counts, 9.0))[0].startswith("met: ")
    assert notes("flat", {count: 9.0 + 0.1 * count for count in counts})[0].startswith("MISSED: ")


def test_a_tree_at_rest_is_to_cost_each_node_the_same() -> None:
    def verdict(a_second: dict[int, float]) -> str:
        found = [measured(each, 9.0, 9.0) for each in shapes.series("tree", (1, 2, 6))]
        beats = [
            dict.fromkeys(messages.KINDS, a_second[each.shape.nodes] / len(messages.KINDS))
            for each in found
        ]
        result = Report("scale", {})
        at_rest = [replace(each, beats=beat) for each, beat in zip(found, beats, strict=True)]
        table.tell(result, {"broker": 4.0, "client": 5.0}, at_rest)
        return next(note for note in result.notes if "at rest, tree" in note)

    assert verdict({1: 4.0, 3: 8.0, 63: 128.0}).startswith("met: ")
    assert verdict({1: 4.0, 3: 10.0, 63: 400.0}).startswith("MISSED: ")
