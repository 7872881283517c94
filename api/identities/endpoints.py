"""The addresses of a login at an OpenID provider. Browsers come here; no program does."""

from urllib.parse import urlencode

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import alogin
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET

from api.accounts import logins
from api.context import app
from api.identities import linking
from api.identities.oidc import Memory, OidcProvider, ProviderUnavailable, SignOnFailed
from api.identities.settings import OidcSettings

MINUTES = 10  # in which somebody must be back from the provider
_SALT = "canopy.oidc"
_NEXT = "next"
_MOST_ATTEMPTS = 4  # of one browser at the same time, in several tabs
_LONGEST_NEXT = 500
_NO_STORE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
log = structlog.get_logger("canopy.api")


@require_GET
async def begin(request: HttpRequest) -> HttpResponse:
    """`GET /oidc/login?next=/c/1`: to the provider."""
    provider = _provider()
    memory = _remembered(request)
    if len(memory) > _MOST_ATTEMPTS:
        memory = {}
    memory[_NEXT] = _safe_next(request)
    callback = request.build_absolute_uri(reverse("oidc-callback"))
    try:
        address = await provider.begin(memory, callback)
    except ProviderUnavailable:
        return _failed("unavailable")
    response = HttpResponseRedirect(address, headers=_NO_STORE)
    response.set_cookie(
        _cookie_name(),
        signing.dumps(memory, salt=_SALT),
        max_age=MINUTES * 60,
        path=_cookie_path(),
        secure=request.is_secure(),
        httponly=True,
        samesite="Lax",
    )
    return response


@require_GET
async def callback(request: HttpRequest) -> HttpResponse:
    """Back from the provider, with a code: starts a session."""
    memory = _remembered(request)
    start = memory.get(_NEXT) or reverse("page")
    configured: OidcSettings = settings.ENV.identities.oidc
    try:
        person = await _provider().finish(memory, request)
        user = await sync_to_async(linking.log_in)(
            configured.issuer, person.subject, person.name, person.groups, configured.roles
        )
    except SignOnFailed as error:
        log.warning("no login at the provider", reason=str(error))
        return _failed("failed")
    except ProviderUnavailable:
        return _failed("unavailable")
    except linking.NotAdmitted as error:
        log.info("not admitted", user=person.name[:100], provider="oidc", reason=str(error))
        return _failed("not_admitted")
    await alogin(request, user, backend="django.contrib.auth.backends.ModelBackend")
    request.session[logins.SIGN_ON_MARK] = True
    await logins.note(request, user)
    return _forgetful(HttpResponseRedirect(start, headers=_NO_STORE))


@require_GET
async def logout(request: HttpRequest) -> HttpResponse:
    """`GET /oidc/logout`: the provider ends its own session, after the page has ended ours."""
    home = request.build_absolute_uri(reverse("page"))
    address = await _provider().logout_address(home)
    return HttpResponseRedirect(address or home, headers=_NO_STORE)


def _provider() -> OidcProvider:
    provider = app().oidc
    if provider is None:
        raise Http404
    return provider


def _failed(reason: str) -> HttpResponse:
    """The login page says why."""
    address = f"{reverse('page')}?{urlencode({'sign_on': reason})}"
    return _forgetful(HttpResponseRedirect(address, headers=_NO_STORE))


def _forgetful(response: HttpResponse) -> HttpResponse:
    response.delete_cookie(_cookie_name(), path=_cookie_path(), samesite="Lax")
    return response


def _cookie_name() -> str:
    """Browsers share cookies between the ports of a host."""
    return f"{settings.SESSION_COOKIE_NAME}_oidc"


def _cookie_path() -> str:
    return reverse("oidc-login").removesuffix("login")


def _safe_next(request: HttpRequest) -> str:
    """Where the browser was, if that is one of our own pages."""
    wanted = request.GET.get("next", "")
    own = url_has_allowed_host_and_scheme(wanted, allowed_hosts=None)
    if not own or not wanted.startswith("/") or len(wanted) > _LONGEST_NEXT:
        return reverse("page")
    return wanted


def _remembered(request: HttpRequest) -> Memory:
    """What the cookie holds; nothing if it is missing, too old or not ours."""
    try:
        memory = signing.loads(
            request.COOKIES.get(_cookie_name(), ""), salt=_SALT, max_age=MINUTES * 60
        )
    except signing.BadSignature:
        return {}
    return memory if isinstance(memory, dict) else {}
