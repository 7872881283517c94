"""Jobs that the intake answers by itself: a prompt's tokens, or the text of tokens."""

import msgspec

from broker.wire import Job, TokenLogprob
from worker.engines.base import Chunk, InvalidRequest, PromptTooLong
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.text.chat_template import Prompts
from worker.engines.transformers.text.token_bytes import TokenBytes


def answer(job: Job, loaded: LoadedModel, prompts: Prompts) -> list[Chunk]:
    """The whole answer, without what its reader has of it. Raises InvalidRequest."""
    if job.task == "detokenize":
        return _detokenized(job, loaded)
    whole = msgspec.structs.replace(job, delivered="", delivered_ids=())
    ids = tuple(prompts.prepare(whole).ids)
    spelled: tuple[TokenLogprob, ...] = ()
    if job.sampling.prompt_logprobs is not None:  # of which only the tokens' bytes are known
        token_bytes = TokenBytes(loaded.tokenizer)
        spelled = tuple(TokenLogprob(token_bytes.of(token), 0.0) for token in ids)
    left = ids[len(job.delivered_ids) :]
    return [
        Chunk(prompt_tokens=len(ids)),
        Chunk(ids=left, prompt_logprobs=spelled, finish="stop"),
    ]


def _detokenized(job: Job, loaded: LoadedModel) -> list[Chunk]:
    ids = list(job.prompt_ids)
    if len(ids) > loaded.context:
        raise PromptTooLong(f"{len(ids)} tokens; this node reads at most {loaded.context}")
    if max(ids, default=0) >= loaded.vocabulary:
        raise InvalidRequest("tokens: there is one that the model does not know")
    text = str(loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return [
        Chunk(prompt_tokens=len(ids)),
        Chunk(text=text[len(job.delivered) :], finish="stop"),
    ]
