"""From a job to token ids: the model's own chat template, or a plain dialogue for models without
one.

What it costs is bounded by the context, not by what was sent: a text is measured piece by piece
before all of it is turned into tokens, and measuring ends where it is too long in any case.
"""

import re
from typing import Any

import jinja2
import msgspec

from broker.wire import ChatMessage, Job
from worker.engines.base import EngineError, InvalidRequest, PromptTooLong
from worker.engines.transformers.text.control_tokens import ControlTokens, Marks
from worker.engines.transformers.text.dialogue import forms, leading_systems

# a base model would go on and play the user, too
DIALOGUE_STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")
# A base model has never seen a dialogue end well; one example turns its small talk into answers.
PREAMBLE = """\
Below is a dialogue between a user and a knowledgeable AI assistant, who answers every question in full sentences.

User: What is the largest ocean?
Assistant: The Pacific Ocean is the largest ocean on Earth. It covers about a third of the planet's surface."""
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}
_PIECE = 16_384  # characters that are measured at a time
_BATCH = 256  # contents that are measured at a time
_PROBED = 64  # newest turns that tell how much the template adds to a turn
_TURN = 16  # tokens; few templates add more to a turn
_ESTIMATES = 6  # then halving: a template may add to some turns much more than to others
_SEAM = 8  # tokens that cutting a text there may add
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_UNBOUNDED = 1 << 40

Messages = tuple[ChatMessage, ...]


class Prompt(msgspec.Struct, frozen=True):
    """What a model is given to continue."""

    ids: list[int]  # prompt and delivered text together
    delivered: int  # how many of them stand for text the reader already has
    stops: tuple[str, ...] = ()  # the template's own, besides the job's
    strip: bool = False  # the answer starts with a space that belongs to the template
    omitted: int = 0  # messages of the job that were left out


