"""One job while it is computed: its prompt, its text so far, and when it ends."""

import msgspec

from broker.wire import FinishReason, Job, TokenLogprob
from worker.engines.base import Chunk, InvalidRequest, PromptTooLong
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.sampling.sampler_output import SampledToken
from worker.engines.transformers.text.answer_text import AnswerText
from worker.engines.transformers.text.chat_template import Prompt, Prompts
from worker.engines.transformers.text.token_bytes import TokenBytes

DEFAULT_TOKENS = (
    1024  # of an answer whose request names no limit: a base model seldom ends by itself
)


class Sequence:
    """Owned by the computing thread. `append_token` is the only way it moves, also through what was delivered already."""

    def __init__(self, job: Job, mailbox: Mailbox) -> None:
        self.job = job
        self.mailbox = mailbox
        self.sampling = job.sampling
        self.ids: list[
            int
        ] = []  # what the model reads before it goes on: the prompt, and what was delivered
        self.slot: int | None = None  # where its settings and dice are, once its prompt is read
        self.most = 0  # how many tokens may follow `ids`
        self.last = 0  # the newest token, which the next step begins with
        self.finished = False  # set from outside, too: nobody reads any more
        self.failed = False  # ended by an error: what was computed for it is not to be trusted

    @property
    def prompt(self) -> list[int]:
        """The part of `ids` that it was given."""
        return self.ids[: self._given]

    @property
    def left(self) -> int:
        """How many tokens it may still have."""
        return self._left

    @property
    def answer(self) -> list[int]:
        """The part of `ids` that it said before."""
        return self.ids[self._given :]

    def prepare(self, loaded: LoadedModel, prompts: Prompts) -> list[Chunk]:
        """Reads the prompt; returns the first chunk, and the last one if nothing may follow.

        A continued job goes on from its delivered tokens, or from its delivered text where there are none, or ones
        that do not make that text here. Raises EngineError("too_long") for a prompt that leaves no room in the
        context, or "invalid".
        """
        stops = prompts.stop_tokens(self.sampling.stop)
        ids = self.job.delivered_ids
        if ids and all(0 <= token < loaded.vocabulary for token in ids):
            fresh = msgspec.structs.replace(self.job, delivered="", delivered_ids=())
            first = self._begin(loaded, prompts.prepare(fresh), stops, tells_ids=True)
            if (more := self._replay(ids)) is not None:
                return [msgspec.structs.replace(first, tokens=len(ids)), *more]
        prompt = prompts.prepare(self.job)
        first = self._begin(loaded, prompt, stops, tells_ids=not prompt.delivered)
        return [first, Chunk(finish="length")] if self.finished else [first]

    def append_token(self, sampled: SampledToken) -> Chunk | None:
        """Adds one token; returns what there is to tell, or None while a character or stop string is undecided."""
        token = sampled.token
        if token in self._eos_token_ids:
            return self._finish("stop", self._text.end())
        self.last = token
        self._left -= 1
        self._untold.append(token)
        if self._spelling is not None and sampled.logprob is not None:
            top = tuple((self._spelling.of(other), logprob) for other, logprob in sampled.top)
            self._likely.append(TokenLogprob(self._spelling.of(token), sampled.logprob, top))
        text = self._text.push(token)
        if self._text.stopped:
            return self._finish("stop", text)
        if self._left <= 0:
            return self._finish("length", text + self._text.end())
        return self._tell(text) if text else None

    def _begin(
        self, loaded: LoadedModel, prompt: Prompt, stop_tokens: frozenset[int], *, tells_ids: bool
    ) -> Chunk:
        """Everything as it is before the first token. Without ids, a reader's list of them would have a hole."""
        given = len(prompt.ids) - prompt.delivered
        most = loaded.context - 1
        if given > most:
            raise PromptTooLong(f"the prompt has {given} tokens; this node reads at most {most}")
        if (
            max(prompt.ids) >= loaded.vocabulary
        ):  # its batch would fail, and on a GPU the whole process
            raise InvalidRequest("the prompt has a token that the model does not know")
        if (biased := max(self.sampling.logit_bias, default=0)) >= loaded.vocabulary:
            raise InvalidRequest(f"logit_bias: the model has no token {biased}")
        wanted = DEFAULT_TOKENS if self.sampling.max_tokens is None else self.sampling.max_tokens
        self.ids, self._given, self._eos_token_ids = (
            prompt.ids,
            given,
            loaded.eos_token_ids | stop_tokens,
        )
        self.most = self._left = min(loaded.context - given, wanted) - prompt.delivered
        stops = (*self.sampling.stop, *prompt.stops)
        self._text = AnswerText(loaded.tokenizer, prompt.ids, stops, strip=prompt.strip)
        self._untold: list[int] = []  # tokens whose text is held back
        self._likely: list[TokenLogprob] = []  # theirs, if asked for
        self._spelling = (
            TokenBytes(loaded.tokenizer) if self.sampling.logprobs is not None else None
        )
        self._tells_ids = tells_ids
        self.finished = self._left <= 0
        return Chunk(prompt_tokens=given, tokens=prompt.delivered, omitted_messages=prompt.omitted)

    def _replay(self, ids: tuple[int, ...]) -> list[Chunk] | None:
        """Takes the delivered tokens again. Returns what was not told of them, with the end if they reach it; None if
        they are not the delivered text's.
        """
        had, text, chunk = self.job.delivered, "", None
        for token in ids:
            if not self.finished and (chunk := self.append_token(SampledToken(token))):
                text += chunk.text
        if not (text.startswith(had) or had.startswith(text)):
            return None
        self.ids, self.most = [*self.ids, *ids], self._left
        self._untold = []
        self._text.skip = max(0, len(had) - len(text))
        rest = Chunk(text=text[len(had) :], finish=chunk.finish if chunk else None)
        return [rest] if rest.text or rest.finish else []

    def _finish(self, reason: FinishReason, text: str) -> Chunk:
        self.finished = True
        if not self._text.stopped:
            return self._tell(text, reason)
        self._likely = _seen(self._likely, text)
        return self._tell(text, "stop")

    def _tell(self, text: str, finish: FinishReason | None = None) -> Chunk:
        told, self._untold = tuple(self._untold), []
        likely, self._likely = tuple(self._likely), []
        return Chunk(
            text=text,
            tokens=len(told),
            finish=finish,
            ids=told if self._tells_ids else (),
            logprobs=likely,
        )


def _seen(likely: list[TokenLogprob], text: str) -> list[TokenLogprob]:
    """Those of the tokens that `text` begins to show; the others are of a stop string or behind it."""
    size, seen = len(text.encode()), []
    for each in likely:
        if size <= 0:
            break
        seen.append(each)
        size -= len(each.token)
    return seen
