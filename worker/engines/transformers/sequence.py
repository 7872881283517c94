"""One job while it is computed: its prompt, its tokens so far, and its state."""

import enum

import msgspec

from broker.wire import FinishReason, Job, TokenLogprob
from worker.engines.base import Chunk, InvalidRequest, PromptTooLong
from worker.engines.transformers import pooling
from worker.engines.transformers.guidance.guide import Guide
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.pooling import PooledStates
from worker.engines.transformers.sampling.prompt_logprobs import PromptLogprobs
from worker.engines.transformers.sampling.sampler_output import SampledToken
from worker.engines.transformers.sampling.token_masks import EndRule
from worker.engines.transformers.text import tokenization
from worker.engines.transformers.text.answer_text import AnswerText
from worker.engines.transformers.text.chat_template import Prompt, Prompts
from worker.engines.transformers.text.token_bytes import TokenBytes

DEFAULT_MAX_TOKENS = 1024  # without a limit in the request: a base model seldom stops by itself


class SequenceStatus(enum.Enum):
    """Where a sequence is on its way."""

    WAITING = "waiting"  # for its prompt's tokens, then for a slot
    PREFILL = "prefill"  # in a slot; its prompt is being computed
    RUNNING = "running"  # gets a token every step
    FINISHED = "finished"  # its answer is complete
    FAILED = "failed"  # ended by an error: its keys and values may be wrong


_FINISHED, _FAILED = SequenceStatus.FINISHED, SequenceStatus.FAILED


class _Output:
    """What an answer has become so far. Complete once the prompt is known."""

    def __init__(
        self,
        text: AnswerText,
        end_token_ids: frozenset[int],
        max_tokens: int,
        token_bytes: TokenBytes | None,
        *,
        sends_ids: bool,
    ) -> None:
        """`token_bytes`: for logprobs, None if they were not requested."""
        self.text = text
        self.end_token_ids = end_token_ids
        self.tokens_left = max_tokens
        self.token_bytes = token_bytes
        self.sends_ids = sends_ids
        self.pending_ids: list[int] = []  # tokens whose text is undecided
        self.pending_logprobs: list[TokenLogprob] = []  # of these tokens, if requested

    def chunk(self, text: str, finish: FinishReason | None = None) -> Chunk:
        """The text, with everything pending."""
        tokens = len(self.pending_ids)
        ids: tuple[int, ...] = ()
        if self.sends_ids:
            ids = tuple(self.pending_ids)
        logprobs = tuple(self.pending_logprobs)
        self.pending_ids, self.pending_logprobs = [], []
        return Chunk(text=text, tokens=tokens, finish=finish, ids=ids, logprobs=logprobs)


