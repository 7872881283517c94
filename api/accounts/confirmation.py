"""How somebody confirms what cannot be undone: with a password, if one can be checked here."""

from typing import Literal

from django.conf import settings

from api.accounts.models import User
from api.identities.linking import LDAP

Confirmation = Literal["password", "name"]


async def confirmation_of(user: User) -> Confirmation:
    """A provider of single sign-on lets nobody check its passwords, and accounts that login links
    alone reach have none: those people type their name.
    """
    if user.has_usable_password():
        return "password"
    in_directory = await user.identities.filter(provider=LDAP).aexists()
    if in_directory and settings.ENV.identities.ldap is not None:
        return "password"
    return "name"
