"""Logprobs in OpenAI's two shapes."""

import codecs
from collections.abc import Sequence
from typing import Any

from broker.wire import TokenLogprob


def for_chat(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """`logprobs` of a chat answer or a part of it; None if there are none."""
    if not logprobs:
        return None
    content = []
    for entry in logprobs:
        token = _chat_token(entry.token, entry.logprob)
        token["top_logprobs"] = [_chat_token(*alternative) for alternative in entry.top]
        content.append(token)
    return {"content": content, "refusal": None}


def for_text(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """`logprobs` of a text or a part of it; None if there are none.

    `offset`: characters of the text before this part.
    """
    if not logprobs:
        return None
    tokens: list[str] = []
    offsets: list[int] = []
    top: list[dict[str, float]] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for entry in logprobs:
        name = token_name(entry.token)
        tokens.append(name)
        offsets.append(offset)
        offset += len(decoder.decode(entry.token))
        alternatives = {token_name(token): logprob for token, logprob in entry.top}
        alternatives[name] = entry.logprob
        top.append(alternatives)
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in logprobs],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _chat_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def token_name(token: bytes) -> str:
    """A token as the key of an object. Parts of characters are escaped, to stay distinct."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
