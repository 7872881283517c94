"""What the tests of /v1/ have in common."""

import json
from typing import Any

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


def events(text: str) -> list[str]:
    """The lines of a stream that carry something."""
    return [line for line in text.split("\n\n") if line]


def payloads(text: str) -> list[dict[str, Any]]:
    """The JSON of a stream's data events."""
    return [json.loads(line[6:]) for line in events(text) if line.startswith("data: {")]
