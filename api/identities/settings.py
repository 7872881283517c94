"""How the directory and the provider are reached, by environment variables. Reads secrets' files.

environment.py turns ValueError into the operator's error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from api.identities.roles import RoleGroups

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MEMBER_ATTRIBUTES = ("member", "uniqueMember", "memberUid", "nested")
_HOURS, _MOST_HOURS = 12, 8760
_LONGEST_LABEL = 60
_LONGEST_ISSUER = 255
_DEFAULT_FILTER = "(uid=%(user)s)"
_SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True, kw_only=True)
class LdapSettings:
    """A directory. `url`: one or several servers; `identifier`: what of an entry never changes."""

    url: str
    start_tls: bool
    ca: str
    bind_dn: str
    bind_password: str = field(repr=False)
    user_base: str
    user_filter: str
    group_base: str
    member: str
    identifier: str
    roles: RoleGroups


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """A provider. `label`: on the button; `role_claim`: a path such as `realm_access.roles`."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: str
    name_claim: str
    role_claim: str
    label: str
    roles: RoleGroups


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """Both, where they are used. `session_hours`: after which people must log in again."""

    ldap: LdapSettings | None = None
    oidc: OidcSettings | None = None
    session_hours: int = _HOURS


def read(environ: Mapping[str, str]) -> IdentitySettings:
    """Raises ValueError, with the variable's name."""
    hours = environ.get("CANOPY_IDENTITY_HOURS") or str(_HOURS)
    if not hours.isascii() or not hours.isdecimal() or not 0 < int(hours[:5]) <= _MOST_HOURS:
        raise ValueError(
            f"CANOPY_IDENTITY_HOURS must be hours from 1 to {_MOST_HOURS}, not {hours[:50]!r}"
        )
    return IdentitySettings(_ldap(environ), _oidc(environ), int(hours))


def _ldap(environ: Mapping[str, str]) -> LdapSettings | None:
    urls = environ.get("CANOPY_LDAP_URL", "").replace(",", " ").split()
    if not urls:
        return None
    start_tls = _start_tls(environ, urls)
    roles = _roles(environ, "CANOPY_LDAP")
    group_base = environ.get("CANOPY_LDAP_GROUP_BASE", "")
    if roles.named and not group_base:
        raise ValueError("CANOPY_LDAP_GROUP_BASE must say where the groups are")
    member = environ.get("CANOPY_LDAP_MEMBER") or MEMBER_ATTRIBUTES[0]
    if member not in MEMBER_ATTRIBUTES:
        raise ValueError(
            f"CANOPY_LDAP_MEMBER must be one of {', '.join(MEMBER_ATTRIBUTES)}, not {member[:50]!r}"
        )
    return LdapSettings(
        url=" ".join(urls),
        start_tls=start_tls,
        ca=_ca(environ, needed=start_tls or urls[0].startswith("ldaps:")),
        bind_dn=environ.get("CANOPY_LDAP_BIND_DN", ""),
        bind_password=_secret(environ, "CANOPY_LDAP_BIND_PASSWORD_FILE"),
        user_base=_required(environ, "CANOPY_LDAP_USER_BASE", "ou=people,dc=example,dc=org"),
        user_filter=_filter(environ.get("CANOPY_LDAP_USER_FILTER") or _DEFAULT_FILTER),
        group_base=group_base,
        member=member,
        identifier=environ.get("CANOPY_LDAP_IDENTIFIER") or "entryUUID",
        roles=roles,
    )


def _start_tls(environ: Mapping[str, str], urls: list[str]) -> bool:
    """Refuses what would send passwords unencrypted without saying so."""
    wanted = environ.get("CANOPY_LDAP_START_TLS", "").strip().lower()
    if wanted not in ("", "yes", "no"):
        raise ValueError(f"CANOPY_LDAP_START_TLS must be yes or no, not {wanted[:50]!r}")
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(
                f"CANOPY_LDAP_URL must be like ldaps://ldap.example.org, not {url[:100]!r}"
            )
        if parts.scheme == "ldap" and not wanted and parts.hostname not in LOOPBACK:
            raise ValueError(
                "CANOPY_LDAP_URL would send passwords unencrypted: use ldaps://, or set "
                "CANOPY_LDAP_START_TLS to yes (or to no, on a network that you trust)"
            )
        if parts.scheme == "ldaps" and wanted == "yes":
            raise ValueError("CANOPY_LDAP_START_TLS is for ldap://; CANOPY_LDAP_URL has ldaps://")
    return wanted == "yes"


