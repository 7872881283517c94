"""Who gets which slot, against a plain model of what each slot holds."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from worker.engines.transformers.prefix_cache import Slots, common

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=80) | st.builds(
    lambda length, rest: [7] * length + rest,
    st.integers(0, 200),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)


@given(tokens, tokens)
def test_common_is_the_longest_common_beginning(first: list[int], second: list[int]) -> None:
    length = common(first, second)
    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


class Held(RuleBasedStateMachine):
    """Slots are taken, read into and left in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3)
        self.holds: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.taken: dict[int, list[int]] = {}

    running: Bundle[int] = Bundle("running")

    @rule(target=running, prompt=tokens)
    def take(self, prompt: list[int]) -> object:
        if not self.slots.free:
            return multiple()
        seat = self.slots.take(prompt)
        assert seat.slot not in self.taken
        where = seat.slot if seat.source is None else seat.source
        assert 0 <= seat.held < len(prompt)
        assert self.holds[where][: seat.held] == prompt[: seat.held]
        best = max(common(held, prompt[:-1]) for held in self.holds.values())
        assert seat.held > best - 32  # what is not reused is not worth a copy
        self.holds[seat.slot] = prompt[: seat.held]
        self.taken[seat.slot] = prompt
        self.slots.read(seat.slot, prompt[seat.held :])
        self.holds[seat.slot] = list(prompt)
        return seat.slot

    @rule(slot=running, more=tokens)
    def answer(self, slot: int, more: list[int]) -> None:
        self.slots.read(slot, more)
        self.holds[slot] += more

    @rule(slot=consumes(running))
    def leave(self, slot: int) -> None:
        del self.taken[slot]
        self.slots.leave(slot)

    @rule()
    def forget(self) -> None:
        self.slots.forget()
        self.holds = {slot: [] for slot in self.holds}

    @invariant()
    def counted(self) -> None:
        assert self.slots.free == 3 - len(self.taken)
        assert self.slots.reused <= self.slots.asked


TestHeld = Held.TestCase


def test_the_slot_that_holds_least_of_use_is_given_away() -> None:
    slots = Slots(2)
    first = slots.take([1] * 50)
    slots.read(first.slot, [1] * 50)
    slots.leave(first.slot)
    other = slots.take([2] * 50)
    assert other.slot != first.slot  # what it holds may be asked for again
    slots.read(other.slot, [2] * 50)
    assert slots.take([1] * 50 + [3]) == (first.slot, 50, None)


def test_a_busy_slot_is_copied_from() -> None:
    slots = Slots(2)
    first = slots.take([1] * 50)
    slots.read(first.slot, [1] * 50)
    assert slots.take([1] * 49 + [2]) == (1 - first.slot, 49, first.slot)
    assert (slots.asked, slots.reused) == (100, 49)


@given(st.lists(tokens, min_size=1, max_size=8))
def test_without_reuse_every_prompt_is_read_anew(prompts: list[list[int]]) -> None:
    slots = Slots(2)
    for prompt in prompts:
        seat = slots.take(prompt, reuse=False)
        assert (seat.held, seat.source) == (0, None)
        slots.read(seat.slot, prompt)
        slots.leave(seat.slot)
    assert slots.reused == 0
