"""Login, logout, and the current user."""

from typing import Any, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import alogin, alogout
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.urls import reverse
from django.utils.html import format_html
from ninja import Router, Schema, Status
from pydantic import Field

from api import errors
from api.accounts import logins, secret, tokens
from api.accounts.auth import Anyone
from api.accounts.confirmation import Confirmation, confirmation_of
from api.accounts.lockout import address_of
from api.accounts.models import User
from api.context import app
from api.errors import ApiError
from api.http import pages
from api.http.parsing import Body, StorableText
from api.identities.settings import OidcSettings

router = Router(tags=["accounts"], auth=Anyone())


class Person(Schema):
    """A user as others see them."""

    name: str
    staff: bool
    has_password: bool
    known_elsewhere: bool = False  # a directory or a provider checks who this is
    confirmation: Confirmation = "password"  # what the end of the account asks for


class SingleSignOn(Schema):
    """Another way to log in: a link to `address`, for people who know it as `label`."""

    label: str
    address: str


class Me(Schema):
    """Who is logged in, if anybody. `sign_on`: how else one may log in.

    `after_logout`: where the browser goes to end the session at the provider, too.
    """

    user: Person | None
    default_model: str | None
    sign_on: SingleSignOn | None = None
    after_logout: str | None = None


class Credentials(Body):
    """A login."""

    username: StorableText = Field(max_length=150)
    password: str = Field(max_length=4096)


class LoggedIn(Schema):
    """The result of a login."""

    user: Person


async def person(user: User) -> Person:
    """The user as the API shows them."""
    return Person(
        name=user.get_username(),
        staff=user.is_staff,
        has_password=user.has_usable_password(),
        known_elsewhere=await user.identities.aexists(),
        confirmation=await confirmation_of(user),
    )


@router.get("/me", response=Me)
async def me(request: HttpRequest) -> Me:
    """Who is logged in; also sets the CSRF cookie."""
    get_token(request)
    user = await request.auser()
    default_model = await app().catalog.default()
    if not user.is_authenticated:
        return Me(user=None, default_model=default_model, sign_on=_sign_on())
    await logins.note(request, user)
    began_there = await request.session.aget(logins.SIGN_ON_MARK)
    return Me(
        user=await person(cast(User, user)),
        default_model=default_model,
        after_logout=reverse("oidc-logout") if began_there and app().oidc else None,
    )


def _sign_on() -> SingleSignOn | None:
    provider: OidcSettings | None = settings.ENV.identities.oidc
    if provider is None:
        return None
    return SingleSignOn(label=provider.label, address=reverse("oidc-login"))


@router.post("/login", response=LoggedIn)
async def login(request: HttpRequest, credentials: Credentials) -> LoggedIn:
    """Starts a session."""
    turns = app().password_turns
    user = await turns.check(request, credentials.username, credentials.password)
    if user is None:
        raise ApiError(400, "wrong username or password", field="password", code="wrong_login")
    await alogin(request, user)
    await logins.note(request, user)
    return LoggedIn(user=await person(user))


@router.post("/logout", response={204: None})
async def logout(request: HttpRequest) -> Status[Any]:
    """Ends the session."""
    await alogout(request)
    return Status(204, None)


async def login_by_token(request: HttpRequest) -> HttpResponse:
    """`GET /login?token=T`: the link of `up` and `login` starts a session, once.

    The redirect keeps the token out of the browser's history. HEAD, which link previews send,
    must not use the link up.
    """
    if request.method != "GET":
        return HttpResponseNotAllowed(["GET"])
    address = address_of(request)
    token = request.GET.get("token", "")
    digest = secret.digest(token)
    try:
        app().guesses.check(address, digest)
    except ApiError as error:
        return errors.response(request.path_info, error)
    user = await sync_to_async(tokens.redeem)(token)
    if user is None:
        app().guesses.wrong(address, digest)
        return pages.notice(403, _LINK_HEADERS, _bad_token())
    await alogin(request, user, backend="django.contrib.auth.backends.ModelBackend")
    await logins.note(request, user)
    # An account that nobody can log in to yet gets a name and a password first.
    known = user.has_usable_password() or await user.identities.aexists()
    start = "/" if known else "/welcome"
    return HttpResponseRedirect(pages.address(start), headers=_LINK_HEADERS)


# The address holds a secret: nothing keeps it, and no request that follows names it.
_LINK_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def _bad_token() -> str:
    """The page before the first build; the built one says it itself."""
    return format_html(
        "<!doctype html><meta charset=utf-8><title>Canopy</title>"
        "<h1>This login link is used up or wrong</h1>"
        "<p>A link works once, for a day. On the machine where <code>./canopy up</code> runs, "
        "<code>./canopy login</code> prints a fresh one. Or <a href='{}'>log in</a>.</p>",
        pages.address("/"),
    )
