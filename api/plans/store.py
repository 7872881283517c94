"""Every query on plans and allowances."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction
from django.db.models import Count
from django.utils import timezone

from api.accounts.models import Allowance, OpenStream, Plan, User
from api.errors import ApiError
from api.plans.limits import LIMITS, SECONDS, Kind, Lease, PlanLimits

MAX_PLANS = 1_000
SILENT = timedelta(seconds=30)  # without a heartbeat, a stream's process is dead
_AT_ONCE = 500  # rows of one statement


class PlanError(ValueError):
    """A plan that cannot be made, found or changed; one line says why. The caller's to mend."""


@sync_to_async
def lease(
    user: int, kind: Kind, limit: int, *, owed: int, needed: int, wanted: int, now: float
) -> Lease:
    """Counts what is `owed`, whatever the limit, and grants `needed` to `wanted`, or nothing."""
    with transaction.atomic():
        row = _row(user, kind, now)
        if row is None:  # the account was removed
            return Lease(now, 0, 0)
        if not row.started <= now < row.started + SECONDS[kind]:
            row.started, row.used = now, 0
        row.used += owed
        left = max(0, limit - row.used)
        granted = min(wanted, left) if left >= needed else 0
        row.used += granted
        row.save(update_fields=["started", "used"])
    return Lease(row.started + SECONDS[kind], granted, left - granted)


def _row(user: int, kind: Kind, now: float) -> Allowance | None:
    rows = Allowance.objects.select_for_update().filter(user_id=user, kind=kind)
    row = rows.first()
    if row is not None:
        return row
    try:
        with transaction.atomic():
            Allowance.objects.create(user_id=user, kind=kind, started=now)
    except IntegrityError:  # another process was faster, or the user is gone
        pass
    return rows.first()


def limits_of(row: Plan) -> PlanLimits:
    """A plan's limits."""
    return PlanLimits(name=row.name, **{name: getattr(row, name) for name in LIMITS})


def stored_plans() -> tuple[dict[int, PlanLimits], int | None]:
    """All plans by row, and the default one's row. Blocks."""
    plans, default = {}, None
    for row in Plan.objects.all()[:MAX_PLANS]:
        plans[row.pk] = limits_of(row)
        if row.is_default:
            default = row.pk
    return plans, default


@transaction.atomic
def put(name: str, changes: dict[str, int | None], default: bool | None = None) -> Plan:
    """Makes a plan, or changes what is given. Raises PlanError. Blocks."""
    row = Plan.objects.select_for_update().filter(name=name).first()
    is_new = row is None
    if row is None:
        if Plan.objects.count() >= MAX_PLANS:
            raise PlanError(f"there are {MAX_PLANS} plans already")
        row = Plan(name=name)
    for field, value in changes.items():
        setattr(row, field, value)
    if default:
        Plan.objects.exclude(pk=row.pk).update(is_default=False)
    if default is not None:
        row.is_default = default
    if is_new:
        row.save(force_insert=True)
    else:
        row.save(update_fields=[*changes, "is_default"])
    return row


def find(name: str) -> Plan:
    """The plan of that name. Raises PlanError. Blocks."""
    row = Plan.objects.filter(name=name).first()
    if row is None:
        raise PlanError(f"there is no plan {name!r}")
    return row


def assign(user: str, plan: str | None) -> None:
    """Gives a user a plan; None: the default one. Raises PlanError. Blocks."""
    row = None if plan is None else find(plan)
    if not User.objects.filter(username=user).update(plan=row):
        raise PlanError(f"the user {user!r} does not exist")


def remove(name: str) -> None:
    """Removes a plan; its users get the default one. Raises PlanError. Blocks."""
    find(name).delete()


def listed() -> list[dict[str, Any]]:
    """All plans as the API and the command line show them. Blocks."""
    rows = Plan.objects.annotate(held=Count("users")).order_by("name")
    return [_shown(row, row.held) for row in rows[:MAX_PLANS]]


def as_json(row: Plan) -> dict[str, Any]:
    """A plan as the API and the command line show it. Blocks."""
    return _shown(row, row.users.count())


def _shown(row: Plan, users: int) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in LIMITS}
    return {"name": row.name, "default": row.is_default, **shown, "users": users}


def check_conversations(user: User, most: int | None, more: int = 1) -> None:
    """Within a transaction, in which so many may then be added. Blocks.

    Raises ApiError 429 if the user may not have them, 401 if the account was removed.
    """
    if most is None:
        return
    from api.chat.models import Conversation

    if not User.objects.select_for_update().filter(pk=user.pk):  # one at a time, in any process
        raise ApiError(401, "this account was removed", code="account_removed")
    count = Conversation.objects.filter(user=user).count()
    if count + more > most:
        raise ApiError(
            429,
            f"your plan allows {most} conversations, and you have {count}: delete some first",
            code="conversations_limit",
            params={"most": most},
        )


@sync_to_async
def open_stream(user: int, answer: str, most: int, ended: Collection[int]) -> int | None:
    """Counts one more stream of that answer, in any process; None if there are `most`.

    Returns its row. Those that have `ended` are removed before. Raises ApiError 401 if the account
    was removed.
    """
    now = timezone.now()
    with transaction.atomic():
        if not User.objects.select_for_update().filter(pk=user):  # one at a time, in any process
            raise ApiError(401, "this account was removed", code="account_removed")
        _remove_streams(ended)
        counted = OpenStream.objects.filter(user_id=user, answer=answer, touched__gt=now - SILENT)
        if counted.count() >= most:
            return None
        return int(OpenStream.objects.create(user_id=user, answer=answer, touched=now).pk)


@sync_to_async
def keep_streams(reading: Collection[int], ended: Collection[int], *, beat: bool) -> None:
    """Removes the streams that have ended; with `beat` also dead processes', and keeps our own."""
    _remove_streams(ended)
    if not beat:
        return
    now = timezone.now()
    rows = list(reading)
    for first in range(0, len(rows), _AT_ONCE):
        OpenStream.objects.filter(pk__in=rows[first : first + _AT_ONCE]).update(touched=now)
    OpenStream.objects.filter(touched__lt=now - SILENT).delete()


def _remove_streams(ended: Collection[int]) -> None:
    rows = list(ended)
    for first in range(0, len(rows), _AT_ONCE):
        OpenStream.objects.filter(pk__in=rows[first : first + _AT_ONCE]).delete()
