"""The autoscaler's policy: its bounds, its patience, and that it does not flap."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from topology.autoscale import IDLE_COOLDOWNS, Load, Memory, Rule, decide

LOOK = 5.0  # seconds between two looks

rules = st.builds(
    lambda least, extra, target, cooldown: Rule(
        least=least, most=least + extra, target_wait=target, cooldown=cooldown
    ),
    st.integers(0, 5),
    st.integers(0, 10),
    st.floats(0, 60),
    st.floats(LOOK, 300),
)
demands = st.lists(st.integers(0, 60), min_size=1, max_size=200)  # jobs at each look


def load(nodes: int, jobs: int, waited: float, slots: int = 4, changing: int = 0) -> Load:
    capacity = nodes * slots
    return Load(
        nodes=nodes,
        changing=changing,
        removable=nodes > 0,
        slots=capacity,
        largest=slots if nodes else 0,
        running=min(jobs, capacity),
        waiting=max(0, jobs - capacity),
        oldest_wait=waited if jobs > capacity else 0.0,
    )


@given(rules, demands, st.integers(0, 20))
def test_it_stays_within_its_bounds_and_changes_a_cooldown_apart(
    rule: Rule, jobs: list[int], nodes: int
) -> None:
    memory, waited = Memory(changed=-1e9), 0.0
    changes: list[tuple[float, str]] = []
    for number, demand in enumerate(jobs):
        now = number * LOOK
        waited = waited + LOOK if demand > nodes * 4 else 0.0
        decision = decide(rule, load(nodes, demand, waited), memory, now)
        memory = decision.memory
        if decision.step == "grow":
            nodes += 1
            assert nodes <= max(rule.most, rule.least)
        if decision.step == "shrink":
            nodes -= 1
            assert nodes >= rule.least
        if decision.step:
            assert decision.reason
            changes.append((now, decision.step))
    for (before, _), (after, _) in pairwise(changes):
        assert after - before >= rule.cooldown


@given(rules, demands)
def test_it_shrinks_only_after_a_long_idleness_without_a_break(rule: Rule, jobs: list[int]) -> None:
    nodes, memory, idle = rule.most, Memory(changed=-1e9), 0.0
    for number, demand in enumerate(jobs):
        one_less_would_do = demand <= (nodes - 1) * 4 if nodes else demand == 0
        decision = decide(rule, load(nodes, demand, 0.0), memory, number * LOOK)
        memory = decision.memory
        if decision.step == "shrink":
            assert idle >= IDLE_COOLDOWNS * rule.cooldown - 1e-6
            nodes, idle = nodes - 1, 0.0
        else:
            idle = idle + LOOK if one_less_would_do else 0.0


@given(rules, st.integers(0, 40))
def test_a_steady_demand_brings_it_to_rest(rule: Rule, demand: int) -> None:
    nodes, memory, waited, steps = rule.least, Memory(changed=-1e9), 0.0, []
    for number in range(4_000):
        now = number * LOOK
        waited = waited + LOOK if demand > nodes * 4 else 0.0
        decision = decide(rule, load(nodes, demand, waited), memory, now)
        memory = decision.memory
        nodes += {"grow": 1, "shrink": -1, None: 0}[decision.step]
        if decision.step:
            steps.append(decision.step)
    assert "shrink" not in steps  # it never grew too far, so it need not go back
    assert len(steps) <= rule.most - rule.least


def test_a_node_that_may_not_be_ended_stays_whatever_the_rule_says() -> None:
    rule, memory = Rule(least=0, most=1, target_wait=1.0, cooldown=5.0), Memory(changed=-1e9)
    crowded = load(3, 0, waited=0.0)
    assert decide(rule, crowded, memory, 0.0).step == "shrink"
    decision = decide(rule, replace(crowded, removable=False), memory, 0.0)
    assert (decision.step, decision.memory.changed) == (None, memory.changed)


def test_nothing_is_decided_while_a_node_starts_or_leaves() -> None:
    rule = Rule(least=1, most=4, target_wait=1.0, cooldown=5.0)
    crowded = load(1, 40, waited=60.0, changing=1)
    assert decide(rule, crowded, Memory(changed=-1e9), 0.0).step is None
