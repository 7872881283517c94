"""Small tokenizers with chat templates as models have them, and jobs of turns for them."""

from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from broker.wire import ChatMessage, Job, Sampling
from tests.unit.engine import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
REASONS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
]
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "inst": INST, "reasons": REASONS, "none": None}


def byte_level(template: str | None, *, special: bool = True) -> Any:
    """A token a byte, and the markers."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(
        [AddedToken(marker, special=special, normalized=False) for marker in MARKERS]
    )
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece(template: str | None, *, special: bool = True) -> Any:
    """As Llama's and Gemma's: a visible space, put before the text's beginning; runs of newlines
    are single tokens.
    """
    letters = [chr(code) for code in range(33, 127)]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "▁t",
        "th",
        "the",
        *letters,
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    merges = [("▁", "t"), ("t", "h"), ("th", "e")]
    core = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first", split=False
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    tokenizer.add_tokens(
        [AddedToken(marker, special=special, normalized=False) for marker in MARKERS]
    )
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    "bytes": byte_level,
    "bytes, markers not special": lambda template: byte_level(template, special=False),
    "pieces": sentencepiece,
    "pieces, markers not special": lambda template: sentencepiece(template, special=False),
}


def chat(
    *turns: tuple[str, str],
    truncate: bool = False,
    delivered: str = "",
    max_tokens: int | None = None,
) -> Job:
    messages = tuple(ChatMessage(role=role, content=text) for role, text in turns)  # type: ignore[arg-type]
    return Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        messages=messages,
        truncate=truncate,
        delivered=delivered,
        sampling=Sampling(max_tokens=max_tokens),
    )
