"""Logins at an OpenID provider, by the authorization code flow with PKCE, state and nonce.

Authlib's Django client does the protocol. It verifies the signature, the nonce, and that the token
is of this issuer, for this client and still valid; what an attempt must remember until the browser
is back is in a signed cookie, so that visitors who never log in leave no rows in the database.
Everything but `OidcProvider` itself blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from asgiref.sync import sync_to_async
from authlib.integrations.base_client import OAuthError
from authlib.integrations.django_client import OAuth
from django.http import HttpRequest
from joserfc.errors import JoseError
from requests import RequestException

from api.identities.linking import LONGEST_SUBJECT
from api.identities.settings import OidcSettings

NAME = "oidc"
TIMEOUT = 10.0  # seconds, for each request to the provider
MOST_AT_ONCE = 8  # logins of this process that wait for the provider
LEEWAY = 60  # seconds by which its clock may differ
MOST_GROUPS = 2000
_LONGEST_NAME = 200
# Never HS256, for which a provider's public key or our secret would do, and never `none`.
_ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
_ALGORITHMS_FIELD = "id_token_signing_alg_values_supported"
# What comes of a provider that is away, or whose answers are not what they must be.
_BROKEN = (RequestException, RuntimeError, AttributeError, LookupError, TypeError, ValueError)
Result = TypeVar("Result")
Memory = dict[str, Any]  # of one browser's attempts
log = structlog.get_logger("canopy.api")


class SignOnFailed(Exception):
    """No login: refused by the person or the provider, out of time, or forged."""


class ProviderUnavailable(Exception):
    """The provider does not answer, or not as a provider should: retry later."""


@dataclass(frozen=True, slots=True)
class Person:
    """Whom the provider vouches for."""

    subject: str
    name: str
    groups: frozenset[str]


@dataclass(slots=True)
class _Request:
    """What Authlib looks at of a request: `session` is the cookie's content."""

    method: str
    GET: Mapping[str, str]
    session: Memory


class OidcProvider:
    """The provider, discovered on the first use, and anew after a failure."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._app: Any = None
        self._busy = 0

    async def begin(self, memory: Memory, redirect_uri: str) -> str:
        """Where to send the browser; what must be remembered is put into `memory`.

        Raises ProviderUnavailable.
        """
        request = _Request("GET", {}, memory)
        response = await self._ask(lambda app: app.authorize_redirect(request, redirect_uri))
        return str(response["Location"])

    async def finish(self, memory: Memory, request: HttpRequest) -> Person:
        """Who has come back. Raises SignOnFailed or ProviderUnavailable."""
        seen = _Request("GET", request.GET, memory)
        return await self._ask(lambda app: self._person(app, seen))

    async def logout_address(self, back: str) -> str | None:
        """Where the provider ends its own session; None if it does not say."""
        try:
            return await self._ask(lambda app: self._logout_address(app, back))
        except (ProviderUnavailable, SignOnFailed):
            return None

    async def _ask(self, work: Callable[[Any], Result]) -> Result:
        if self._busy >= MOST_AT_ONCE:
            raise ProviderUnavailable("too many logins at once")
        self._busy += 1
        try:
            return await sync_to_async(self._work, thread_sensitive=False)(work)
        finally:
            self._busy -= 1

    def _work(self, work: Callable[[Any], Result]) -> Result:
        try:
            return work(self._discovered())
        except OAuthError as error:
            raise SignOnFailed(_reason(error)) from error
        except JoseError as error:
            self._app = None  # it may have new keys
            raise SignOnFailed(_reason(error)) from error
        except _BROKEN as error:
            self._app = None
            log.error("the provider cannot be used", reason=_reason(error))
            raise ProviderUnavailable(_reason(error)) from error

    def _discovered(self) -> Any:
        """Authlib's client with the provider's metadata."""
        if self._app is not None:
            return self._app
        app = _client(self._settings)
        metadata = app.load_server_metadata()
        if metadata.get("issuer") != self._settings.issuer:
            raise ValueError(f"it says that it is {str(metadata.get('issuer'))[:200]}")
        offered = metadata.get(_ALGORITHMS_FIELD) or ["RS256"]
        metadata[_ALGORITHMS_FIELD] = [each for each in offered if each in _ALGORITHMS]
        self._app = app
        return app

    def _logout_address(self, app: Any, back: str) -> str | None:
        if not app.server_metadata.get("end_session_endpoint"):
            return None
        answer = app.create_logout_url(back, client_id=self._settings.client_id)
        return str(answer["url"])

    def _person(self, app: Any, request: _Request) -> Person:
        options = {
            "iss": {"essential": True, "value": self._settings.issuer},
            "aud": {"essential": True, "value": self._settings.client_id},
        }
        token = app.authorize_access_token(request, claims_options=options, leeway=LEEWAY)
        claims = token.get("userinfo")
        if not claims:
            raise SignOnFailed("the provider sent no ID token")
        subject = _subject(claims)
        claims = dict(claims)
        if self._lacks(claims) and "userinfo_endpoint" in app.server_metadata:
            further = app.userinfo(token=token)
            if further.get("sub") != subject:
                raise SignOnFailed("the provider told of somebody else")
            claims = {**further, **claims}
        return Person(subject, self._name(claims), groups_of(claims, self._settings.role_claim))

    def _lacks(self, claims: Mapping[str, Any]) -> bool:
        named = _at(claims, self._settings.role_claim) is None and self._settings.roles.named
        return named or self._settings.name_claim not in claims

    def _name(self, claims: Mapping[str, Any]) -> str:
        name = claims.get(self._settings.name_claim)
        return name[:_LONGEST_NAME] if isinstance(name, str) and name else "somebody"


def _client(settings: OidcSettings) -> Any:
    return OAuth().register(
        NAME,
        client_id=settings.client_id,
        client_secret=settings.client_secret or None,
        server_metadata_url=f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={
            "scope": settings.scopes,
            "code_challenge_method": "S256",
            "default_timeout": TIMEOUT,
            **({} if settings.client_secret else {"token_endpoint_auth_method": "none"}),
        },
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT:
        raise SignOnFailed("the provider's token has no usable subject")
    return subject


def groups_of(claims: Mapping[str, Any], path: str) -> frozenset[str]:
    """The texts at a claim, which may be inside others: `realm_access.roles`."""
    found = _at(claims, path)
    if isinstance(found, str):
        return frozenset({found})
    if not isinstance(found, list):
        return frozenset()
    return frozenset(each for each in found[:MOST_GROUPS] if isinstance(each, str))


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """A claim's own name may have dots, too, as those that are addresses have."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
