"""What a reader sees of an answer's tokens: whole characters, up to a stop string, without what they have already."""

from worker.engines.stop_filter import StopFilter
from worker.engines.transformers.text.detokenizer import Decodes, Detokenizer


class AnswerText:
    """Text of one answer as it grows. The same tokens give the same text, so it is rebuilt by pushing them again."""

    def __init__(
        self, tokenizer: Decodes, prompt: list[int], stops: tuple[str, ...], *, strip: bool
    ) -> None:
        """`strip`: the answer begins with a space that belongs to the template."""
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stops = StopFilter(stops)
        self._strip = strip
        self.skip = 0  # characters that the reader has already

    @property
    def stopped(self) -> bool:
        """A stop string is complete: nothing more is shown."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The new text; empty while a character or a stop string is undecided."""
        return self._new(self._shown(self._detokenizer.push(token)))

    def end(self) -> str:
        """What was held back, when no more tokens will come."""
        text = self._shown(self._detokenizer.flush())
        return self._new(text + self._stops.flush())

    def _shown(self, text: str) -> str:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return self._stops.push(text)

    def _new(self, text: str) -> str:
        new, self.skip = text[self.skip :], max(0, self.skip - len(text))
        return new
