"""Tiny models of any architecture of the library, and what they answer: here, and by the library's
own `generate`.
"""

import queue
from collections.abc import Sequence as Many
from typing import Any

import msgspec
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from broker.wire import Job, Sampling
from worker.engines.base import Chunk
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.model.loader import prepare_model
from worker.engines.transformers.model.shrunk_config import shrunk
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence

VOCABULARY = 96
LENGTHS = (3, 12, 21, 40)  # of prompts
_FIRST = 0x4E00  # a character a token, none of which any tokenizer strips or joins


def tokenizer() -> Any:
    """Token n is the n-th character from `_FIRST` on."""
    core = Tokenizer(
        models.WordLevel(
            {chr(_FIRST + token): token for token in range(VOCABULARY)}, unk_token=chr(_FIRST)
        )
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core)


def tiny(kind: str, small: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A model of that `model_type`, with random weights; `settings` are its config's, before it is
    made small, and `small` after that.
    """
    config = shrunk(CONFIG_MAPPING[kind](**settings))
    return made(type(config).from_dict({**config.to_dict(), **(small or {})}))


def made(config: Any, seed: int = 0) -> Any:
    """The model of a config that is small already. Steep weights: rounding must not decide which
    token is next.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.12)
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def prompts(lengths: Many[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths
    ]


@torch.inference_mode()
def generated(model: Any, prompt: list[int], length: int) -> list[int]:
    """By the library, alone."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        use_cache=True,
    )
    return list(output[0, len(prompt) :].tolist())


def loaded(model: Any, slots: int = 3, read: int = 16, context: int | None = None) -> LoadedModel:
    """The model made ready, as a node does; of a prompt `read` tokens are read at a time."""
    there = prepare_model(model, tokenizer(), slots, context)
    return msgspec.structs.replace(there, prefill_tokens=read, context=context or there.context)


def answers(there: LoadedModel, prompt_ids: Many[list[int]], length: int) -> list[list[int]]:
    """Of all prompts, computed at once in as many slots as there are."""
    news: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    decoder = Decoder(there, there.slots, news.put)
    decoder.start()
    sequences = [Sequence(_job(prompt, length), Mailbox()) for prompt in prompt_ids]
    texts = {sequence.mailbox: "" for sequence in sequences}
    for sequence in sequences:
        decoder.submit(sequence)
    open_ = len(sequences)
    while open_:
        for mailbox, item in news.get(timeout=30):
            if not isinstance(item, Chunk):
                raise item
            texts[mailbox] += item.text
            open_ -= item.finish is not None
    assert decoder.stop(10)
    return [
        [ord(character) - _FIRST for character in texts[sequence.mailbox]] for sequence in sequences
    ]


def _job(prompt: list[int], length: int) -> Job:
    text = "".join(chr(_FIRST + token) for token in prompt)
    sampling = Sampling(temperature=0.0, max_tokens=length)
    return Job(
        request_id="r", model="tiny", reply_to="q", created=0.0, prompt=text, sampling=sampling
    )
