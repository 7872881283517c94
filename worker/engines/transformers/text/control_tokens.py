"""Control tokens (`<end_of_turn>`, `<|im_start|>`, `[INST]`) are the template's alone: in a user's
text they are text.

A content that has one is marked before the template is rendered, so that afterwards the template's
own control tokens are known from the user's. The text between two of the template's is then turned
into tokens by a tokenizer that knows no control tokens; the template's own ones divide it in any
case, so nothing else changes.

The transformers library has `sanitize_control_tokens` for the same purpose. It tries a pattern of
all control tokens at every place, and encodes each one found by itself: seconds with the
interpreter's lock held for a text that is made for it. Here a text is looked through once, outside
the lock.
"""

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

_MARKER = re.compile(r"<.+>|\[.+\]")  # how control tokens look that are not called special
_TAG = re.compile(r"</?[a-z]+[0-9]?>")  # of HTML: a single token in some vocabularies
# Two lone surrogates stand for a control token: no text that can be encoded has them.
_MARK = re.compile("[\udc00-\udfff][\ud800-\udbff]")
_HALVES = 1024  # of each kind
_MASK = "\ufffd\ufffd"  # as long as a mark
_ANCHOR = "\ufffe\uffffanchor\uffff\ufffe"  # a token before a text that is not the beginning of all


class Marks:
    """The control tokens that were found in one job's contents, and what stands for each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """What stands for a control token."""
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        return chr(0xDC00 + number % _HALVES) + chr(0xD800 + number // _HALVES)

    def restored(self, text: str) -> str:
        """With the control tokens in place of what stands for them."""
        return _MARK.sub(self._text_of, text)

    def _text_of(self, mark: re.Match[str]) -> str:
        halves = mark[0]
        return self._texts[ord(halves[0]) - 0xDC00 + (ord(halves[1]) - 0xD800) * _HALVES]


class ControlTokens:
    """Those of one tokenizer. Used by one thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added: dict[int, AddedToken] = dict(sorted(tokenizer.added_tokens_decoder.items()))
        template = str(tokenizer.chat_template or "")
        self._control = {number for number, token in added.items() if _controls(token, template)}
        self._special = {token.content.strip() for token in added.values() if token.special}
        core = getattr(tokenizer, "backend_tokenizer", None)
        self._core = core if isinstance(core, Tokenizer) else None
        self._finder = self._make_finder([added[number] for number in self._control])
        self._plain = self._make_plain(added)

    def found(self, contents: list[str]) -> bool:
        """Whether any of them has a control token."""
        return any(self._spans_of(contents))

    def marked(self, content: str, marks: Marks, *, special_only: bool = False) -> str:
        """The content with marks in place of control tokens. `special_only`: those not called
        special stay.
        """
        [spans] = self._spans_of([content])
        pieces, at = [], 0
        for start, end in spans:
            text = content[start:end]
            if not special_only or text.strip() in self._special:
                pieces += [content[at:start], marks.mark(text)]
                at = end
        return "".join([*pieces, content[at:]])

    def encode(self, text: str, marks: Marks) -> list[int]:
        """Ids of a text with marks: what is marked is text, every other control token is one.
        Without <bos>.
        """
        ids: list[int] = []
        plain, at = "", 0  # `plain`: what has no marks and is tokenised as it always was
        [owned] = self._spans_of([_MARK.sub(_MASK, text)])
        for start, end in [*owned, (len(text), len(text))]:
            between = text[at:start]
            if _MARK.search(between):
                ids += self._usual(plain)
                ids += self._without_control(marks.restored(between), first=at == 0)
                plain = ""
            else:
                plain += between
            plain += text[start:end]
            at = end
        return ids + self._usual(plain)

    def _usual(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _without_control(self, text: str, *, first: bool) -> list[int]:
        """`first`: nothing comes before it; some tokenizers put a space there."""
        if self._plain is None:
            return list(
                self._tokenizer(
                    text, add_special_tokens=False, split_special_tokens=True, verbose=False
                )["input_ids"]
            )
        if first or _ANCHOR in text:
            return _ids(self._plain, text)
        return _ids(self._plain, _ANCHOR + text)[1:]

    def _spans_of(self, contents: list[str]) -> list[list[tuple[int, int]]]:
        """Where in each content a control token is, in characters, in order."""
        encodings = self._finder.encode_batch(contents, add_special_tokens=False)
        return [_spans(encoding) for encoding in encodings]

    def _make_finder(self, control: list[AddedToken]) -> Tokenizer:
        """Everything but a control token is token 0 to it."""
        finder = Tokenizer(models.WordLevel({"other": 0}, unk_token="other"))  # noqa: S106 - no password
        if (
            self._core is not None
            and self._core.normalizer is not None
            and any(it.normalized for it in control)
        ):
            finder.normalizer = self._core.normalizer
        finder.add_tokens(control)
        return finder

    def _make_plain(self, added: dict[int, AddedToken]) -> Tokenizer | None:
        """The tokenizer as it would be without control tokens; None if it cannot be had. The
        vocabulary is shared.
        """
        if self._core is None:
            return None
        plain = Tokenizer(self._core.model)
        if self._core.normalizer is not None:
            plain.normalizer = self._core.normalizer
        if self._core.pre_tokenizer is not None:
            plain.pre_tokenizer = self._core.pre_tokenizer
        plain.add_tokens(
            [_as(token, special=number in self._control) for number, token in added.items()]
        )
        plain.add_tokens([AddedToken(_ANCHOR, normalized=False)])
        plain.encode_special_tokens = True  # so those that are called special are not looked for
        if any(plain.token_to_id(token.content) != number for number, token in added.items()):
            return None
        return plain


def _controls(token: AddedToken, template: str) -> bool:
    """Called special, or written by the template, or made like one. HTML tags and runs of spaces
    are text, unless the template writes them.
    """
    text = token.content.strip()
    if token.special or not text:
        return bool(text)
    if _TAG.fullmatch(text):
        name = text.strip("</>")
        return f"<{name}>" in template or f"</{name}>" in template
    return text in template or _MARKER.fullmatch(text) is not None


def _as(token: AddedToken, *, special: bool) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """In a batch of one, for which the interpreter's lock is given up."""
    [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _spans(encoding: Any) -> list[tuple[int, int]]:
    found: Iterable[tuple[int, tuple[int, int]]] = zip(encoding.ids, encoding.offsets, strict=True)
    return [span for number, span in found if number]
