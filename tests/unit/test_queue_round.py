"""Which queues are measured."""

from api.requests.queue_round import IN_TURN, QueueRound


def test_roots_are_measured_each_time_and_all_others_in_turn() -> None:
    queues = QueueRound()
    others = {f"node{number}" for number in range(3 * IN_TURN)}
    seen: set[str] = set()
    for _ in range(3):
        due = queues.due({"root"}, {"root", *others})
        assert due[0] == "root"
        assert len(due) == 1 + IN_TURN
        assert not seen & set(due[1:])
        seen |= set(due[1:])
        queues.measured(due, dict.fromkeys(due, 2))
    assert seen == others
    assert {queues.depth(queue) for queue in others} == {2}
    assert set(queues.due({"root"}, others)) & seen  # and again


def test_a_queue_that_is_not_there_is_missing_once_it_was_asked_for() -> None:
    queues = QueueRound()
    due = queues.due(set(), {"a", "b"})
    assert not queues.is_missing("a")
    queues.measured(due, {"b": 1})
    assert queues.is_missing("a")
    assert (queues.depth("a"), queues.depth("b")) == (0, 1)
    queues.due(set(), {"b"})
    assert not queues.is_missing("a")  # forgotten
