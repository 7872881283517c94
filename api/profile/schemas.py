"""Requests and responses of a person's own account."""

from datetime import date, datetime
from typing import Annotated

from ninja import Schema
from pydantic import AliasChoices, AwareDatetime, Field, StringConstraints

from api.accounts.scopes import Family
from api.http.parsing import Body, StorableText

Password = Annotated[str, Field(max_length=4096)]
Label = Annotated[
    StorableText, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)
]


ModelName = Annotated[StorableText, StringConstraints(min_length=1, max_length=255)]
MAX_SCOPES = 100
Moment = Annotated[AwareDatetime, Field(strict=False)]  # JSON has texts for them


class FirstPassword(Body):
    """The name and the password of an account that has no password yet."""

    name: StorableText = Field(min_length=1, max_length=150)
    password: Password


class NewPassword(Body):
    """A change of the password. API keys stay valid, unless `revoke_keys`."""

    current: Password
    new: Password
    revoke_keys: bool = False


class Confirmation(Body):
    """For what cannot be undone: the password, or the name of who has none that is checked here."""

    password: Password = ""
    name: StorableText = Field(default="", max_length=150)


class NewKey(Body):
    """An API key to be made; `label`: what it is for.

    `models` and `endpoints`: what it may use and call; empty: everything.
    """

    label: Label
    expires: Moment | None = None
    models: list[ModelName] = Field(default=[], max_length=MAX_SCOPES)
    endpoints: list[Family] = Field(default=[], max_length=MAX_SCOPES)


class ListedKey(Schema):
    """An API key as it is listed. `name`: its public part."""

    id: int
    name: str
    label: str
    created: datetime
    last_used: datetime | None
    expires: datetime | None
    models: list[str] = Field(validation_alias=AliasChoices("models", "allowed_models"))
    endpoints: list[str] = Field(validation_alias=AliasChoices("endpoints", "allowed_endpoints"))


class CreatedKey(ListedKey):
    """A new key. `key` is shown this once."""

    key: str


class KeyList(Schema):
    """The user's keys, newest first."""

    keys: list[ListedKey]


class Login(Schema):
    """A browser in which the user is logged in. `current`: this one."""

    id: int
    browser: str
    created: datetime
    last_used: datetime
    current: bool


class Logins(Schema):
    """The user's browsers, latest first."""

    sessions: list[Login]


class DailyUse(Schema):
    """What a model answered on a day (UTC)."""

    day: date
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class KeyUse(Schema):
    """What was asked with a key; `key`: its public part, empty for the pages."""

    key: str
    label: str
    model: str
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class Usage(Schema):
    """The last `days`: the stored answers, newest day first, and all requests by key and model."""

    days: int
    use: list[DailyUse]
    keys: list[KeyUse]