class Sequence:
    """A job, owned by the thread that has it: the intake, then the decoding thread.

    The scheduler moves `status` from WAITING to RUNNING; `append_token` and `fail` end it. The
    event loop may only `cancel`.
    """

    def __init__(self, job: Job, mailbox: Mailbox) -> None:
        self.job = job
        self.mailbox = mailbox
        self.sampling = job.sampling
        self.status = SequenceStatus.WAITING
        self.cancelled = False
        self.guide: Guide | None = None  # what the answer's grammar allows; set by the intake
        self.ids: list[int] = []  # to prefill: the prompt, and what was delivered before
        self.block_hashes: list[bytes] = []  # of whole blocks of `ids`, where the cache has blocks
        self.max_tokens = 0  # that may follow `ids`
        self.slot: int | None = None  # the sampler's, in the fallback
        self.last_token = 0  # the newest token, which the next step computes
        self.prompt_logprobs: PromptLogprobs | None = None  # while they are to be computed
        self.pooled: PooledStates | None = None  # while a vector of the prompt is to be computed
        self.cached_tokens = 0  # of the prompt, found in the prefix cache
        self._prompt_length = 0  # of `ids`
        self._output: _Output | None = None

    @property
    def prompt(self) -> list[int]:
        """The part of `ids` that the job gave."""
        return self.ids[: self._prompt_length]

    @property
    def answer(self) -> list[int]:
        """The part of `ids` that was answered before, when the job is continued."""
        return self.ids[self._prompt_length :]

    @property
    def end_rule(self) -> EndRule:
        """What ends the answer, and not before how many tokens."""
        ends: tuple[int, ...] = ()
        if self._output is not None:
            ends = tuple(self._output.end_token_ids)
        return EndRule(ends, self.sampling.min_tokens)

    @property
    def finished(self) -> bool:
        """Whether it needs no more computing, for whatever reason."""
        status = self.status
        return self.cancelled or status is _FINISHED or status is _FAILED

    @property
    def failed(self) -> bool:
        """Whether an error ended it."""
        return self.status is SequenceStatus.FAILED

    def cancel(self) -> None:
        """Nobody reads the answer any more. From any thread; takes effect at the next step."""
        self.cancelled = True

    def fail(self) -> None:
        """An error has ended it."""
        self.status = SequenceStatus.FAILED

    def prepare(self, loaded: LoadedModel, prompts: Prompts) -> list[Chunk]:
        """Tokenizes the prompt; returns the first chunk, and the last if nothing may follow.

        A continued job goes on from its delivered ids, or from its delivered text where there are
        no ids, or ids that do not make that text here. Raises PromptTooLong for a prompt that
        leaves no room in the context, InvalidRequest, and whatever a tokenizer raises.
        """
        if self.job.task == "embed":
            return [self._prepare_embedding(loaded, prompts)]
        if self.job.task != "generate":
            told = tokenization.answer(self.job, loaded, prompts)
            self.status = SequenceStatus.FINISHED
            return told
        stop_ids = prompts.stop_tokens(self.sampling.stop)
        ids = self.job.delivered_ids
        if ids and all(0 <= token < loaded.vocabulary for token in ids):
            undelivered = msgspec.structs.replace(self.job, delivered="", delivered_ids=())
            prompt = prompts.prepare(undelivered)
            first, output = self._begin(loaded, prompt, stop_ids, sends_ids=True)
            chunks = self._replay(output, ids)
            if chunks is not None:
                first = msgspec.structs.replace(first, tokens=len(ids))
                return [first, *chunks]
            self.status = SequenceStatus.WAITING
        prompt = prompts.prepare(self.job)
        first, _ = self._begin(loaded, prompt, stop_ids, sends_ids=not prompt.delivered)
        finish = self._finish_of_delivered()
        if finish is None or self.prompt_logprobs is not None:
            return [first]
        self.status = SequenceStatus.FINISHED
        return [first, Chunk(finish=finish)]

    def _prepare_embedding(self, loaded: LoadedModel, prompts: Prompts) -> Chunk:
        if self.job.pooling is None:
            raise InvalidRequest("a job without inputs")
        self.ids = pooling.tokenize(self.job, self.job.pooling, loaded, prompts)
        self._prompt_length = len(self.ids)
        self.pooled = PooledStates(self.job.pooling, len(self.ids))
        return Chunk(prompt_tokens=len(self.ids))

    def end_prompt(self) -> Chunk | None:
        """The prompt is computed: its vector, or its logprobs, if requested; the end if no token
        may follow.
        """
        if self.pooled is not None:
            vector = self.pooled.vector()
            self.status = SequenceStatus.FINISHED
            return Chunk(rows=(vector,), finish="stop")
        logprobs, self.prompt_logprobs = self.prompt_logprobs, None
        if logprobs is None:
            return None
        finish: FinishReason | None = None
        if self.max_tokens <= 0:
            self.status, finish = SequenceStatus.FINISHED, "length"
        return Chunk(prompt_logprobs=logprobs.entries(), finish=finish)

    def append_token(self, sampled: SampledToken) -> Chunk | None:
        """Adds a token; returns the text it completes, or None while that is undecided."""
        token, output = sampled.token, self._output
        if output is None:
            raise RuntimeError("the prompt has not been prepared")
        if token in output.end_token_ids:
            return self._finish(output, "stop", output.text.end())
        if self.guide is not None:
            self.guide.append(token)
        self.last_token = token
        output.tokens_left -= 1
        output.pending_ids.append(token)
        if output.token_bytes is not None and sampled.logprob is not None:
            output.pending_logprobs.append(
                _token_logprob(sampled, sampled.logprob, output.token_bytes)
            )
        text = output.text.push(token)
        if output.text.stopped:
            return self._finish(output, "stop", text)
        if self.guide is not None and self.guide.complete:
            return self._finish(output, "stop", text + output.text.end())
        if output.tokens_left <= 0:
            return self._finish(output, "length", text + output.text.end())
        if text:
            return output.chunk(text)
        return None

    def _finish_of_delivered(self) -> FinishReason | None:
        """Why nothing may follow a delivered text, if so."""
        if self.guide is not None and self.job.delivered:
            self.guide.restart()
            self.guide.append_text(self.job.delivered)
            if self.guide.complete:
                return "stop"
        if self.max_tokens <= 0:
            return "length"
        return None

    def _begin(
        self, loaded: LoadedModel, prompt: Prompt, stop_ids: frozenset[int], *, sends_ids: bool
    ) -> tuple[Chunk, _Output]:
        """The first chunk, and the state before the first token.

        `sends_ids`: False where the reader's list of ids would have a gap.
        """
        self._check(loaded, prompt)
        self.ids, self._prompt_length = prompt.ids, len(prompt.ids) - prompt.delivered
        limit = self.sampling.max_tokens
        if limit is None:
            limit = DEFAULT_MAX_TOKENS
        self.max_tokens = min(loaded.context - self._prompt_length, limit) - prompt.delivered
        token_bytes: TokenBytes | None = None
        if self.sampling.logprobs is not None:
            token_bytes = TokenBytes(loaded.tokenizer)
        output = _Output(
            self._answer_text(loaded, prompt),
            self._end_token_ids(loaded, stop_ids),
            self.max_tokens,
            token_bytes,
            sends_ids=sends_ids,
        )
        self._output = output
        self._expect_prompt_logprobs(loaded)
        first = Chunk(
            prompt_tokens=self._prompt_length,
            tokens=prompt.delivered,
            omitted_messages=prompt.omitted,
        )
        return first, output

    @property
    def _ignores_eos(self) -> bool:
        """A grammar's end is the answer's, whatever the request says."""
        return self.sampling.ignore_eos and self.guide is None

    def _answer_text(self, loaded: LoadedModel, prompt: Prompt) -> AnswerText:
        stops = self.sampling.stop
        if not self._ignores_eos:
            stops += prompt.stops
        min_tokens = self.sampling.min_tokens - prompt.delivered
        return AnswerText(
            loaded.tokenizer,
            prompt.ids,
            stops,
            strip=prompt.strip,
            min_tokens=min_tokens,
            skip_special=self.sampling.skip_special_tokens,
            include_stop=self.sampling.include_stop,
            shown=prompt.shown,
        )

    def _end_token_ids(self, loaded: LoadedModel, stop_ids: frozenset[int]) -> frozenset[int]:
        ends = stop_ids.union(self.sampling.stop_token_ids)
        if not self._ignores_eos:
            ends |= loaded.eos_token_ids
        return frozenset(token for token in ends if token < loaded.vocabulary)

    def _expect_prompt_logprobs(self, loaded: LoadedModel) -> None:
        """Unless its reader has them all: they come before anything else. Raises InvalidRequest."""
        top = self.sampling.prompt_logprobs
        told = self.job.delivered or self.job.delivered_ids
        if top is None or told or self.job.delivered_prompt_logprobs >= self._prompt_length:
            return
        self.prompt_logprobs = PromptLogprobs(self.prompt, top, TokenBytes(loaded.tokenizer))

    def _check(self, loaded: LoadedModel, prompt: Prompt) -> None:
        """Raises InvalidRequest for what would fail in a batch, and on a GPU end the process."""
        length, limit = len(prompt.ids) - prompt.delivered, loaded.context - 1
        if length > limit:
            raise PromptTooLong(f"the prompt has {length} tokens; this node reads at most {limit}")
        if max(prompt.ids) >= loaded.vocabulary:
            raise InvalidRequest("the prompt has a token that the model does not know")
        biased = max(self.sampling.logit_bias, default=0)
        if biased >= loaded.vocabulary:
            raise InvalidRequest(f"logit_bias: the model has no token {biased}")

    def _replay(self, output: _Output, ids: tuple[int, ...]) -> list[Chunk] | None:
        """Appends delivered tokens again.

        Returns the text that was not delivered of them, with the end if they reach it; None if
        their text is not the delivered one.
        """
        delivered = self.job.delivered
        text, finish = "", None
        for token in ids:
            if output.tokens_left <= 0 or finish is not None:
                break
            try:
                chunk = self.append_token(SampledToken(token))
            except InvalidRequest:  # the grammar forbids them, so they mean another text here
                return None
            if chunk is not None:
                text += chunk.text
                finish = chunk.finish
        if not (text.startswith(delivered) or delivered.startswith(text)):
            return None
        self.ids = self.ids + list(ids)
        self.max_tokens = output.tokens_left
        output.pending_ids = []
        output.text.skip = max(0, len(delivered) - len(text))
        rest = Chunk(text=text[len(delivered) :], finish=finish)
        if rest.text or rest.finish:
            return [rest]
        return []

    def _finish(self, output: _Output, reason: FinishReason, text: str) -> Chunk:
        self.status = SequenceStatus.FINISHED
        if output.text.stopped:
            reason = "stop"
            output.pending_logprobs = _visible(output.pending_logprobs, text)
        return msgspec.structs.replace(
            output.chunk(text, reason), cached_tokens=min(self.cached_tokens, self._prompt_length)
        )


def _token_logprob(sampled: SampledToken, logprob: float, token_bytes: TokenBytes) -> TokenLogprob:
    top: list[tuple[bytes, float]] = []
    for token, top_logprob in sampled.top:
        top.append((token_bytes.of(token), top_logprob))
    return TokenLogprob(token_bytes.of(sampled.token), logprob, tuple(top))


def _visible(logprobs: list[TokenLogprob], text: str) -> list[TokenLogprob]:
    """Those whose tokens `text` shows, at least in part; a stop string's own are left out."""
    size = len(text.encode())
    visible: list[TokenLogprob] = []
    for logprob in logprobs:
        if size <= 0:
            break
        visible.append(logprob)
        size -= len(logprob.token)
    return visible
