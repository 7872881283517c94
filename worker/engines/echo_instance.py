"""A small text that keeps a grammar, for the echo engine: no model, no chance.

At each byte llguidance says which ones may follow, and the one that most likely comes to an end is
taken: what closes a string, an object or a list, then short values.
"""

from llguidance import LLMatcher, LLTokenizer

from broker.wire import Grammar
from worker.engines.base import InvalidRequest
from worker.engines.deep_stack import run_deep
from worker.engines.grammar_source import (
    Unsatisfiable,
    compilable,
    parser_limits,
    refusal,
    why_stopped,
)

SECONDS = 5.0
_MAX_BYTES = 1024
_PLAIN = "152346789ntf0abcdeghijklmopqrsuvwxyz_-.:/@ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_INSIDE = '"' + _PLAIN  # a JSON string: its end first
_OUTSIDE = "}],:" + _PLAIN + '"[{'
_RECENT = 6  # of so many bytes, at most half are the same if others may come


def instance(grammar: Grammar) -> str:
    """Blocks. Raises InvalidRequest for a grammar that cannot be kept, or not in a short text."""
    source = compilable(grammar)
    try:
        return run_deep(lambda: _grown(source), SECONDS)
    except TimeoutError as error:
        raise InvalidRequest(
            f"the grammar takes the echo engine more than {SECONDS:.0f} s; simplify it"
        ) from error
    except Unsatisfiable as error:
        raise refusal(grammar, str(error)) from error


def _grown(source: str) -> str:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=parser_limits())
    if matcher.is_error():
        raise Unsatisfiable(why_stopped(matcher))
    text = bytearray()
    inside = escaped = False  # a JSON string, and behind its backslash
    while not matcher.is_accepting():
        mask = matcher.compute_logit_bias()
        if matcher.is_stopped():
            raise Unsatisfiable(why_stopped(matcher))
        allowed = [byte for byte in range(256) if mask[byte]]
        if len(text) >= _MAX_BYTES or not allowed:
            raise Unsatisfiable("the echo engine finds no short text for it; use a model")
        byte = _best(allowed, text, inside)
        matcher.consume_token(byte)
        text.append(byte)
        if byte == ord('"') and not escaped:
            inside = not inside
        escaped = byte == ord("\\") and not escaped
    return text.decode()


def _best(allowed: list[int], text: bytearray, inside: bool) -> int:
    """Rather none that has come again and again: it may never lead to an end."""
    order = _INSIDE if inside else _OUTSIDE
    recent = text[-_RECENT:]

    def rank(byte: int) -> tuple[bool, int, int]:
        place = order.find(chr(byte))
        if place < 0:
            place = len(order)
        return recent.count(byte) >= _RECENT // 2, place, byte

    return min(allowed, key=rank)
