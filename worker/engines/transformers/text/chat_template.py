"""From a job to token ids: by the model's own chat template, or as a plain dialogue without one.

The context bounds the cost, not the request: a text is measured part by part before it is tokenized
as a whole, and measuring ends once it is certainly too long.
"""

import re
from typing import Any

import msgspec

from broker.wire import ChatMessage, Job
from worker.engines.base import EngineError, InvalidRequest, PromptTooLong
from worker.engines.transformers.text.chat_format import ChatFormat
from worker.engines.transformers.text.control_tokens import ControlTokens, Marks
from worker.engines.transformers.text.dialogue import leading_systems
from worker.engines.transformers.text.rendering import Messages, Renderer, Rendering

# A base model would go on and play the user, too.
DIALOGUE_STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")
# One example turns the small talk of a base model into answers.
PREAMBLE = (
    "Below is a dialogue between a user and a knowledgeable AI assistant, "
    "who answers every question in full sentences.\n"
    "\n"
    "User: What is the largest ocean?\n"
    "Assistant: The Pacific Ocean is the largest ocean on Earth. "
    "It covers about a third of the planet's surface."
)
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}
_PART = 16_384  # characters measured at a time
_LONG = 8  # characters a token of the context: a longer text is measured before it is tokenized
_BATCH = 256  # contents measured at a time
_PROBED_TURNS = 64  # the newest ones, to see how much the template adds to a turn
_TURN_TOKENS = 16  # few templates add more to a turn
_ESTIMATES = 6  # then bisection: a template may add to some turns much more than to others
_SEAM_TOKENS = 8  # that cutting a text may add
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNBOUNDED = 1 << 40


class Prompt(msgspec.Struct, frozen=True):
    """What a model is given to continue."""

    ids: list[int]  # prompt and delivered text
    delivered: int  # how many of them stand for text that the reader has
    stops: tuple[str, ...] = ()  # the template's own, beside the job's
    strip: bool = False  # the answer begins with a space that belongs to the template
    omitted: int = 0  # messages of the job that were left out
    shown: dict[int, str] = {}  # special tokens that the answer's text has, as they mark its parts


