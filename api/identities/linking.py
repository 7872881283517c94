"""Which account belongs to an identity. Everything here blocks.

An account is linked by the identity's lasting subject alone: never by its name and never by an
e-mail address, or whoever chooses a name there would take over an account here. An identity that is
new gets a new account; `./canopy user link` gives it an existing one.
"""

import re
from collections.abc import Collection

import structlog
from django.db import IntegrityError, transaction

from api.accounts import people
from api.accounts.models import Identity, User
from api.identities.roles import Role, RoleGroups
from api.operate.audit.models import AuditEntry
from api.operate.audit.store import cut

LDAP = "ldap"
LONGEST_SUBJECT = 255
_LONGEST_NAME = 150
_NOT_IN_NAMES = re.compile(r"[^\w.@+-]")
_MOST_TRIES = 1000  # names with a number behind them
log = structlog.get_logger("canopy.api")


class NotAdmitted(Exception):
    """Known there, but not to be let in here: disabled here, or in none of the groups."""


def log_in(
    provider: str, subject: str, name: str, groups: Collection[str], rules: RoleGroups
) -> User:
    """The identity's account, made on the first login, with the role that the groups give.

    Raises NotAdmitted.
    """
    if not rules.admits(groups):
        raise NotAdmitted("in none of the groups that may log in")
    identity = _find(provider, subject)
    user = identity.user if identity else _first_login(provider, subject, name)
    if not user.is_active:
        raise NotAdmitted("the account is disabled here")
    if rules.give_roles:
        _set_role(user, rules.role(groups), provider)
    return user


@transaction.atomic
def link(user: User, provider: str, subject: str) -> None:
    """From now on the identity is this account's, and its password here is void.

    Raises AccountError if it has an account.
    """
    other = _find(provider, subject)
    if other is not None and other.user_id != user.pk:
        raise people.AccountError(f"this identity is {other.user.username!r} already")
    if other is None:
        Identity.objects.create(user=user, provider=provider, subject=subject)
    user.set_unusable_password()
    user.save(update_fields=["password"])
    people.end_sessions(user)


def unlink(user: User) -> int:
    """Nobody else can log in as this account any more; returns how many identities it had."""
    deleted, _ = Identity.objects.filter(user=user).delete()
    people.end_sessions(user)
    return int(deleted)


def _find(provider: str, subject: str) -> Identity | None:
    rows = Identity.objects.select_related("user")
    return rows.filter(provider=provider, subject=subject).first()


def _first_login(provider: str, subject: str, name: str) -> User:
    """A new account. Two first logins of one person at the same time get one."""
    try:
        user = _create(provider, subject, name)
    except IntegrityError:
        identity = _find(provider, subject)
        if identity is not None:
            return identity.user
        user = _create(provider, subject, name)  # somebody else has just taken the name
    _audit("create account", user, provider)
    return user


@transaction.atomic
def _create(provider: str, subject: str, name: str) -> User:
    user = User(username=_free_name(name))
    user.set_unusable_password()
    user.save(force_insert=True)
    Identity.objects.create(user=user, provider=provider, subject=subject)
    return user


def _free_name(wanted: str) -> str:
    """The name as accounts may have it; with a number if somebody else has it."""
    name = _NOT_IN_NAMES.sub("-", User.normalize_username(wanted))[:_LONGEST_NAME].strip("-")
    name = name or "somebody"
    if not User.objects.filter(username__iexact=name).exists():
        return name
    for number in range(2, _MOST_TRIES):
        numbered = f"{name[: _LONGEST_NAME - 4]}-{number}"
        if not User.objects.filter(username__iexact=numbered).exists():
            return numbered
    raise NotAdmitted("too many accounts have this name")


def _set_role(user: User, role: Role, provider: str) -> None:
    if people.role_of(user) == role:
        return
    people.give_role(user, role)
    user.save(update_fields=["is_staff", "is_superuser"])
    _audit("set role", user, f"{role}, by {provider}")


def _audit(action: str, user: User, detail: str) -> None:
    """What nobody here has done, but the groups of somebody elsewhere."""
    AuditEntry.objects.create(
        who="identity provider",
        action=cut(action, "action"),
        target=cut(user.username, "target"),
        detail=cut(detail, "detail"),
        result="done",
    )
    log.info(action, user=user.username, detail=detail)
