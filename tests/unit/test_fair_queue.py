"""The order of the line, as promises rather than as an algorithm."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.class_queue import REMEMBERED_USERS, Entry
from topology.fair_queue import FairQueue


def drain(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (entry := queue.take()) is not None:
        taken.append(entry.item)
    return taken


def test_one_user_is_served_first_come_first_served() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in "abcd":
        queue.add(item, user="ada")
    assert drain(queue) == list("abcd")
    assert queue.take() is None and len(queue) == 0


def test_who_comes_to_a_flooded_queue_is_next() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add(f"f{number}", user="flood", work=10)
    assert [queue.take().item for _ in range(3)] == ["f0", "f1", "f2"]  # type: ignore[union-attr]
    queue.add("light", user="light", work=10)
    assert queue.take().item == "light" or queue.take().item == "light"  # type: ignore[union-attr]


def test_users_share_by_work_and_not_by_number() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(300):
        queue.add("long", user="long", work=30)
        queue.add("short", user="short", work=10)
    taken = Counter(queue.take().item for _ in range(200))  # type: ignore[union-attr]
    assert taken["short"] == pytest.approx(3 * taken["long"], rel=0.05)


def test_users_share_as_they_are_entitled_to() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(300):
        queue.add("one", user="one")
        queue.add("two", user="two", share=2.0)
    taken = Counter(queue.take().item for _ in range(150))  # type: ignore[union-attr]
    assert taken["two"] == pytest.approx(2 * taken["one"], rel=0.05)


def test_nobody_saves_up_what_they_did_not_use() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("early", user="idle")
    for _ in range(200):
        queue.add("busy", user="busy")
    for _ in range(100):
        queue.take()
    for _ in range(50):
        queue.add("back", user="idle")
    taken = Counter(queue.take().item for _ in range(40))  # type: ignore[union-attr]
    assert taken["back"] == pytest.approx(20, abs=1)


def test_interactive_jobs_come_before_batch_jobs_and_both_after_those_that_go_on() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("batch", user="ada", job_class="batch")
    queue.add("interactive", user="bob")
    queue.add("goes on", user="ada", job_class="batch", first=True)
    assert [entry.item for entry in queue] == ["goes on", "interactive", "batch"]
    assert drain(queue) == ["goes on", "interactive", "batch"]


def test_who_leaves_unserved_is_charged_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    entries = [queue.add(f"flood {number}", user="flood") for number in range(50)]
    queue.take()
    for entry in entries[1:]:
        assert queue.remove(entry)
        assert not queue.remove(entry)
    for number in range(3):
        queue.add(f"a{number}", user="flood")
        queue.add(f"b{number}", user="other")
    assert set(drain(queue)[:2]) == {"a0", "b0"}


def test_a_user_at_the_cap_is_passed_over_and_comes_first_again() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a1", user="ada")
    queue.add("b1", user="bob")
    queue.add("b2", user="bob")
    assert queue.take(lambda user: user != "ada").item == "b1"  # type: ignore[union-attr]
    assert queue.take(lambda user: False) is None
    assert len(queue) == 2
    assert drain(queue) == ["a1", "b2"]


def test_what_is_put_back_is_first_again_in_its_old_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in "abcd":
        queue.add(item, user="ada")
    taken = [queue.take() for _ in range(3)]
    for entry in (taken[0], taken[2], taken[1]):
        assert entry is not None
        queue.put_back(entry)
    assert drain(queue) == list("abcd")


def test_work_and_share_must_be_above_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for wrong in ({"work": 0.0}, {"work": float("nan")}, {"share": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            queue.add("a", user="ada", **wrong)
    with pytest.raises(KeyError):
        queue.add("a", user="ada", job_class="vip")
    assert len(queue) == 0


def test_places_count_what_is_in_front() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", user="ada", work=5)
    queue.add("b", user="bob", work=7)
    queue.add("c", user="ada", work=1)
    queue.add("d", user="bob", work=50, expected=3)
    queue.add("e", user="bob", work=1)
    places = {place.entry.item: place for place in queue.positions()}
    assert [places[item].before for item in "abc"] == [0, 1, 2]
    assert (places["c"].own_before, places["c"].own_expected_before) == (1, 5)
    assert places["e"].own_expected_before - places["d"].own_expected_before == 3


def test_users_who_have_gone_are_forgotten() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(5 * REMEMBERED_USERS):
        queue.add("a", user=f"user {number}")
        queue.take()
    assert len(queue._classes["interactive"]._finish) <= 2 * REMEMBERED_USERS + 1


operation = st.one_of(
    st.tuples(
        st.just("add"),
        st.sampled_from("abc"),
        st.sampled_from(("interactive", "batch")),
        st.integers(1, 50),
        st.sampled_from((0.5, 1.0, 3.0)),
        st.booleans(),
    ),
    st.tuples(st.just("take"), st.sets(st.sampled_from("abc"))),
    st.tuples(st.just("remove"), st.integers(0, 30)),
    st.tuples(st.just("put back")),
    st.tuples(st.just("front"), st.integers(0, 30)),
    st.tuples(st.just("class"), st.integers(0, 30), st.sampled_from(("interactive", "batch"))),
)


@given(st.lists(operation, max_size=60))
def test_nobody_is_lost_or_served_twice_and_the_order_told_is_the_order_taken(
    operations: list[tuple],
) -> None:
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, Entry[int]] = {}
    last: Entry[int] | None = None
    for number, (what, *words) in enumerate(operations):
        if what == "add":
            user, job_class, work, share, first = words
            waiting[number] = queue.add(
                number, user=user, job_class=job_class, work=work, share=share, first=first
            )
        elif what == "take":
            last = queue.take(lambda user, allowed=words[0]: user in allowed)
            if last is not None:
                del waiting[last.item]
        elif what == "remove" and waiting:
            entry = waiting.pop(sorted(waiting)[words[0] % len(waiting)])
            assert queue.remove(entry)
        elif what == "put back" and last is not None:
            waiting[last.item], last = queue.put_back(last), None
        elif what == "front" and waiting:
            assert queue.to_front(waiting[sorted(waiting)[words[0] % len(waiting)]])
        elif what == "class" and waiting:
            item = sorted(waiting)[words[0] % len(waiting)]
            changed = queue.change_class(waiting[item], words[1])
            assert changed is not None
            waiting[item] = changed
        assert len(queue) == len(waiting) == sum(queue.lengths().values())
        assert {entry.item for entry in queue} == set(waiting)
    told = [entry.item for entry in queue]
    taken = [queue.take().item for _ in told]  # type: ignore[union-attr]
    assert taken == told


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20)), min_size=1, max_size=80),
    st.integers(0, 80),
)
def test_two_who_always_wait_differ_by_no_more_than_a_job_each(
    jobs: list[tuple[str, int]], count: int
) -> None:
    """Start-time fair queueing: |W_a/r_a - W_b/r_b| <= l_a/r_a + l_b/r_b while both wait."""
    queue: FairQueue[int] = FairQueue()
    left = Counter(user for user, _ in jobs)
    for user, work in jobs:
        queue.add(work, user=user, work=work)
    got = {"a": 0, "b": 0}
    while left["a"] and left["b"] and count:
        entry = queue.take()
        assert entry is not None
        got[entry.user] += entry.item
        left[entry.user] -= 1
        count -= 1
        assert abs(got["a"] - got["b"]) <= 2 * max(work for _, work in jobs)


def test_an_operator_moves_a_job_to_the_front_of_its_class() -> None:
    queue: FairQueue[str] = FairQueue()
    entries = {item: queue.add(item, user="ada") for item in "abc"}
    other = queue.add("x", user="bob")
    batch = queue.add("late", user="bob", job_class="batch")
    queue.add("goes on", user="cem", first=True)
    assert queue.to_front(entries["c"]) and queue.to_front(other) and queue.to_front(batch)
    assert [entry.item for entry in queue] == ["goes on", "x", "c", "a", "b", "late"]
    assert drain(queue) == ["goes on", "x", "c", "a", "b", "late"]
    assert not queue.to_front(other)


def test_a_job_at_the_front_waits_while_its_user_is_at_the_cap() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("b", user="bob")
    assert queue.to_front(queue.add("a", user="ada"))
    assert queue.take(lambda user: user != "ada").item == "b"  # type: ignore[union-attr]
    assert drain(queue) == ["a"]


def test_a_job_changes_its_class_behind_its_users_others() -> None:
    queue: FairQueue[str] = FairQueue()
    first = queue.add("a", user="ada", job_class="batch")
    queue.add("b", user="ada", job_class="batch")
    queue.add("c", user="ada")
    changed = queue.change_class(first, "interactive")
    assert changed is not None
    assert [entry.item for entry in queue] == ["c", "a", "b"]
    assert queue.lengths() == {"interactive": 2, "batch": 1}
    assert queue.change_class(first, "batch") is None
    with pytest.raises(KeyError):
        queue.change_class(changed, "vip")


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20)), min_size=2, max_size=60),
    st.lists(st.integers(0, 60), min_size=1, max_size=10),
)
def test_what_an_operator_moves_up_is_charged_all_the_same(
    jobs: list[tuple[str, int]], moved: list[int]
) -> None:
    """Once the moved jobs have gone, the users' accounts are as if they had come in turn.

    So after the front is served, both users differ by no more than what the front gave one of
    them, and that is paid back before the other one waits again.
    """
    queue: FairQueue[int] = FairQueue()
    entries = [queue.add(work, user=user, work=work) for user, work in jobs]
    front = {entries[number % len(entries)].number for number in moved}
    for entry in entries:
        if entry.number in front:
            assert queue.to_front(entry)
    got = {"a": 0, "b": 0}
    for _ in front:
        served = queue.take()
        assert served is not None and served.number in front
        got[served.user] += served.item
    left = Counter(entry.user for entry in entries if entry.number not in front)
    longest = max(work for _, work in jobs)
    while left["a"] and left["b"]:
        behind = min(got, key=lambda user: got[user])
        apart = abs(got["a"] - got["b"])
        served = queue.take()
        assert served is not None
        assert apart <= 2 * longest or served.user == behind
        got[served.user] += served.item
        left[served.user] -= 1
