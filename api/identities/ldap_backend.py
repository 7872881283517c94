"""Passwords that an LDAP directory checks: django-auth-ldap, with our rules about accounts.

The directory is asked about names that no account of this instance's own has: those accounts, and
wrong passwords for them, need no directory that answers.
"""

import hashlib
import re
import socket
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

import ldap
import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.dispatch import receiver
from django.http import HttpRequest
from django_auth_ldap import config
from django_auth_ldap.backend import LDAPBackend, _LDAPUser, ldap_error

from api.accounts.models import Identity, User
from api.errors import ServiceUnavailable
from api.identities import linking
from api.identities.settings import LdapSettings

TIMEOUT = 5  # seconds, for each step of a login
MOST_AT_ONCE = 4  # logins of this process that the directory checks at the same time
_WAIT_SECONDS = 5.0
_LDAPS_PORT = 636
_NAME = re.compile(r"[\w.@+-]{1,150}", re.ASCII)  # directories ignore case, spaces and accents
_AWAY = (
    ldap.SERVER_DOWN,
    ldap.TIMEOUT,
    ldap.CONNECT_ERROR,
    ldap.BUSY,
    ldap.UNAVAILABLE,
    ldap.TIMELIMIT_EXCEEDED,
)
_GROUP_TYPES = {
    "member": config.GroupOfNamesType,
    "uniqueMember": config.GroupOfUniqueNamesType,
    "memberUid": config.PosixGroupType,
    "nested": config.NestedGroupOfNamesType,
}
_turns = threading.BoundedSemaphore(MOST_AT_ONCE)
log = structlog.get_logger("canopy.api")


class DirectoryUnavailable(ServiceUnavailable):
    """The directory does not answer, or not as it should: the operator's to mend, then retry."""

    def __init__(self) -> None:
        super().__init__("the directory that checks this password does not answer; try again later")


class DirectoryBackend(LDAPBackend, ModelBackend):
    """Checks a password by binding with it, and takes the role from the groups.

    Of ModelBackend it has what sessions need: `aget_user`.
    """

    @property
    def default_settings(self) -> dict[str, Any]:
        """In place of Django's settings AUTH_LDAP_…"""
        return library_settings(_directory())

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None,
        **others: Any,
    ) -> User | None:  # fmt: skip
        """The user, if the directory knows name and password and the groups admit them.

        Raises DirectoryUnavailable.
        """
        if not username or not password or not _NAME.fullmatch(username):
            return None
        if _is_of_this_instance(username):
            return None
        if not _turns.acquire(timeout=_WAIT_SECONDS):
            raise DirectoryUnavailable
        try:
            user: User | None = super().authenticate(request, username=username, password=password)
            return user
        finally:
            _turns.release()

    def get_or_build_user(self, username: str, ldap_user: Any) -> tuple[User, bool]:
        """The linked account; nothing is left for the library to save."""
        rules = _directory().roles.normalized(normal_dn)
        groups = {normal_dn(dn) for dn in ldap_user.group_dns} if rules.named else set()
        try:
            user = linking.log_in(
                linking.LDAP, subject_of(ldap_user), username.lower(), groups, rules
            )
        except linking.NotAdmitted as error:
            log.info("not admitted", user=username, provider=linking.LDAP, reason=str(error))
            raise ldap_user.AuthenticationFailed(str(error)) from error
        return user, False

    def subject_named(self, username: str) -> str | None:
        """The lasting subject of an entry; None if there is none of that name."""
        ldap_user = _LDAPUser(self, username=username)
        return subject_of(ldap_user) if ldap_user.attrs is not None else None

    def get_user(self, user_id: int) -> User | None:
        """As with every other login: nobody who is disabled."""
        user: User | None = ModelBackend.get_user(self, user_id)
        return user

    async def aauthenticate(self, request: HttpRequest | None, **credentials: Any) -> User | None:
        """Never ModelBackend's, which would look for a password here."""
        user: User | None = await sync_to_async(self.authenticate)(request, **credentials)
        return user


