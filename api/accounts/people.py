"""What an administrator does with accounts from the command line: make, disable, change roles.

Everything here blocks: the command line has no event loop. A running instance notices a disabled
account within a second (revocation.py).
"""

from dataclasses import asdict, dataclass
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count, Q

from api.accounts.models import ApiKey, Identity, Login, LoginToken, User
from api.identities.roles import Role


class AccountError(ValueError):
    """An account that cannot be made or changed so; one line says why. The caller's to mend."""


@dataclass(frozen=True, slots=True)
class Account:
    """One user as `./canopy user` prints them. `keys`: API keys that are not revoked."""

    name: str
    role: Role
    active: bool
    has_password: bool
    identities: list[str]  # who else knows this person: ldap, or an issuer
    keys: int
    created: str  # ISO 8601
    last_login: str | None

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def list_accounts() -> list[Account]:
    """All accounts by name."""
    valid_keys = Count("api_keys", filter=Q(api_keys__revoked=False))
    rows = User.objects.annotate(valid_keys=valid_keys).order_by("username")
    rows = rows.prefetch_related("identities")
    return [_account(user, user.valid_keys) for user in rows.iterator(chunk_size=1000)]


def describe(user: User) -> Account:
    """One account."""
    return _account(user, ApiKey.objects.filter(user=user, revoked=False).count())


def find(name: str) -> User:
    """The user of that name, active or not. Raises AccountError."""
    user = User.objects.filter(username=name).first()
    if user is None:
        raise AccountError(f"the user {name!r} does not exist")
    return user


@transaction.atomic
def create(name: str, role: Role, password: str | None) -> User:
    """A new account; without a password it is entered by a login link. Raises AccountError."""
    if User.objects.filter(username=name).exists():
        raise AccountError(f"there is a user {name!r} already")
    user = User(username=User.normalize_username(name))
    try:
        user.clean_fields(exclude=["password"])
    except ValidationError as error:
        raise AccountError(" ".join(error.messages)) from error
    give_role(user, role)
    if password is None:
        user.set_unusable_password()
    else:
        _give_password(user, password)
    user.save(force_insert=True)
    return user


@transaction.atomic
def set_password(user: User, password: str, *, revoke_keys: bool = False) -> None:
    """Replaces the password and ends all sessions. Raises AccountError."""
    if Identity.objects.filter(user=user).exists():
        raise AccountError(
            f"the password of {user.username!r} is checked elsewhere: change it there, or let the "
            f"account have one here again: ./canopy user unlink {user.username}"
        )
    _give_password(user, password)
    user.save(update_fields=["password"])
    if revoke_keys:
        ApiKey.objects.filter(user=user, revoked=False).update(revoked=True)
    end_sessions(user)


@transaction.atomic
def set_role(user: User, role: Role) -> None:
    """Changes what the user may do. Raises AccountError for the only administrator."""
    if role != "administrator":
        _keep_an_administrator(user)
    give_role(user, role)
    user.save(update_fields=["is_staff", "is_superuser"])


@transaction.atomic
def disable(user: User) -> None:
    """Ends the sessions and login links; keys are refused until the account is enabled again.

    Raises AccountError for the only administrator.
    """
    _keep_an_administrator(user)
    user.is_active = False
    user.save(update_fields=["is_active"])
    LoginToken.objects.filter(user=user).delete()
    end_sessions(user)


def enable(user: User) -> None:
    """Lets the user log in again, and use the keys they had."""
    user.is_active = True
    user.save(update_fields=["is_active"])


def end_sessions(user: User) -> None:
    """Logs the user out everywhere.

    All sessions are looked through: one of the admin's own login page is in no list of logins.
    """
    number = str(user.pk)
    keys = []
    for session in Session.objects.iterator():
        if session.get_decoded().get("_auth_user_id") == number:
            keys.append(session.session_key)
    Session.objects.filter(session_key__in=keys).delete()
    Login.objects.filter(user=user).delete()


def _account(user: User, keys: int) -> Account:
    last_login = None
    if user.last_login is not None:
        last_login = user.last_login.isoformat(timespec="seconds")
    return Account(
        name=user.username,
        role=role_of(user),
        active=user.is_active,
        has_password=user.has_usable_password(),
        identities=[identity.provider for identity in user.identities.all()],
        keys=keys,
        created=user.date_joined.isoformat(timespec="seconds"),
        last_login=last_login,
    )


def role_of(user: User) -> Role:
    """What the user may do."""
    if user.is_superuser:
        return "administrator"
    if user.is_staff:
        return "staff"
    return "user"


def give_role(user: User, role: Role) -> None:
    """Sets the flags of a role; the caller saves them."""
    user.is_superuser = role == "administrator"
    user.is_staff = role in ("staff", "administrator")


def _give_password(user: User, password: str) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise AccountError(" ".join(error.messages)) from error
    user.set_password(password)


def _keep_an_administrator(user: User) -> None:
    if not (user.is_superuser and user.is_active):
        return
    others = User.objects.filter(is_superuser=True, is_active=True).exclude(pk=user.pk)
    if not others.exists():
        raise AccountError(
            f"{user.username!r} is the only administrator; give somebody else that role first"
        )
