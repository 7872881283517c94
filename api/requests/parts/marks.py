"""Marks in a growing text: where one stands, and how much of the end may begin one."""

from collections.abc import Iterable


def first_mark(text: str, marks: Iterable[str]) -> tuple[int, str] | None:
    """Where the first mark begins, and which one it is; None if there is none."""
    found: tuple[int, str] | None = None
    for mark in marks:
        at = text.find(mark)
        if at >= 0 and (found is None or at < found[0]):
            found = (at, mark)
    return found


def undecided(text: str, marks: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    longest = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest


def trailing_space(text: str) -> int:
    """How many characters of white space end the text."""
    return len(text) - len(text.rstrip())
