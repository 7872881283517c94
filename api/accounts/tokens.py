"""One-time login tokens: made by the launcher, used once, replaced by the next one, expired after a day."""

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from api.accounts import secret
from api.accounts.models import LoginToken, User

LIFETIME = timedelta(hours=24)


def first_administrator() -> User:
    """The oldest active administrator; `admin` is created, without a password, if there is none."""
    user = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
    return user or User.objects.create_superuser("admin", password=None)


def create(user: User) -> str:
    """A fresh token, in place of the user's former one."""
    token = f"{user.pk}-{secret.make()}"
    LoginToken.objects.update_or_create(
        user=user, defaults={"digest": secret.digest(token), "expires": timezone.now() + LIFETIME}
    )
    return token


@transaction.atomic
def redeem(token: str) -> User | None:
    """The user the token stands for, and the end of the token; None if it is wrong, used or too old."""
    number, _, _ = token.partition("-")
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        return None
    stored = LoginToken.objects.select_related("user").filter(user_id=int(number)).first()
    if stored is None or not secret.same(stored.digest, secret.digest(token)):
        return None
    # Whoever deletes the row has the login: two requests with one token cannot both succeed.
    deleted, _ = LoginToken.objects.filter(pk=stored.pk, digest=stored.digest).delete()
    valid = deleted and stored.expires > timezone.now() and stored.user.is_active
    return stored.user if valid else None
