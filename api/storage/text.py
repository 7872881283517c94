"""Text as every database takes it. Without the web framework: models import it."""


def storable(text: str) -> str:
    """The text with U+FFFD for U+0000, which PostgreSQL refuses; of the same length."""
    return text.replace("\x00", "\ufffd")
