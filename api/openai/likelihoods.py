"""Logprobs in OpenAI's two shapes."""

import codecs
from collections.abc import Sequence
from typing import Any

from broker.wire import TokenLogprob


def of_chat(told: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """`logprobs` of a chat answer, or a piece of it; None if there are none."""
    if not told:
        return None
    content = [
        {
            **_chat_token(each.token, each.logprob),
            "top_logprobs": [_chat_token(*other) for other in each.top],
        }
        for each in told
    ]
    return {"content": content, "refusal": None}


def of_text(told: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """`logprobs` of a completed text, or a piece of it that begins at the text's character `offset`."""
    if not told:
        return None
    offsets, characters = [], codecs.getincrementaldecoder("utf-8")(errors="replace")
    for each in told:
        offsets.append(offset)
        offset += len(characters.decode(each.token))
    return {
        "tokens": [_name(each.token) for each in told],
        "token_logprobs": [each.logprob for each in told],
        "top_logprobs": [
            {_name(token): logprob for token, logprob in (*each.top, (each.token, each.logprob))}
            for each in told
        ],
        "text_offset": offsets,
    }


def _chat_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def _name(token: bytes) -> str:
    """A token as the key of an object: parts of characters must not all look the same."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
