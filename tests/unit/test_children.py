"""The running totals over a node's children are what adding them up gives."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from topology.children import Child, Children
from topology.dispatch import Dispatcher, Forward, HoldHigh
from topology.natural import natural_key

COUNT = st.integers(0, 5)
CHILDREN = st.builds(
    Child,
    name=st.sampled_from(["n1", "n2", "n10", "a"]),
    slots=COUNT,
    free=COUNT,
    received=COUNT,
    accepting=st.booleans(),
    users=st.dictionaries(st.sampled_from(["u1", "u2"]), COUNT),
    sent=COUNT,
)
NAMES = st.sampled_from(["n1", "n2", "n10", "a", "nobody"])
STEPS = st.one_of(
    st.tuples(st.just("put"), CHILDREN),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("sent"), NAMES),
    st.tuples(st.just("lost"), NAMES),
)


def has_room(child: Child) -> bool:
    return child.room > 0


@given(st.lists(STEPS, max_size=30))
def test_totals_are_sums(steps: list[tuple[str, Child | str]]) -> None:
    children = Children(has_room)
    sent: dict[str, list[str]] = {}
    for number, (what, subject) in enumerate(steps):
        user = f"u{number % 3}"
        if isinstance(subject, Child):
            children.put(subject)
            waiting = sent.setdefault(subject.name, [])
            sent[subject.name] = waiting[max(0, len(waiting) - subject.in_transit) :]
        elif what == "remove":
            children.remove(subject)
            sent.pop(subject, None)
        elif what == "sent":
            children.sent_to(subject, user)
            if subject in sent:
                sent[subject].append(user)
        else:
            children.lost_in_transit(subject)
            if subject in sent:
                sent[subject] = []
        _check(children, sent)


def _check(children: Children, sent: dict[str, list[str]]) -> None:
    all_of_them = list(children)
    names = [child.name for child in all_of_them]
    assert names == sorted(sent, key=natural_key)
    accepting = [child for child in all_of_them if child.accepting]
    assert children.slots == sum(child.slots for child in all_of_them)
    assert children.open_slots == sum(child.slots for child in accepting)
    assert children.accepting == len(accepting)
    assert children.room == sum(child.room for child in all_of_them)
    users: Counter[str] = Counter()
    for child in all_of_them:
        users.update(child.users)
        users.update(sent[child.name])
    assert children.users == +users
    served = children.next_with_room("")
    assert served == next(filter(has_room, all_of_them), None)


def test_a_decision_looks_at_no_child_without_room() -> None:
    """Otherwise each job costs a root more, the more nodes there are."""
    asked = 0

    class Counting(HoldHigh):
        def has_room(self, child: Child) -> bool:
            nonlocal asked
            asked += 1
            return super().has_room(child)

    dispatcher = Dispatcher(0, Counting())
    for number in range(1000):
        dispatcher.put_child(Child(f"n{number}", slots=8, free=int(number == 500)))
    asked = 0
    assert dispatcher.decide() == Forward("n500")
    dispatcher.forwarded("n500", "u1")
    assert dispatcher.subtree_free() == 0
    assert dispatcher.users_below() == {"u1": 1}
    assert asked <= 2
