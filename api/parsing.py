"""Request bodies: strict UTF-8 JSON, checked by strict models."""

from typing import Annotated, Any

import msgspec
from django.http import HttpRequest
from ninja.parser import Parser
from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from api.errors import ApiError


class StrictParser(Parser):
    """Reads JSON bodies; anything else is refused with the reason."""

    def parse_body(self, request: HttpRequest) -> Any:
        """Raises ApiError 400 for bytes that are not UTF-8 or not JSON."""
        try:
            return msgspec.json.decode(request.body)
        except UnicodeDecodeError as error:
            raise ApiError(400, f"body: not UTF-8 (byte {error.start})", field="body") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise ApiError(400, f"body: not JSON ({error})", field="body") from error


class Body(BaseModel):
    """Base of request bodies: types are not converted, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _storable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("nul", "must not contain the character U+0000")
    return text


StorableText = Annotated[str, AfterValidator(_storable)]  # PostgreSQL refuses U+0000