class Prompts:
    """Makes prompts for one model. Used by one thread."""

    def __init__(
        self,
        tokenizer: Any,
        context: int = _UNBOUNDED,
        chat_format: ChatFormat | None = None,
    ) -> None:
        """`context`: tokens of prompt and answer together."""
        self._tokenizer = tokenizer
        self._context = context
        self._control = ControlTokens(tokenizer)
        self._added: dict[str, int] = tokenizer.added_tokens_encoder
        self.format = chat_format or ChatFormat(tokenizer)
        self._renderer = Renderer(tokenizer, self._control, self.format)

    def prepare(self, job: Job) -> Prompt:
        """The ids to continue for `job`.

        Raises InvalidRequest for what the chat template refuses, PromptTooLong for what does not
        fit the context.
        """
        if job.prompt_ids:
            return self._of_ids(job)
        if job.messages is None:
            text = _encodable(job.prompt or "")
            special = job.add_special_tokens is not False
            return self._continued(text, job.delivered, Marks(), special=special)
        messages, rendering = self._renderer.plan(job)
        for message in messages:
            _check_encodable(message)
        if job.truncate:
            prompt = self._truncated(messages, rendering, job.delivered, job.sampling.max_tokens)
        else:
            prompt = self._of_dialogue(messages, job.delivered, rendering)
        return msgspec.structs.replace(prompt, shown=self.format.shown_tokens(job))

    def _of_ids(self, job: Job) -> Prompt:
        """A prompt that is tokens already, with what was delivered behind it."""
        ids = list(job.prompt_ids)
        if len(ids) > self._context:
            raise self._too_long()
        if not job.delivered:
            return Prompt(ids=ids, delivered=0)
        answer = self._continued(job.delivered, "", Marks(), special=False).ids
        return Prompt(ids=ids + answer, delivered=len(answer))

    def stop_tokens(self, stops: tuple[str, ...]) -> frozenset[int]:
        """The stop strings that are tokens: a special one never shows in the answer's text."""
        return frozenset(self._added[stop] for stop in stops if stop in self._added)

    # ---- leaving out the oldest turns

    def _truncated(
        self, messages: Messages, rendering: Rendering, delivered: str, max_tokens: int | None
    ) -> Prompt:
        """The longest prompt that leaves room for an answer; never without the newest turn.

        The leading system turns stay, too. What is left of a cut dialogue begins with the user,
        unless nothing but the newest turn is left.
        """
        limit = self._context - self._reserve(delivered, max_tokens)
        first, last = leading_systems(messages), len(messages) - 1
        sizes = self._content_sizes(messages, first, limit)
        starts: list[int] = []  # where the dialogue may begin
        for start in sorted(sizes):
            if start == first or messages[start].role == "user":
                starts.append(start)
        low, high = 0, len(starts)
        guess = self._first_guess(messages, rendering, limit, sizes, starts)
        prompt: Prompt | None = None
        tries = 0
        while low < high:
            start = starts[guess]
            candidate = self._unless_too_long(
                messages[:first] + messages[start:], delivered, rendering
            )
            tokens = _UNBOUNDED
            if candidate is not None:
                tokens = len(candidate.ids) - candidate.delivered
            if candidate is not None and tokens <= limit:
                prompt = msgspec.structs.replace(candidate, omitted=start - first)
                high = guess
            else:
                low = guess + 1
            tries += 1
            guess = (low + high) // 2
            if tokens < _UNBOUNDED and tries <= _ESTIMATES and low < high:
                added = (tokens - sizes[start]) / (len(messages) - start)
                estimate = _oldest_that_fits(starts, sizes, added, len(messages), limit)
                guess = min(max(estimate, low), high - 1)
        if prompt is None:
            newest = messages[:first] + messages[max(first, last) :]
            prompt = self._of_dialogue(newest, delivered, rendering)
            prompt = msgspec.structs.replace(prompt, omitted=max(0, last - first))
        return prompt

    def _reserve(self, delivered: str, max_tokens: int | None) -> int:
        """The tokens of the context that are the answer's.

        A quarter, or more where an answer that goes on would have no room after what it says so
        far.
        """
        reserve = self._context // 4
        if max_tokens is not None:
            reserve = min(max_tokens, reserve)
        if delivered:
            written = self._size(delivered, self._context)
            more = self._context // 8
            if max_tokens is not None:
                more = min(max_tokens - written, more)
            reserve = max(written + more, reserve)
        return max(1, reserve)

    def _first_guess(
        self,
        messages: Messages,
        rendering: Rendering,
        limit: int,
        sizes: dict[int, int],
        starts: list[int],
    ) -> int:
        """Which of `starts` is probably the oldest that fits, by what the template adds to a few of
        the newest turns.
        """
        if not starts:
            return 0
        if sizes[starts[0]] + _TURN_TOKENS * (len(messages) - starts[0]) <= limit:
            return 0
        probe = max(starts[0], len(messages) - _PROBED_TURNS)
        probed = messages[: leading_systems(messages)] + messages[probe:]
        candidate = self._unless_too_long(probed, "", rendering)
        if candidate is None:
            return len(starts) - 1
        added = (len(candidate.ids) - sizes[probe]) / (len(messages) - probe)
        return _oldest_that_fits(starts, sizes, added, len(messages), limit)

    def _unless_too_long(
        self, messages: Messages, delivered: str, rendering: Rendering
    ) -> Prompt | None:
        try:
            return self._of_dialogue(messages, delivered, rendering)
        except PromptTooLong:
            return None

    def _content_sizes(self, messages: Messages, first: int, limit: int) -> dict[int, int]:
        """For each turn at which the dialogue may begin: the tokens of the contents from there on.

        Leading system turns count, too. Ends where the contents alone exceed the limit.
        """
        total = sum(self._sizes(messages[:first], limit))
        sizes: dict[int, int] = {}
        start = len(messages)
        while start > first:
            batch = messages[max(first, start - _BATCH) : start]
            for size in reversed(self._sizes(batch, limit)):
                total += size
                if total > limit:
                    return sizes
                start -= 1
                sizes[start] = total
        return sizes

    def _sizes(self, messages: Messages, limit: int) -> list[int]:
        """Tokens of each content, as `_size` counts them; short ones in one batch."""
        if not messages:
            return []
        sizes = [0] * len(messages)
        short: list[str] = []
        short_indices: list[int] = []
        for index, message in enumerate(messages):
            if len(message.content) <= _PART:
                short.append(message.content)
                short_indices.append(index)
            else:
                sizes[index] = self._size(message.content, limit)
        if short:
            ids = self._tokenizer(short, add_special_tokens=False, verbose=False)["input_ids"]
            for index, content_ids in zip(short_indices, ids, strict=True):
                sizes[index] = len(content_ids)
        return sizes

    # ---- from messages to ids

    def _of_dialogue(self, messages: Messages, delivered: str, rendering: Rendering) -> Prompt:
        if len(messages) > self._context:  # each takes at least a token
            raise self._too_long()
        if self._tokenizer.chat_template:
            text = self._renderer.text(messages, rendering)
            self._check_size(text)
            text, marks = self._renderer.careful(text, messages, rendering)
            text += rendering.opening + self._control.marked(rendering.prefill, marks)
            # the template writes <bos> itself
            return self._continued(text, delivered, marks, special=rendering.special)
        text, marks = dialogue(messages, generation_prompt=rendering.generation_prompt), Marks()
        self._check_size(text)
        text = dialogue(
            self._renderer.marked(messages, marks),
            generation_prompt=rendering.generation_prompt,
        )
        answer = delivered
        if rendering.prefill:
            text += f" {self._control.marked(rendering.prefill, marks)}"
        elif delivered:
            answer = f" {delivered}"
        prompt = self._continued(text, answer, marks, special=True)
        strip = not (delivered or rendering.prefill)
        return msgspec.structs.replace(prompt, stops=DIALOGUE_STOPS, strip=strip)

    # ---- from text to ids

    def _continued(self, text: str, delivered: str, marks: Marks, *, special: bool) -> Prompt:
        self._check_size(text)
        before = self._encode(text, marks, special=special)
        if not delivered:
            return Prompt(ids=before, delivered=0)
        # control tokens in an answer's text are text
        answer = self._control.marked(_encodable(delivered), marks)
        ids = self._encode(text + answer, marks, special=special)
        return Prompt(ids=ids, delivered=max(0, len(ids) - len(before)))

    def _encode(self, text: str, marks: Marks, *, special: bool) -> list[int]:
        """Ids with exactly one <bos> where the tokenizer uses one, and no <eos> appended."""
        tokenizer = self._tokenizer
        if _SURROGATE.search(text):  # marks
            ids = self._control.encode(text, marks)
            if special:
                ids = self._prefix_ids() + ids
        else:
            ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
            appended = special and ids and ids[-1] == tokenizer.eos_token_id
            if appended and not text.endswith(tokenizer.eos_token):
                ids = ids[:-1]
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]
        if not ids and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id]  # an empty prompt: begin from nothing
        if not ids:
            raise InvalidRequest("the prompt is empty")
        return ids

    def _prefix_ids(self) -> list[int]:
        """What the tokenizer puts before a text."""
        ids: list[int] = self._tokenizer("", add_special_tokens=True, verbose=False)["input_ids"]
        return [token for token in ids if token != self._tokenizer.eos_token_id]

    # ---- how long a text is

    def _check_size(self, text: str) -> None:
        """Raises PromptTooLong for what is certainly longer than the context."""
        if len(text) <= max(_LONG * self._context, _PART):
            return
        if self._size(text, self._context) > self._context:
            raise self._too_long()

    def _size(self, text: str, limit: int) -> int:
        """Its tokens, give or take a few; counting ends above `limit`."""
        count = 0
        for start in range(0, len(text), _PART):
            part = text[start : start + _PART]
            ids = self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            count += len(ids)
            if start > 0:
                count -= min(len(ids), _SEAM_TOKENS)
            if count > limit:
                break
        return count

    def _too_long(self) -> EngineError:
        most = self._context - 1
        return PromptTooLong(
            f"the prompt has more than {most} tokens; this node reads at most {most}"
        )


