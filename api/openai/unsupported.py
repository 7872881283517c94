"""Request fields that are refused by name: they would change the answer, and are not implemented.

A client that requests a search or a template and gets an ordinary answer would take it for the
requested one. Fields that change nothing here, such as `metadata` or `store`, are not in the
tables. A field that is implemented moves to schemas.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

from api.errors import UNSUPPORTED


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field that is not implemented.

    `neutral`: values besides null that change nothing; `instead`: what the client can do.
    """

    neutral: tuple[Any, ...] = ()
    instead: str = "leave it out"


def _only(*neutral: Any, instead: str = "leave it out") -> Unsupported:
    return Unsupported(neutral, instead)


_USE_MAX_TOKENS = "use max_tokens"
_USE_STOP = "use stop"
_USE_SEED = "use seed"
_USE_KWARGS = "use chat_template_kwargs, as the model's template names it"
_USE_MIN_TOKENS = "use min_tokens"
_USE_MESSAGES = "use a message with the role system"

_USE_CHAT = "use /v1/chat/completions"
_CALLS = {
    "tools": _only([], instead=_USE_CHAT),
    "tool_choice": _only("none", "auto", instead=_USE_CHAT),
    "functions": _only([], instead=_USE_CHAT),
    "function_call": _only("none", "auto", instead=_USE_CHAT),
    "reasoning_effort": _only(),
}

_TOOLS = {
    "web_search_options": _only(),
    "web_search": _only(False),
    "enable_search": _only(False),
    "search_parameters": _only(),
    "plugins": _only([]),
    "data_sources": _only([]),
}

_STRUCTURE = {
    "json_schema": _only({}),
    "json_object": _only(False),
    "format": _only("", "text"),
    "grammar": _only(""),
    "grammar_string": _only(""),
    "ebnf": _only(""),
    "regex": _only(""),
    "structural_tag": _only(""),
}

_MODALITIES = {
    "modalities": _only(["text"], []),
    "audio": _only(),
    "images": _only([]),
    "input_audio": _only(),
}

_PROMPT = {
    "echo": _only(False),
    "suffix": _only(""),
    "system": _only("", instead=_USE_MESSAGES),
    "system_prompt": _only("", instead=_USE_MESSAGES),
    "instructions": _only("", instead=_USE_MESSAGES),
    "safe_prompt": _only(False),
    "negative_prompt": _only(""),
    "documents": _only([]),
    "chat_template": _only(""),
    "template": _only(""),
    "truncate": _only(),
    "truncation": _only("disabled"),
    "transforms": _only([]),
    "truncate_prompt_tokens": _only(),
    "prompt_truncate_len": _only(),
    "prompt_embeds": _only(),
    "return_full_text": _only(False),
    "reasoning": _only({}),
    "thinking": _only(instead=_USE_KWARGS),
    "enable_thinking": _only(instead=_USE_KWARGS),
    "think": _only(instead=_USE_KWARGS),
    "thinking_budget": _only(),
    # a hint for models that know it, as in /v1/responses
    "verbosity": _only("low", "medium", "high", instead="use low, medium or high"),
    "lora": _only([]),
    "lora_path": _only(""),
    "lora_request": _only(),
    "adapters": _only(""),
    "adapter_id": _only(""),
}

_SAMPLING = {
    "use_beam_search": _only(False),
    "num_beams": _only(1),
    "beam_width": _only(1),
    "length_penalty": _only(1),
    "num_return_sequences": _only(1, instead="use n"),
    "do_sample": _only(True, instead="use temperature: 0 for the likeliest tokens"),
    "repeat_penalty": _only(1, instead="use repetition_penalty"),
    "rep_pen": _only(1, instead="use repetition_penalty"),
    "repetition_penalty_range": _only(0),
    "encoder_repetition_penalty": _only(1),
    "no_repeat_ngram_size": _only(0),
    "typical_p": _only(0, 1),
    "typical": _only(0, 1),
    "top_a": _only(0),
    "tfs_z": _only(1),
    "tfs": _only(1),
    "epsilon_cutoff": _only(0),
    "eta_cutoff": _only(0),
    "top_n_sigma": _only(-1, 0),
    "mirostat": _only(0),
    "mirostat_mode": _only(0),
    "dynatemp_range": _only(0),
    "dynamic_temperature": _only(False),
    "smoothing_factor": _only(0),
    "xtc_probability": _only(0),
    "dry_multiplier": _only(0),
    "penalty_alpha": _only(0),
    "guidance_scale": _only(1),
    "watermark": _only(False),
    "samplers": _only([]),
    "sampler_order": _only([]),
    "sampler_priority": _only([]),
    "bad_words": _only([]),
    "bad_words_ids": _only([]),
    "banned_tokens": _only([]),
    "banned_strings": _only([]),
    "custom_token_bans": _only(""),
    "allowed_token_ids": _only([]),
    "logits_processors": _only([]),
    "logit_processors": _only([]),
    "logits_processor": _only([]),
    "custom_logit_processor": _only(""),
    "vllm_xargs": _only({}),
    "random_seed": _only(instead=_USE_SEED),
    "sampling_seed": _only(instead=_USE_SEED),
}

