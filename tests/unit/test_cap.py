"""How many jobs of one user may run at once."""

from topology.cap import ACTIVE_SECONDS, REMEMBERED, Cap


def about(*users: str, at: float = 0.0) -> Cap:
    cap = Cap()
    for user in users:
        cap.job_arrived(user, at)
    return cap


def test_who_is_alone_may_have_every_slot() -> None:
    assert about("ada", "ada").limit(8, 1.0) is None


def test_with_several_about_some_slots_are_left_to_others() -> None:
    cap = about("ada", "bob")
    assert [cap.limit(slots, 1.0) for slots in (4, 8, 16, 64)] == [3, 7, 14, 56]


def test_of_a_few_slots_none_is_left_idle() -> None:
    assert [about("ada", "bob").limit(slots, 1.0) for slots in (0, 1, 3)] == [None, None, None]


def test_who_was_not_seen_for_a_while_is_not_about() -> None:
    cap = about("ada", "bob")
    cap.job_arrived("ada", ACTIVE_SECONDS)
    assert cap.limit(8, ACTIVE_SECONDS) == 7
    assert cap.limit(8, ACTIVE_SECONDS + 1) is None


def test_a_number_that_somebody_set_holds() -> None:
    assert Cap(3).limit(8, 0.0) == 3
    unlimited = Cap(0)
    unlimited.job_arrived("ada", 0.0)
    unlimited.job_arrived("bob", 0.0)
    assert unlimited.limit(8, 0.0) is None


def test_no_more_users_are_remembered_than_needed() -> None:
    cap = about(*(f"user {number}" for number in range(2 * REMEMBERED)))
    assert len(cap._last_job) == REMEMBERED


def test_plans_count_at_a_root_alone() -> None:
    cap, inner = Cap(0, plans=True), Cap(0)
    for each in (cap, inner):
        each.plan_says("ada", 2)
    assert (cap.limit_of("ada", None), inner.limit_of("ada", None)) == (2, None)
    assert (cap.limit_of("ada", 1), cap.limit_of("bob", None), cap.any_plan) == (1, None, True)
    cap.plan_says("ada", None)
    assert (cap.limit_of("ada", None), cap.any_plan) == (None, False)
