"""A page of a list, as OpenAI's clients read it: the next page begins after `last_id`."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

from ninja import Schema


class Identified(Protocol):
    """What a list has."""

    id: str


class Listing(Schema):
    """A page. Subclasses add `data`, the list of what is on it."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def page(cls, found: Sequence[Identified], limit: int) -> Self:
        """The first `limit` of what was found; one more means that there are more."""
        data = list(found[:limit])
        fields: dict[str, Any] = {
            "data": data,
            "first_id": data[0].id if data else None,
            "last_id": data[-1].id if data else None,
            "has_more": len(found) > limit,
        }
        return cls(**fields)
