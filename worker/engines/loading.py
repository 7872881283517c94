"""From a folder on disk to a model in memory that is known to work, or one clear line saying why not."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from safetensors import SafetensorError

from worker.engines.base import EngineUnavailable
from worker.engines.batch import Batch
from worker.engines.loaded import Loaded

# How chat templates end a turn. A model that was converted may list only <eos> in its generation settings.
_TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|eom_id|>")


def load(folder: Path, device: str, slots: int) -> Loaded:
    """Loads safetensors and tokenizer of `folder` for `slots` rows at once. Blocks; raises EngineUnavailable."""
    place = find_device(device)
    _check_folder(folder)
    set_threads()
    transformers.utils.logging.disable_progress_bar()  # logs are one line a fact
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = _load_model(folder, place)
    except (SafetensorError, torch.OutOfMemoryError, OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {_one_line(error)}") from error
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        ends=end_tokens(model, tokenizer),
        context=_context(model, place, slots, _bytes_per_token(model, folder)),
        vocabulary=model.config.get_text_config().vocab_size,
        prefill_tokens=256 if place.type == "cpu" else 2048,
    )


def find_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first GPU or else the CPU. Raises EngineUnavailable."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch says "no CUDA" by assertion
        raise EngineUnavailable(f"no such device {name!r}: {_one_line(error)}") from error
    if device.type == "meta":
        raise EngineUnavailable("no such device 'meta'")
    return device


def set_threads() -> None:
    """CANOPY_THREADS limits the cores one node computes on; unset, torch takes all of them."""
    if not (wanted := os.environ.get("CANOPY_THREADS")):
        return
    if not wanted.isdecimal() or int(wanted) < 1:
        raise EngineUnavailable(f"CANOPY_THREADS must be a number from 1 up, not {wanted!r}")
    torch.set_num_threads(int(wanted))


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: those of the generation settings, the tokenizer's, and the template's end of turn."""
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    template = str(tokenizer.chat_template or "")
    vocabulary = tokenizer.get_added_vocab()
    ends |= {vocabulary.get(mark) for mark in _TURN_ENDS if mark in template}
    return frozenset(end for end in ends if end is not None)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        advice = f"make it with: python -m worker.models prepare {folder.name}"
        raise EngineUnavailable(f"no model folder {folder}; {advice}")
    config = folder / "config.json"
    if not config.is_file() or not any(folder.glob("*.safetensors")):
        raise EngineUnavailable(f"{folder} is not a model: it needs config.json and *.safetensors")
    try:
        json.loads(config.read_text())
    except ValueError as error:
        raise EngineUnavailable(f"{config} is not JSON: {error}") from error


def _load_model(folder: Path, place: torch.device) -> Any:
    """float32 on a CPU, where bfloat16 is slower unless the CPU has instructions for it; bfloat16 on a GPU."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        dtype=torch.float32 if place.type == "cpu" else torch.bfloat16,
        device_map=place,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # the library would fill them with random numbers
        raise EngineUnavailable(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    return model.eval()


def _bytes_per_token(model: Any, folder: Path) -> int:
    """Reads one token, which also shows whether this architecture keeps plain keys and values."""
    batch = Batch(model)
    batch.start([], [0])
    try:
        with torch.inference_mode():
            batch.step([[0]])
        return batch.bytes_per_token()
    except Exception as error:  # any architecture may fail in its own way; to the operator it is one thing
        raise EngineUnavailable(f"the model in {folder} cannot be run here: {_one_line(error)}") from error


def _context(model: Any, place: torch.device, slots: int, bytes_per_token: int) -> int:
    """The model's own context, or less where full rows in all slots would not fit into half the free memory."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 8192
    free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(int(longest), free // 2 // (slots * max(1, bytes_per_token))))


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
