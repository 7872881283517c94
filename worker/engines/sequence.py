"""One job while it is computed: its prompt, its dice, its text so far, and when it ends."""

from typing import Any

from broker.wire import FinishReason, Job
from worker.engines.base import Chunk, EngineError
from worker.engines.detokenize import Detokenizer
from worker.engines.mailbox import Mailbox
from worker.engines.sampling import Dice
from worker.engines.template import prepare
from worker.engines.text import StopFilter

DEFAULT_TOKENS = 1024  # of an answer whose request names no limit: a base model seldom ends by itself


class Sequence:
    """Owned by the computing thread. `take` is the only way it moves."""

    def __init__(self, job: Job, mailbox: Mailbox) -> None:
        self.job = job
        self.mailbox = mailbox
        self.sampling = job.sampling
        self.ids: list[int] = []
        self.last = 0  # the newest token, which the next step begins with
        self.finished = False  # set from outside, too: nobody reads any more

    def prepare(self, tokenizer: Any, ends: frozenset[int], context: int) -> Chunk:
        """Reads the prompt; returns the first chunk, which ends the job if nothing may follow.

        Raises EngineError("too_long") when the prompt leaves no room in `context` tokens, or "invalid".
        """
        prompt = prepare(tokenizer, self.job)
        self.ids, self._ends, self._strip = prompt.ids, ends, prompt.strip
        given = len(prompt.ids) - prompt.delivered
        if given >= context:
            raise EngineError("too_long", f"the prompt has {given} tokens; this node reads at most {context - 1}")
        wanted = self.sampling.max_tokens
        self._left = min(context - len(prompt.ids), (DEFAULT_TOKENS if wanted is None else wanted) - prompt.delivered)
        self._text = Detokenizer(tokenizer, prompt.ids)
        self._stops = StopFilter((*self.sampling.stop, *prompt.stops))
        self._untold = 0  # tokens whose text is held back
        self.dice = Dice(self.sampling.seed, skip=prompt.delivered)
        self.finished = self._left <= 0
        finish: FinishReason | None = "length" if self.finished else None
        return Chunk(prompt_tokens=given, tokens=prompt.delivered, finish=finish)

    def take(self, token: int) -> Chunk | None:
        """Adds one token; returns what there is to tell, or None while a character or stop string is undecided."""
        if token in self._ends:
            return self._finish("stop", self._shown(self._text.flush()))
        self.last = token
        self._left -= 1
        self._untold += 1
        text = self._shown(self._text.push(token))
        if self._stops.stopped:
            return self._finish("stop", text)
        if self._left <= 0:
            return self._finish("length", text + self._shown(self._text.flush()))
        return self._tell(text) if text else None

    def _shown(self, text: str) -> str:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return self._stops.push(text)

    def _finish(self, reason: FinishReason, text: str) -> Chunk:
        self.finished = True
        if self._stops.stopped:
            reason = "stop"
        return self._tell(text + self._stops.flush(), reason)

    def _tell(self, text: str, finish: FinishReason | None = None) -> Chunk:
        tokens, self._untold = self._untold, 0
        return Chunk(text=text, tokens=tokens, finish=finish)
