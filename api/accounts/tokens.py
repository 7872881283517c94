"""One-time login tokens: made by the launcher, used once, expired after a day or by the next."""

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from api.accounts import secret
from api.accounts.models import LoginToken, User

LIFETIME = timedelta(hours=24)


def first_administrator() -> User:
    """The oldest active administrator; if there is none, `admin` is created without a password."""
    user = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
    return user or User.objects.create_superuser("admin", password=None)


def create(user: User) -> str:
    """A new token; the user's former one becomes invalid."""
    token = f"{user.pk}-{secret.make()}"
    LoginToken.objects.update_or_create(
        user=user, defaults={"digest": secret.digest(token), "expires": timezone.now() + LIFETIME}
    )
    return token


@transaction.atomic
def redeem(token: str) -> User | None:
    """The token's user; None if it is wrong, used or expired. A token is valid once."""
    number, _, _ = token.partition("-")
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        return None
    stored = LoginToken.objects.select_related("user").filter(user_id=int(number)).first()
    if stored is None or not secret.same(stored.digest, secret.digest(token)):
        return None
    # The request that deletes the row gets the login: two with one token cannot both succeed.
    deleted, _ = LoginToken.objects.filter(pk=stored.pk, digest=stored.digest).delete()
    if not deleted or stored.expires <= timezone.now() or not stored.user.is_active:
        return None
    return stored.user
