"""`user link` and `user unlink`: an administrator decides whose account an identity is."""

from django.conf import settings

from api.accounts.models import User
from api.accounts.people import AccountError
from api.errors import ApiError
from api.identities import linking


def link(user: User, entry: str | None, subject: str | None) -> str:
    """Links the account to the directory's entry of that name, or to the provider's subject.

    Returns what has happened. Raises AccountError.
    """
    if bool(entry) == bool(subject):
        raise AccountError("say either --ldap ENTRY, a name in the directory, or --oidc SUBJECT")
    provider = linking.LDAP if entry else _issuer()
    linking.link(user, provider, _subject_of_entry(entry) if entry else _bounded(subject or ""))
    return f"is linked to {provider}, which alone checks the password from now on"


def unlink(user: User) -> str:
    """Ends all links of the account; returns what has happened. Raises AccountError."""
    if not linking.unlink(user):
        raise AccountError(f"nobody else knows {user.username!r}")
    return "is linked to nobody any more; ./canopy user password gives it a password"


def _subject_of_entry(name: str) -> str:
    if settings.ENV.identities.ldap is None:
        raise AccountError("no directory is configured: set CANOPY_LDAP_URL as for the instance")
    from api.identities.ldap_backend import DirectoryBackend  # needs python-ldap

    try:
        subject = DirectoryBackend().subject_named(name)
    except ApiError as error:
        raise AccountError(error.message) from error
    if subject is None:
        raise AccountError(f"the directory knows no {name!r}")
    return subject


def _issuer() -> str:
    provider = settings.ENV.identities.oidc
    if provider is None:
        raise AccountError("no provider is configured: set CANOPY_OIDC_ISSUER as for the instance")
    return str(provider.issuer)


def _bounded(subject: str) -> str:
    if not 0 < len(subject) <= linking.LONGEST_SUBJECT:
        raise AccountError(f"a subject has 1 to {linking.LONGEST_SUBJECT} characters")
    return subject
