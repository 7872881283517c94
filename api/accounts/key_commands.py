"""`python -m api key …`: API keys from the command line (`./canopy key`)."""

import argparse
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.accounts.models import ApiKey, User

_SPAN = re.compile(r"([1-9]\d{0,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class BadKey(ValueError):
    """A key that cannot be made or found; one line says why. The caller's to mend."""


def add_arguments(commands: Any) -> None:
    """Adds `create-key` and `key`."""
    create = commands.add_parser("create-key", help="print a new API key")
    create.add_argument("--user", help="whose key; default: the first administrator")
    create.add_argument("--label", default="")
    create.add_argument("--expires", help="30d, 12h, 45m, or a date: 2027-01-31")
    create.add_argument("--models", default="", help="only these, separated by commas")
    create.add_argument("--endpoints", default="", help="only these families, such as chat")
    parser = commands.add_parser("key", help="list and revoke API keys")
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", required=True)
    listed = actions.add_parser("list")
    listed.add_argument("--user", help="whose keys; default: everybody's")
    actions.add_parser("revoke").add_argument("name", help="the key's public part")


def create(options: argparse.Namespace, user: "User") -> int:
    """Prints a new key, alone on standard output; returns the exit status."""
    from django.utils import timezone

    from api.accounts import keys

    try:
        expires = expiry(options.expires, timezone.now()) if options.expires else None
        endpoints = _families(options.endpoints)
    except BadKey as error:
        print(error, file=sys.stderr)
        return 1
    models = _names(options.models)
    key = keys.create(user, options.label[:80], expires=expires, models=models, endpoints=endpoints)
    print(key)
    return 0


def run(options: argparse.Namespace) -> int:
    """Lists or revokes, on a migrated database; returns the exit status."""
    try:
        if options.action == "list":
            _print_list(_listed(options.user), options.json)
        else:
            _revoke(options.name, options.json)
    except BadKey as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def expiry(text: str, now: datetime) -> datetime:
    """The moment that `text` means: a span from now, or a date or time (UTC). Raises BadKey."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        try:
            return now + timedelta(**{_UNITS[span[2]]: int(span[1])})
        except OverflowError:
            raise BadKey(f"--expires: {text} is too far away") from None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadKey(f"--expires must be like 30d, 12h or 2027-01-31, not {text!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment <= now:
        raise BadKey(f"--expires: {text} is over")
    return moment


def _families(text: str) -> list[str]:
    from api.accounts.scopes import FAMILIES

    names = _names(text)
    for name in names:
        if name not in FAMILIES:
            raise BadKey(f"--endpoints: there is no {name!r}, only {', '.join(FAMILIES)}")
    return names


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _listed(name: str | None) -> "list[ApiKey]":
    from api.accounts import people
    from api.accounts.models import ApiKey

    rows = ApiKey.objects.filter(revoked=False).select_related("user").order_by("user", "-pk")
    if name is not None:
        try:
            rows = rows.filter(user=people.find(name))
        except people.AccountError as error:
            raise BadKey(str(error)) from error
    return list(rows)


def _revoke(name: str, as_json: bool) -> None:
    from api.accounts.models import ApiKey
    from api.operate.audit.record import record_command

    public = name.removeprefix("canopy_").partition("_")[0]
    if not ApiKey.objects.filter(name=public, revoked=False).update(revoked=True):
        raise BadKey(f"there is no valid key {public!r}; ./canopy key list has the names")
    record_command("key revoke", public, "")
    if as_json:
        print(json.dumps({"revoked": public}))
    else:
        print(f"{public} is revoked: what runs for it ends within a second")


def _print_list(rows: "list[ApiKey]", as_json: bool) -> None:
    if as_json:
        print(json.dumps({"keys": [_as_json(row) for row in rows]}))
        return
    width = max((len(row.user.username) for row in rows), default=0)
    for row in rows:
        limits = [*row.allowed_models, *row.allowed_endpoints]
        line = (
            f"{row.name}  {row.user.username:<{width}}  last used {_moment(row.last_used)}  "
            f"expires {_moment(row.expires)}  {', '.join(limits) or 'everything'}  {row.label}"
        )
        print(line.rstrip())


def _as_json(row: "ApiKey") -> dict[str, Any]:
    return {
        "name": row.name,
        "user": row.user.username,
        "label": row.label,
        "created": row.created.isoformat(timespec="seconds"),
        "last_used": _moment(row.last_used, None),
        "expires": _moment(row.expires, None),
        "models": row.allowed_models,
        "endpoints": row.allowed_endpoints,
    }


def _moment(moment: datetime | None, never: str | None = "never") -> str | None:
    return never if moment is None else moment.isoformat(timespec="seconds")