class Prompts:
    """Makes prompts for one model. Used by one thread."""

    def __init__(self, tokenizer: Any, context: int = _UNBOUNDED) -> None:
        """`context`: tokens of prompt and answer together."""
        self._tokenizer = tokenizer
        self._context = context
        self._control = ControlTokens(tokenizer)
        self._added: dict[str, int] = tokenizer.added_tokens_encoder

    def prepare(self, job: Job) -> Prompt:
        """The ids to continue for `job`. Raises EngineError("invalid") for what cannot be put into
        the chat template, "too_long" for what has more tokens than the context.
        """
        if job.messages is None:
            text = _encodable(job.prompt or "")
            return self._continued(text, job.delivered, Marks(), special=True)
        for message in job.messages:
            _encodable(message.content)
        if not job.truncate:
            return self._of_dialogue(job.messages, job.delivered)
        return self._truncated(job.messages, job.delivered, job.sampling.max_tokens)

    def stop_tokens(self, stops: tuple[str, ...]) -> frozenset[int]:
        """The tokens among the stop strings: they end an answer though a special one is not seen in
        its text.
        """
        return frozenset(self._added[stop] for stop in stops if stop in self._added)

    # ---- leaving out the oldest turns

    def _truncated(self, messages: Messages, delivered: str, max_tokens: int | None) -> Prompt:
        """With room for an answer, if that can be had by leaving turns out; never the system's or
        the newest. What is left of a cut dialogue begins with the user, unless nothing but the
        newest turn is left.
        """
        quarter = self._context // 4
        limit = self._context - max(1, quarter if max_tokens is None else min(max_tokens, quarter))
        first, last = leading_systems(messages), len(messages) - 1
        sizes = self._content_sizes(messages, first, limit)
        starts = [
            start for start in sorted(sizes) if start == first or messages[start].role == "user"
        ]
        low, high = 0, len(starts)
        guess = self._first_guess(messages, first, limit, sizes, starts)
        prompt: Prompt | None = None
        tries = 0
        while low < high:
            start = starts[guess]
            found = self._unless_too_long((*messages[:first], *messages[start:]), delivered)
            tokens = _UNBOUNDED if found is None else len(found.ids) - found.delivered
            if found is not None and tokens <= limit:
                prompt = msgspec.structs.replace(found, omitted=start - first)
                high = guess
            else:
                low = guess + 1
            tries += 1
            guess = (low + high) // 2
            if tokens < _UNBOUNDED and tries <= _ESTIMATES and low < high:
                added = (tokens - sizes[start]) / (len(messages) - start)
                estimate = _oldest(starts, sizes, added, len(messages), limit)
                guess = min(max(estimate, low), high - 1)
        if prompt is None:
            newest = (*messages[:first], *messages[max(first, last) :])
            prompt = self._of_dialogue(newest, delivered)
            prompt = msgspec.structs.replace(prompt, omitted=max(0, last - first))
        return prompt

    def _first_guess(
        self, messages: Messages, first: int, limit: int, sizes: dict[int, int], starts: list[int]
    ) -> int:
        """Which of `starts` is probably the oldest that fits, by what the template adds to a few of the
        newest turns.
        """
        if not starts or sizes[starts[0]] + _TURN * (len(messages) - starts[0]) <= limit:
            return 0
        probe = max(starts[0], len(messages) - _PROBED)
        found = self._unless_too_long((*messages[:first], *messages[probe:]), "")
        if found is None:
            return len(starts) - 1
        added = (len(found.ids) - sizes[probe]) / (len(messages) - probe)
        return _oldest(starts, sizes, added, len(messages), limit)

    def _unless_too_long(self, messages: Messages, delivered: str) -> Prompt | None:
        try:
            return self._of_dialogue(messages, delivered)
        except EngineError as error:
            if error.code != "too_long":
                raise
            return None

    def _content_sizes(self, messages: Messages, first: int, limit: int) -> dict[int, int]:
        """Where the dialogue may begin, as far as its contents decide that: by turn, the tokens of the
        contents from there on, with those of the leading system turns.
        """
        total = sum(self._sizes([message.content for message in messages[:first]], limit))
        found: dict[int, int] = {}
        start = len(messages)
        while start > first:
            batch = messages[max(first, start - _BATCH) : start]
            for size in reversed(self._sizes([message.content for message in batch], limit)):
                total += size
                if total > limit:
                    return found
                start -= 1
                found[start] = total
        return found

    def _sizes(self, contents: list[str], limit: int) -> list[int]:
        """Tokens of each, as `_size` counts them."""
        short = [content if len(content) <= _PIECE else "" for content in contents]
        if not short:
            return []
        ids = self._tokenizer(short, add_special_tokens=False, verbose=False)["input_ids"]
        sizes = []
        for content, found in zip(contents, ids, strict=True):
            sizes.append(len(found) if len(content) <= _PIECE else self._size(content, limit))
        return sizes

    # ---- from messages to ids

    def _of_dialogue(self, messages: Messages, delivered: str) -> Prompt:
        if len(messages) > self._context:  # each takes a token at least
            raise self._too_long()
        if self._tokenizer.chat_template:
            text, marks = self._templated(messages)
            # the template writes <bos> itself
            return self._continued(text, delivered, marks, special=False)
        text, marks = dialogue(messages), Marks()
        self._check_size(text)
        text = dialogue(self._marked(messages, marks))
        spaced = f" {delivered}" if delivered else ""
        prompt = self._continued(text, spaced, marks, special=True)
        return msgspec.structs.replace(prompt, stops=DIALOGUE_STOPS, strip=not delivered)

    def _templated(self, messages: Messages) -> tuple[str, Marks]:
        """The model's template, with marks for the control tokens in contents."""
        marks = Marks()
        text = self._rendered(messages)
        self._check_size(text)
        marked = self._marked(messages, marks)
        if marked == messages:
            return text, marks
        careful = self._rendered(marked)
        if marks.restored(careful) != text:
            # The template looks for some of them: where an assistant's reasoning ends, say, to leave that out. In the
            # assistant's turns those that are not called special stay what they are.
            careful = self._rendered(self._marked(messages, marks, reasoning_stays=True))
        return careful, marks

    def _marked(
        self, messages: Messages, marks: Marks, *, reasoning_stays: bool = False
    ) -> Messages:
        """With marks in place of control tokens. `reasoning_stays`: in the assistant's turns only
        of special ones.
        """
        contents = [message.content for message in messages]
        if not self._control.found(contents):
            return messages
        made = []
        for message in messages:
            special_only = reasoning_stays and message.role == "assistant"
            content = self._control.marked(message.content, marks, special_only=special_only)
            made.append(msgspec.structs.replace(message, content=content))
        return tuple(made)

    def _rendered(self, messages: Messages) -> str:
        """The first form of the dialogue that the template takes and of whose system text it says
        all.
        """
        refusal: jinja2.TemplateError | None = None
        partial: str | None = None
        for form in forms(messages):
            try:
                text = self._apply(form)
            except jinja2.TemplateError as error:
                refusal = refusal or error
                continue
            if _says_system(text, form):
                return text
            partial = text if partial is None else partial
        if partial is None:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {refusal}"
            ) from refusal
        return partial

    def _apply(self, messages: Messages) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    # ---- from text to ids

    def _continued(self, text: str, delivered: str, marks: Marks, *, special: bool) -> Prompt:
        self._check_size(text)
        before = self._encode(text, marks, special=special)
        if not delivered:
            return Prompt(ids=before, delivered=0)
        # an answer's text has none of its own
        said = self._control.marked(_encodable(delivered), marks)
        ids = self._encode(text + said, marks, special=special)
        return Prompt(ids=ids, delivered=max(0, len(ids) - len(before)))

    def _encode(self, text: str, marks: Marks, *, special: bool) -> list[int]:
        """Ids with exactly one <bos> where the tokenizer uses one, and without the <eos> some
        tokenizers append.
        """
        tokenizer = self._tokenizer
        if _HALF_PAIR.search(text):  # marks
            ids = self._control.encode(text, marks)
            ids = [*self._before(), *ids] if special else ids
        else:
            ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
            if (
                ids
                and special
                and ids[-1] == tokenizer.eos_token_id
                and not text.endswith(tokenizer.eos_token)
            ):
                ids = ids[:-1]
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]
        if not ids and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id]  # an empty prompt: begin from nothing
        if not ids:
            raise InvalidRequest("the prompt is empty")
        return ids

    def _before(self) -> list[int]:
        """What the tokenizer puts before a text."""
        around: list[int] = self._tokenizer("", add_special_tokens=True, verbose=False)["input_ids"]
        return [token for token in around if token != self._tokenizer.eos_token_id]

    # ---- how long a text is

    def _check_size(self, text: str) -> None:
        """Raises EngineError("too_long") for what is certainly longer than the context."""
        if (
            len(text) > max(self._context, _PIECE)
            and self._size(text, self._context) > self._context
        ):
            raise self._too_long()

    def _size(self, text: str, limit: int) -> int:
        """Its tokens, give or take a few; counting ends above `limit`."""
        count = 0
        for at in range(0, len(text), _PIECE):
            ids = self._tokenizer(text[at : at + _PIECE], add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
            count += len(ids) if at == 0 else max(0, len(ids) - _SEAM)
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


def dialogue(messages: Messages) -> str:
    """The plain template: system text (or PREAMBLE) first, then a line a turn, then the line the
    model completes.
    """
    system = [message.content for message in messages if message.role == "system"]
    turns = [
        f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in messages if turn.role != "system"
    ]
    lines = "\n".join([*turns, "Assistant:"])
    return "\n\n".join([*system, lines]) if system else f"{PREAMBLE}\n{lines}"


def _oldest(starts: list[int], sizes: dict[int, int], added: float, count: int, limit: int) -> int:
    """Which of `starts` is the oldest that fits, if the template adds so much to a turn."""
    for number, start in enumerate(starts):
        if sizes[start] + added * (count - start) <= limit:
            return number
    return len(starts) - 1


def _encodable(text: str) -> str:
    """Raises EngineError("invalid") for what is no text."""
    if _HALF_PAIR.search(text):
        raise InvalidRequest("the prompt cannot be read: it has half of a surrogate pair")
    return text


def _says_system(text: str, messages: Messages) -> bool:
    """Whether a rendered text has what the system says: some templates leave out what they do not
    know.
    """
    at = 0
    for message in messages:
        if message.role == "system":
            at = text.find(message.content.strip(), at)
            if at < 0:
                return False
    return True
