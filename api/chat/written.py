"""What a user writes: a message and the texts attached to it, within the bounds of both."""

from typing import Annotated

from ninja import Schema
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from api.chat.attachments import MOST_ATTACHMENTS, MOST_CHARACTERS
from api.http.parsing import Body, StorableText


def not_blank(text: str) -> str:
    """The text. Raises PydanticCustomError if nothing is to be seen in it."""
    if not text.strip():
        raise PydanticCustomError("blank", "must not be empty")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


Content = Annotated[StorableText, Field(max_length=MOST_CHARACTERS)]


class Attachment(Body):
    """A text that belongs to a message."""

    name: Annotated[
        StorableText,
        AfterValidator(_one_line),
        AfterValidator(not_blank),
        Field(max_length=200),
    ]
    text: Annotated[StorableText, AfterValidator(not_blank), Field(max_length=MOST_CHARACTERS)]


def _is_bounded(attachments: list[Attachment]) -> list[Attachment]:
    check_size(sum(len(file.text) for file in attachments))
    return attachments


def check_size(characters: int) -> None:
    """Raises PydanticCustomError if a message has more with its attachments than it may."""
    if characters > MOST_CHARACTERS:
        reason = "the message and its attachments have {count} characters, at most {max_length}"
        context = {"count": characters, "max_length": MOST_CHARACTERS}
        raise PydanticCustomError("string_too_long", reason, context)


Attachments = Annotated[
    list[Attachment], Field(max_length=MOST_ATTACHMENTS), AfterValidator(_is_bounded)
]


class Written(Body):
    """A message of the user. With attachments it may have no text of its own."""

    # Before the content, whose bounds depend on them.
    attachments: Attachments = Field(default_factory=list)
    content: Annotated[Content | None, Field(validate_default=True)] = None

    @field_validator("content")
    @classmethod
    def _is_a_message(cls, content: str | None, info: ValidationInfo) -> str | None:
        attachments: list[Attachment] = info.data.get("attachments", [])
        if not attachments:
            return content if content is None else not_blank(content)
        content = content or ""
        check_size(len(content) + sum(len(file.text) for file in attachments))
        return content

    def stored_attachments(self) -> list[dict[str, str]]:
        """As the database has them."""
        return [file.model_dump() for file in self.attachments]


class AttachedText(Schema):
    """A text that belongs to a message."""

    name: str
    text: str
