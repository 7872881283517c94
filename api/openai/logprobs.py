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


def for_text(
    logprobs: Sequence[TokenLogprob],
    offset: int,
    alternatives: int | None = None,
    *,
    begins: bool = False,
) -> dict[str, Any] | None:
    """`logprobs` of a text or a part of it; None if there are none.

    `offset`: characters of the text before this part; below 0 where its first tokens are not in the
    text. `alternatives`: how many to tell, at most. `begins`: with the first token of a prompt, of
    which nothing is known.
    """
    if not logprobs:
        return None
    tokens: list[str] = []
    offsets: list[int] = []
    top: list[dict[str, float] | None] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for entry in logprobs:
        name = token_name(entry.token)
        tokens.append(name)
        offsets.append(max(0, offset))
        offset += len(decoder.decode(entry.token))
        likeliest = {token_name(token): logprob for token, logprob in entry.top[:alternatives]}
        likeliest[name] = entry.logprob
        top.append(likeliest)
    known: list[float | None] = [entry.logprob for entry in logprobs]
    if begins:
        known[0] = top[0] = None
    return {
        "tokens": tokens,
        "token_logprobs": known,
        "top_logprobs": top,
        "text_offset": offsets,
    }


def for_prompt(
    logprobs: Sequence[TokenLogprob], alternatives: int
) -> list[dict[str, dict[str, Any]] | None] | None:
    """vLLM's `prompt_logprobs`: by token id; of the first token nothing is known."""
    if not logprobs:
        return None
    told: list[dict[str, dict[str, Any]] | None] = [None]
    for entry in logprobs[1:]:
        ranked = list(zip(entry.ids[1:], entry.top, strict=False))[:alternatives]
        tokens: dict[str, dict[str, Any]] = {}
        for rank, (number, (token, logprob)) in enumerate(ranked, 1):
            tokens[str(number)] = _ranked_token(token, logprob, rank)
        for number in entry.ids[:1]:
            tokens.setdefault(str(number), _ranked_token(entry.token, entry.logprob, None))
        told.append(tokens)
    return told


def _ranked_token(token: bytes, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": token_name(token)}


def _chat_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def token_name(token: bytes) -> str:
    """A token as the key of an object. Parts of characters are escaped, to stay distinct."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
