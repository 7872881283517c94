"""Control tokens (`<end_of_turn>`, `<|im_start|>`, `[INST]`) belong to the template alone: in a
user's text they are text.

They are marked in a content before the template is rendered, so that afterwards the template's own
can be told from the user's. The text between two of the template's control tokens is then tokenized
by a tokenizer that knows none. The template's own divide the text in any case, so nothing else
changes.

transformers' `sanitize_control_tokens` has the same purpose, but tries a pattern of all control
tokens at every position and encodes each match by itself: on text made for it, seconds with the
interpreter's lock held. Here a text is scanned once, outside the lock.
"""

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

_MARKER = re.compile(r"<.+>|\[.+\]")  # the look of control tokens that are not called special
_TAG = re.compile(r"</?[a-z]+[0-9]?>")  # HTML, a single token in some vocabularies
# Two lone surrogates mark a control token: no text that can be encoded has them.
_MARK = re.compile("[\udc00-\udfff][\ud800-\udbff]")
_SURROGATES = 1024  # of each kind
_MASK = "\ufffd\ufffd"  # as long as a mark
_ANCHOR = "\ufffe\uffffanchor\uffff\ufffe"  # a token put before a text that follows another


class Marks:
    """The control tokens in one job's contents, and the mark of each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """The mark of a control token."""
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        return chr(0xDC00 + number % _SURROGATES) + chr(0xD800 + number // _SURROGATES)

    def restored(self, text: str) -> str:
        """The text with control tokens in place of their marks."""
        return _MARK.sub(self._text_of, text)

    def _text_of(self, mark: re.Match[str]) -> str:
        low, high = mark[0][0], mark[0][1]
        return self._texts[ord(low) - 0xDC00 + (ord(high) - 0xD800) * _SURROGATES]


class ControlTokens:
    """The control tokens of one tokenizer. Used by one thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added: dict[int, AddedToken] = dict(sorted(tokenizer.added_tokens_decoder.items()))
        template = str(tokenizer.chat_template or "")
        control: dict[int, AddedToken] = {}
        for number, token in added.items():
            if _is_control(token, template):
                control[number] = token
        self._special = {token.content.strip() for token in added.values() if token.special}
        self._core: Tokenizer | None = None
        if isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            self._core = tokenizer.backend_tokenizer
        self._finder = self._make_finder(list(control.values()))
        self._plain = self._make_plain(added, frozenset(control))

    @property
    def shareable(self) -> bool:
        """Whether several threads may use the tokenizer: without a plain one, its own settings are
        changed for a user's text.
        """
        return self._plain is not None

    def occur_in(self, contents: list[str]) -> bool:
        """Whether any of the contents has one."""
        return any(self._spans_of(contents))

    def marked(self, content: str, marks: Marks, *, special_only: bool = False) -> str:
        """The content with marks in place of control tokens, or only of those called special."""
        [spans] = self._spans_of([content])
        parts: list[str] = []
        copied = 0
        for start, end in spans:
            text = content[start:end]
            if not special_only or text.strip() in self._special:
                parts += [content[copied:start], marks.mark(text)]
                copied = end
        parts.append(content[copied:])
        return "".join(parts)

    def encode(self, text: str, marks: Marks) -> list[int]:
        """Ids of a marked text, without <bos>: what is marked is text, other control tokens are
        tokens.
        """
        ids: list[int] = []
        unmarked = ""  # tokenized in the usual way, as one text
        position = 0
        [spans] = self._spans_of([_MARK.sub(_MASK, text)])  # of the template's control tokens
        spans.append((len(text), len(text)))
        for start, end in spans:
            between = text[position:start]
            if _MARK.search(between):
                ids += self._usual(unmarked)
                ids += self._without_control(marks.restored(between), first=position == 0)
                unmarked = ""
            else:
                unmarked += between
            unmarked += text[start:end]
            position = end
        return ids + self._usual(unmarked)

    def _usual(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _without_control(self, text: str, *, first: bool) -> list[int]:
        """`first`: nothing comes before the text; some tokenizers put a space there."""
        if self._plain is None:
            encoding = self._tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            return list(encoding["input_ids"])
        if first or _ANCHOR in text:
            return _ids(self._plain, text)
        return _ids(self._plain, _ANCHOR + text)[1:]

    def _spans_of(self, contents: list[str]) -> list[list[tuple[int, int]]]:
        """The spans of control tokens in each content, in characters."""
        encodings = self._finder.encode_batch(contents, add_special_tokens=False)
        return [_spans(encoding) for encoding in encodings]

    def _make_finder(self, control: list[AddedToken]) -> Tokenizer:
        """A tokenizer for which everything but a control token is token 0."""
        finder = Tokenizer(models.WordLevel({"other": 0}, unk_token="other"))  # noqa: S106 - no password
        normalized = any(token.normalized for token in control)
        if normalized and self._core is not None and self._core.normalizer is not None:
            finder.normalizer = self._core.normalizer
        finder.add_tokens(control)
        return finder

    def _make_plain(
        self, added: dict[int, AddedToken], control: frozenset[int]
    ) -> Tokenizer | None:
        """The tokenizer without control tokens, with the same vocabulary; None if impossible."""
        if self._core is None:
            return None
        plain = Tokenizer(self._core.model)
        if self._core.normalizer is not None:
            plain.normalizer = self._core.normalizer
        if self._core.pre_tokenizer is not None:
            plain.pre_tokenizer = self._core.pre_tokenizer
        copies: list[AddedToken] = []
        for number, token in added.items():
            copies.append(_copy(token, special=number in control))
        plain.add_tokens(copies)
        plain.add_tokens([AddedToken(_ANCHOR, normalized=False)])
        plain.encode_special_tokens = True  # special tokens are encoded as text
        for number, token in added.items():
            if plain.token_to_id(token.content) != number:
                return None
        return plain


def _is_control(token: AddedToken, template: str) -> bool:
    """Whether it is called special, is written by the template, or looks like a control token.

    HTML tags and runs of spaces are text, unless the template writes them.
    """
    text = token.content.strip()
    if token.special or not text:
        return bool(text)
    if _TAG.fullmatch(text):
        name = text.strip("</>")
        return f"<{name}>" in template or f"</{name}>" in template
    return text in template or _MARKER.fullmatch(text) is not None


def _copy(token: AddedToken, *, special: bool) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # a batch of one: for a batch the library releases the interpreter's lock
    [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _spans(encoding: Any) -> list[tuple[int, int]]:
    tokens: Iterable[tuple[int, tuple[int, int]]] = zip(encoding.ids, encoding.offsets, strict=True)
    return [span for token, span in tokens if token]
