"""How many nodes a model should have: one more, one less, or as they are. Pure.

The caller looks every few seconds, and carries out what is decided before it looks again.
"""

from dataclasses import dataclass, replace
from typing import Literal

IDLE_COOLDOWNS = 2.0  # a node must have been superfluous for so many cool-downs

Step = Literal["grow", "shrink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an operator wants of a model: `least` to `most` nodes, and nobody waiting for long.

    `target_wait`: seconds that the first in line may wait; `cooldown`: seconds between two changes.
    """

    least: int
    most: int
    target_wait: float
    cooldown: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A model's tree now. `nodes`: with those that start or leave; `changing`: how many of them do.

    `removable`: one of them may be ended; `slots`: that get jobs; `largest`: of the node with most.
    """

    nodes: int
    changing: int
    removable: bool
    slots: int
    largest: int
    running: int
    waiting: int
    oldest_wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered between two looks (seconds of one clock).

    `changed`: the last change; `idle_since`: since when one node less would do, None: it would not.
    """

    changed: float
    idle_since: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`step`: None for no change; `reason`: in words, for the audit log."""

    step: Step | None
    reason: str
    memory: Memory


def decide(rule: Rule, load: Load, memory: Memory, now: float) -> Decision:
    """What to do now.

    Never beyond `most`, nor below `least`; one change at a time, a cool-down apart; only removable
    nodes go, and only when one less would have done for IDLE_COOLDOWNS cool-downs without a break.
    """
    memory = _with_idleness(load, memory, now)
    if load.changing or now - memory.changed < rule.cooldown:
        return Decision(None, "", memory)
    step, reason = _step(rule, load, memory, now)
    if step is not None:
        memory = Memory(changed=now)
    return Decision(step, reason, memory)


def _step(rule: Rule, load: Load, memory: Memory, now: float) -> tuple[Step | None, str]:
    if load.nodes < rule.least:
        return "grow", f"{load.nodes} nodes, and at least {rule.least} are wanted"
    if load.nodes > rule.most and load.removable:
        return "shrink", f"{load.nodes} nodes, and at most {rule.most} are wanted"
    if load.waiting and load.oldest_wait > rule.target_wait and load.nodes < rule.most:
        return "grow", (
            f"{load.waiting} jobs wait, the first of them for {load.oldest_wait:.0f} s; "
            f"the target is {rule.target_wait:.0f} s"
        )
    idle = 0.0 if memory.idle_since is None else now - memory.idle_since
    superfluous = load.nodes > rule.least and idle >= IDLE_COOLDOWNS * rule.cooldown
    if superfluous and load.removable:
        return "shrink", f"one node less would have done for {idle:.0f} s"
    return None, ""


def _with_idleness(load: Load, memory: Memory, now: float) -> Memory:
    superfluous = not load.waiting and load.running <= load.slots - load.largest
    if not superfluous:
        return replace(memory, idle_since=None)
    if memory.idle_since is None:
        return replace(memory, idle_since=now)
    return memory
