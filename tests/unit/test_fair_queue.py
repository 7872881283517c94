"""The order of the line, as promises rather than as an algorithm."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.fair_queue import REMEMBERED_USERS, Entry, FairQueue


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
        assert len(queue) == len(waiting)
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