def _ca(environ: Mapping[str, str], *, needed: bool) -> str:
    file = Path(environ.get("CANOPY_LDAP_CA") or _SYSTEM_CA)
    if needed and not file.is_file():
        raise ValueError(f"CANOPY_LDAP_CA names no file: {str(file)[:200]!r}")
    return str(file.absolute())


def _filter(text: str) -> str:
    """A filter in which %(user)s stands for the name, and nothing else is replaced."""
    if not (text.startswith("(") and text.endswith(")") and "%(user)s" in text):
        raise ValueError(
            "CANOPY_LDAP_USER_FILTER must be a filter with %(user)s for the name, such as "
            f"{_DEFAULT_FILTER}, not {text[:100]!r}"
        )
    if "%" in text.replace("%(user)s", ""):
        raise ValueError("CANOPY_LDAP_USER_FILTER may have no % but in %(user)s")
    return text


def _oidc(environ: Mapping[str, str]) -> OidcSettings | None:
    issuer = environ.get("CANOPY_OIDC_ISSUER", "")
    if not issuer:
        return None
    parts = urlsplit(issuer)
    encrypted = parts.scheme == "https"
    if len(issuer) > _LONGEST_ISSUER or not (
        encrypted or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    ):
        raise ValueError(
            f"CANOPY_OIDC_ISSUER must be like https://id.example.org, not {issuer[:100]!r}"
        )
    scopes = environ.get("CANOPY_OIDC_SCOPES") or "openid profile"
    if "openid" not in scopes.split():
        raise ValueError("CANOPY_OIDC_SCOPES must have openid among them")
    return OidcSettings(
        issuer=issuer,
        client_id=_required(environ, "CANOPY_OIDC_CLIENT_ID", "canopy"),
        client_secret=_secret(environ, "CANOPY_OIDC_CLIENT_SECRET_FILE"),
        scopes=scopes,
        name_claim=environ.get("CANOPY_OIDC_NAME_CLAIM") or "preferred_username",
        role_claim=environ.get("CANOPY_OIDC_ROLE_CLAIM") or "groups",
        label=_label(environ.get("CANOPY_OIDC_LABEL") or parts.hostname or issuer),
        roles=_roles(environ, "CANOPY_OIDC"),
    )


def _label(text: str) -> str:
    if len(text) > _LONGEST_LABEL or not text.isprintable():
        raise ValueError(f"CANOPY_OIDC_LABEL must have at most {_LONGEST_LABEL} characters")
    return text


def _roles(environ: Mapping[str, str], prefix: str) -> RoleGroups:
    """Groups are separated by semicolons, as a DN has commas and a name may have spaces."""

    def groups(name: str) -> frozenset[str]:
        parts = (part.strip() for part in environ.get(f"{prefix}_{name}", "").split(";"))
        return frozenset(part for part in parts if part)

    return RoleGroups(
        users=groups("USER_GROUPS"),
        staff=groups("STAFF_GROUPS"),
        administrators=groups("ADMIN_GROUPS"),
    )


def _required(environ: Mapping[str, str], name: str, example: str) -> str:
    text = environ.get(name, "").strip()
    if not text or not text.isprintable():
        raise ValueError(f"{name} must be set, such as {example}")
    return text


def _secret(environ: Mapping[str, str], name: str) -> str:
    """What a file holds: a variable would be in the environment of every process."""
    file = environ.get(name, "")
    if not file:
        return ""
    try:
        return re.sub(r"[\r\n]+\Z", "", Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read ({file[:200]}): {error}") from error