def prepare(tokenizer: Any, job: Job) -> Prompt:
    """One prompt, whatever its length."""
    return Prompts(tokenizer).prepare(job)


def dialogue(messages: Messages, *, generation_prompt: bool = True) -> str:
    """The plain template: system text or PREAMBLE, a line a turn, the line the model completes."""
    system: list[str] = []
    lines: list[str] = []
    for message in messages:
        if message.role == "system":
            system.append(message.content)
        else:
            lines.append(f"{_SPEAKERS[message.role]}: {message.content}")
    if generation_prompt:
        lines.append("Assistant:")
    turns = "\n".join(lines)
    if not system:
        return f"{PREAMBLE}\n{turns}"
    system.append(turns)
    return "\n\n".join(system)


def _oldest_that_fits(
    starts: list[int], sizes: dict[int, int], added: float, count: int, limit: int
) -> int:
    """Which of `starts` is the oldest that fits if the template adds `added` tokens to a turn."""
    for number, start in enumerate(starts):
        if sizes[start] + added * (count - start) <= limit:
            return number
    return len(starts) - 1


def _check_encodable(message: ChatMessage) -> None:
    """Raises InvalidRequest as `_encodable` does."""
    _encodable(message.content)
    _encodable(message.reasoning)
    for call in message.tool_calls:
        _encodable(call.name + call.arguments)


def _encodable(text: str) -> str:
    """The text. Raises InvalidRequest for a lone surrogate, which cannot be encoded."""
    if _SURROGATE.search(text):
        raise InvalidRequest("the prompt cannot be read: it has half of a surrogate pair")
    return text
