"""`drain --wait`: returns when the node's jobs have ended, or says what it still runs."""

from collections.abc import Iterator

import pytest

from cli import registry
from cli.commands import act
from cli.errors import ProcessError, StateError


def trees(monkeypatch: pytest.MonkeyPatch, *running: int) -> None:
    """What the tree shows of n1, look by look; the last one stays."""
    looks: Iterator[int] = iter(running)
    shown = [running[-1]]

    def read_tree() -> registry.Tree:
        shown.append(next(looks, running[-1]))
        return {"nodes": [{"name": "n1", "running": shown[-1]}]}

    monkeypatch.setattr(registry, "read_tree", read_tree)
    monkeypatch.setattr(act, "_LOOK_SECONDS", 0.0)


def test_it_waits_for_the_last_job(monkeypatch: pytest.MonkeyPatch) -> None:
    trees(monkeypatch, 2, 1, 0)
    act._await_idle("n1", 5.0)


def test_it_says_what_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    trees(monkeypatch, 3)
    with pytest.raises(ProcessError, match="n1 still runs 3 jobs after 0 s; they go on at other"):
        act._await_idle("n1", 0.0)


def test_a_node_that_is_gone_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trees(monkeypatch, 0)
    with pytest.raises(StateError, match="no node named 'n2'"):
        act._await_idle("n2", 1.0)