@receiver(ldap_error, sender=DirectoryBackend)
def _on_error(exception: Exception, context: str, **others: Any) -> None:
    """A directory that is away, or refuses our own account, is no wrong password."""
    if context == "authenticate" and not isinstance(exception, _AWAY):
        return  # of this person alone: an expired password, a locked entry
    log.error("the directory cannot be asked", during=context, reason=_reason(exception))
    raise DirectoryUnavailable from exception


def library_settings(directory: LdapSettings) -> dict[str, Any]:
    """What django-auth-ldap calls its settings, without their prefix."""
    options: dict[int, Any] = {
        ldap.OPT_NETWORK_TIMEOUT: TIMEOUT,
        ldap.OPT_TIMEOUT: TIMEOUT,
        ldap.OPT_REFERRALS: 0,
        ldap.OPT_X_TLS_CACERTFILE: directory.ca,
        ldap.OPT_X_TLS_REQUIRE_CERT: ldap.OPT_X_TLS_DEMAND,
        ldap.OPT_X_TLS_NEWCTX: 0,  # the last one: makes the others count
    }
    attributes = ["1.1", directory.identifier]  # nothing else is read, but by what follows
    if directory.member == "memberUid":
        attributes += ["uid", "gidNumber"]
    search = config.LDAPSearch(
        directory.user_base, ldap.SCOPE_SUBTREE, directory.user_filter, attributes
    )
    groups = {}
    if directory.roles.named:
        kind = _GROUP_TYPES[directory.member]()
        groups["GROUP_TYPE"] = kind
        groups["GROUP_SEARCH"] = config.LDAPSearch(
            directory.group_base, ldap.SCOPE_SUBTREE, attrlist=["1.1"]
        )
    return {
        "SERVER_URI": lambda request: _answering(directory.url),
        "START_TLS": directory.start_tls,
        "CONNECTION_OPTIONS": options,
        "BIND_DN": directory.bind_dn,
        "BIND_PASSWORD": directory.bind_password,
        "USER_SEARCH": search,
        "USER_ATTRLIST": attributes,
        "ALWAYS_UPDATE_USER": False,
        "PERMIT_EMPTY_PASSWORD": False,
        **groups,
    }


def _answering(urls: str) -> str:
    """The servers to ask. libldap waits for ever for one that says nothing where TLS begins."""
    answering = [url for url in urls.split() if not url.startswith("ldaps:") or _speaks_tls(url)]
    if not answering:
        log.error("the directory cannot be asked", during="TLS", reason="no server answers")
        raise DirectoryUnavailable
    return " ".join(answering)


def _speaks_tls(url: str) -> bool:
    """Whether a handshake comes to its end; libldap verifies the certificate, in its own."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, parts.port or _LDAPS_PORT), TIMEOUT) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return True
    except OSError:
        return False


def subject_of(ldap_user: Any) -> str:
    """What stays when an entry is renamed; its DN where it has no such attribute."""
    values = (ldap_user.attrs or {}).get(_directory().identifier)
    value = values[0] if values else normal_dn(ldap_user.dn)
    text = value.hex() if isinstance(value, bytes) else str(value)
    if len(text) > linking.LONGEST_SUBJECT:  # two that only begin alike are two people
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text


def normal_dn(dn: str) -> str:
    """A DN without differences that have no meaning."""
    try:
        return str(ldap.dn.dn2str(ldap.dn.str2dn(dn.lower())))
    except ldap.DECODING_ERROR:
        return dn.lower()


def _is_of_this_instance(name: str) -> bool:
    """Whether an account has this name that is not the directory's."""
    if Identity.objects.filter(provider=linking.LDAP, user__username__iexact=name).exists():
        return False
    return User.objects.filter(username__iexact=name).exists()


def _directory() -> LdapSettings:
    directory: LdapSettings | None = settings.ENV.identities.ldap
    if directory is None:
        raise RuntimeError("no directory is configured")
    return directory


def _reason(error: Exception) -> str:
    """libldap's description: a dictionary, in which no password is."""
    details = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    parts = [type(error).__name__, details.get("desc", ""), details.get("info", "")]
    return ": ".join(str(part) for part in parts if part)
