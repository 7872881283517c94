"""Texts attached to a message, and the prompt that they make together with it. Pure.

Stored as `[{"name", "text"}]`; null for none, also in rows of the former release.
"""

import re
from collections.abc import Mapping, Sequence

MOST_ATTACHMENTS = 8  # of one message
MOST_CHARACTERS = 100_000  # of a message, its attachments included

Stored = Sequence[Mapping[str, str]]

_BACKTICKS = re.compile(r"`+")
_SHORTEST_FENCE = 3


def prompt(content: str, attachments: Stored | None) -> str:
    """What the model reads: each attachment as a fenced block below its name, then the message."""
    parts = [_block(file["name"], file["text"]) for file in attachments or ()]
    if content.strip():
        parts.append(content)
    return "\n\n".join(parts)


def _block(name: str, text: str) -> str:
    """The fence is longer than any in the text, so that nothing in there can end it."""
    longest = max(map(len, _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(_SHORTEST_FENCE, longest + 1)
    return f"Attached file: {name}\n{fence}\n{text.rstrip()}\n{fence}"