_LENGTH = {
    "min_new_tokens": _only(0, instead=_USE_MIN_TOKENS),
    "min_completion_tokens": _only(0, instead=_USE_MIN_TOKENS),
    "min_length": _only(0, instead=_USE_MIN_TOKENS),
    "max_new_tokens": _only(instead=_USE_MAX_TOKENS),
    "max_length": _only(instead=_USE_MAX_TOKENS),
    "max_output_tokens": _only(instead=_USE_MAX_TOKENS),
    "max_tokens_to_sample": _only(instead=_USE_MAX_TOKENS),
    "n_predict": _only(-1, instead=_USE_MAX_TOKENS),
    "num_predict": _only(-1, instead=_USE_MAX_TOKENS),
    "t_max_predict_ms": _only(0, instead="use the header X-Canopy-Deadline"),
    "ban_eos_token": _only(False, instead="use ignore_eos"),
    "stop_sequences": _only([], instead=_USE_STOP),
    "stop_strings": _only([], instead=_USE_STOP),
    "stopping_strings": _only([], instead=_USE_STOP),
    "stop_regex": _only([], ""),
    "no_stop_trim": _only(False),
}

_ANSWER = {
    "prompt_logprobs": _only(False),
    "n_probs": _only(0, instead="use logprobs"),
    "top_n_tokens": _only(0, instead="use top_logprobs"),
    "decoder_input_details": _only(False),
    "return_tokens_as_token_ids": _only(False),
    "return_token_ids": _only(False),
    "return_tokens": _only(False),
    "return_hidden_states": _only(False),
}

_WRAPPERS = {
    "extra_body": _only({}, instead="put its fields into the body itself"),
    "options": _only({}, instead="put its fields into the body itself"),
    "parameters": _only({}, instead="put its fields into the body itself"),
    "sampling_params": _only({}, instead="put its fields into the body itself"),
}

_COMMON = _TOOLS | _STRUCTURE | _MODALITIES | _PROMPT | _SAMPLING | _LENGTH | _ANSWER | _WRAPPERS

CHAT = _COMMON | {"add_special_tokens": _only(False)}  # the template has them
_TEXT_HAS = ("echo", "prompt_logprobs")
TEXT = {name: field for name, field in (_COMMON | _CALLS).items() if name not in _TEXT_HAS}
MESSAGE = {
    "audio": _only(),
    "images": _only([]),
}
_GUIDED = _only({}, [], "", False)  # what else vLLM has, or will have
_GUIDED_HERE = {"guided_json", "guided_regex", "guided_choice", "guided_grammar"}


def _is_neutral(value: Any, field: Unsupported) -> bool:
    """Compares by type, too: `prompt_logprobs` false is neutral, but 0 is not."""
    if value is None:
        return True
    for neutral in field.neutral:
        if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
            return True
    return False


def refuse(body: Any, table: Mapping[str, Unsupported], *location: str | int) -> None:
    """Raises PydanticCustomError for the first unsupported field of `body`.

    `location`: where `body` is in the request.
    """
    if not isinstance(body, dict):
        return
    for name, value in body.items():
        field = table.get(name)
        if name.startswith("guided_") and name not in _GUIDED_HERE:
            field = _GUIDED
        if field is not None and not _is_neutral(value, field):
            context = {"at": (*location, name), "instead": field.instead}
            raise PydanticCustomError(UNSUPPORTED, "not supported here; {instead}", context)
