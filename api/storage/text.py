"""Text as every database takes it. Without the web framework: models import it."""

from typing import Any


def storable(text: str) -> str:
    """The text with U+FFFD for U+0000, which PostgreSQL refuses; of the same length."""
    return text.replace("\x00", "\ufffd")


def storable_document(document: Any) -> Any:
    """The same for all texts of a JSON document within the bounds of a request's body."""
    if isinstance(document, str):
        return storable(document)
    if isinstance(document, list):
        return [storable_document(value) for value in document]
    if isinstance(document, dict):
        return {storable(name): storable_document(value) for name, value in document.items()}
    return document
