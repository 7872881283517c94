"""From a job to token ids: the model's own chat template, or a plain dialogue for models without one."""

from typing import Any

import jinja2
import msgspec

from broker.wire import ChatMessage, Job
from worker.engines.base import EngineError

DIALOGUE_STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")  # a base model would go on and play the user, too
# A base model has never seen a dialogue end well; one example turns its small talk into answers.
PREAMBLE = """\
Below is a dialogue between a user and a knowledgeable AI assistant, who answers every question in full sentences.

User: What is the largest ocean?
Assistant: The Pacific Ocean is the largest ocean on Earth. It covers about a third of the planet's surface."""
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


class Prompt(msgspec.Struct, frozen=True):
    """What a model is given to continue."""

    ids: list[int]  # prompt and delivered text together
    delivered: int  # how many of them stand for text the reader already has
    stops: tuple[str, ...] = ()  # the template's own, besides the job's
    strip: bool = False  # the answer starts with a space that belongs to the template


def prepare(tokenizer: Any, job: Job) -> Prompt:
    """The ids to continue for `job`. Raises EngineError("invalid") for what the chat template refuses."""
    if job.messages is None:
        return _continued(tokenizer, job.prompt or "", job.delivered, special=True)
    if tokenizer.chat_template:
        text = _templated(tokenizer, job.messages)
        return _continued(tokenizer, text, job.delivered, special=False)  # the template writes <bos> itself
    spaced = f" {job.delivered}" if job.delivered else ""
    prompt = _continued(tokenizer, dialogue(job.messages), spaced, special=True)
    return msgspec.structs.replace(prompt, stops=DIALOGUE_STOPS, strip=not job.delivered)


def dialogue(messages: tuple[ChatMessage, ...]) -> str:
    """The plain template: system text (or PREAMBLE) first, then a line a turn, then the line the model completes."""
    system = [message.content for message in messages if message.role == "system"]
    turns = [f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in messages if turn.role != "system"]
    lines = "\n".join([*turns, "Assistant:"])
    return "\n\n".join([*system, lines]) if system else f"{PREAMBLE}\n{lines}"


def _templated(tokenizer: Any, messages: tuple[ChatMessage, ...]) -> str:
    """The model's template; where it knows no system role, the first user message carries the system text."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return _apply(tokenizer, turns)
    except jinja2.TemplateError as error:
        if turns[0]["role"] != "system" or len(turns) < 2:
            raise EngineError("invalid", f"the model's chat template refuses these messages: {error}") from error
        system, first, *rest = turns
        merged = {**first, "content": f"{system['content']}\n\n{first['content']}"}
        return _templated(tokenizer, tuple(msgspec.convert([merged, *rest], list[ChatMessage])))


def _apply(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _continued(tokenizer: Any, text: str, delivered: str, *, special: bool) -> Prompt:
    ids = _encode(tokenizer, text + delivered, special=special)
    before = len(_encode(tokenizer, text, special=special)) if delivered else len(ids)
    return Prompt(ids=ids, delivered=max(0, len(ids) - before))


def _encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Ids with exactly one <bos> where the tokenizer uses one, and without the <eos> some tokenizers append."""
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    if ids and special and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids = ids[:-1]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]  # an empty prompt: begin from nothing
    if not ids:
        raise EngineError("invalid", "the prompt is empty")
    return ids
