"""`./canopy tree`: the tree as lines, and what is wrong with it."""

from cli.commands.tree import draw, troubles
from tests.unit.test_truth import NAMES, seen


def test_a_stuck_tree_says_why_and_what_mends_it() -> None:
    drawn = seen(root={"held": 23}, n1={"status": "drained"}, n2={"status": "drained"})
    assert list(troubles(drawn["summary"])) == [
        "tiny: 23 waiting, and none can start: drained: n1, n2; ./canopy resume n1"
    ]
    nodes = {node["name"]: node for node in drawn["nodes"]}
    lines = list(draw(nodes["root"], nodes, coloured=False))
    assert lines[0].startswith("root  holding  entrance of tiny  23 queued")
    assert any("n3  below draining  0/2 running" in line for line in lines)


def test_a_tree_that_died_with_jobs_says_how_they_end() -> None:
    [line] = troubles(seen(gone=NAMES, depths={"root": 2})["summary"])
    assert line.startswith("tiny: 2 waiting, and none can start: the entrance root is gone")
    assert line.endswith("; if it was ended, ./canopy remove root ends its jobs, too")


def test_a_tree_at_work_has_no_trouble() -> None:
    assert list(troubles(seen()["summary"])) == []


def test_a_tree_that_died_says_so_though_nothing_waits_for_it() -> None:
    assert list(troubles(seen(gone=NAMES)["summary"])) == [
        "tiny: no process of its tree runs, and nothing waits for it: the entrance root is gone or "
        "silent; start it again; if it was ended, ./canopy remove root forgets it"
    ]


def test_nodes_of_another_release_are_pointed_out() -> None:
    nodes = {each["name"]: each for each in seen(n1={"version": "0.0.9"})["nodes"]}
    lines = list(draw(nodes["root"], nodes, coloured=False))
    assert [line for line in lines if "release 0.0.9" in line] == [lines[1]]
    assert "release" not in "".join(lines[2:])
