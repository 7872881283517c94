"""What a reader sees of an answer's tokens: whole characters, up to a stop string."""

from collections.abc import Mapping

from worker.engines.stop_filter import StopFilter
from worker.engines.transformers.text.detokenizer import Decodes, Detokenizer


class AnswerText:
    """Text of one growing answer. The same tokens give the same text, so replaying rebuilds it."""

    def __init__(
        self,
        tokenizer: Decodes,
        prompt: list[int],
        stops: tuple[str, ...],
        *,
        strip: bool,
        min_tokens: int = 0,
        skip_special: bool = True,
        include_stop: bool = False,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        """`strip`: the answer begins with a space that belongs to the template. `min_tokens`: stop
        strings count after so many. `skip_special`: control tokens have no text, except those that
        are `shown`. `include_stop`: a stop string is shown.
        """
        self._detokenizer = Detokenizer(tokenizer, prompt, shown, skip_special=skip_special)
        self._stops = StopFilter(stops, include_stop=include_stop)
        self._strip = strip
        self._unstoppable = min_tokens  # tokens still to come whose text cannot end the answer
        self.skip = 0  # characters still to come that the reader has already

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete: nothing more is shown."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The new text; empty while a character or a stop string is undecided."""
        text = self._shown(self._detokenizer.push(token))
        self._unstoppable -= 1
        return self._unseen(text)

    def end(self) -> str:
        """The undecided text, when no more tokens will come."""
        text = self._shown(self._detokenizer.flush())
        return self._unseen(text + self._stops.flush())

    def _shown(self, text: str) -> str:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        if self._unstoppable > 0:
            return text
        return self._stops.push(text)

    def _unseen(self, text: str) -> str:
        unseen = text[self.skip :]
        self.skip = max(0, self.skip - len(text))
        return unseen
