"""A model larger than one GPU, in one process: its layers are spread over several, one after the other
(`--device cuda:0,cuda:1`). accelerate decides which layer goes where and moves what passes from one to the next.

While one GPU computes the others wait, so this adds memory and no speed: `parallel` adds both.
"""

from pathlib import Path

import structlog
import torch
import transformers
from safetensors import SafetensorError

from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model.loaded import Loaded
from worker.engines.transformers.model.loader import (
    check_folder,
    find_device,
    load_weights,
    ready,
    set_threads,
)
from worker.errors import one_line

log = structlog.get_logger(__name__)

_WEIGHTS_SHARE = 0.8  # of each GPU's free memory, at most; the rest is for keys and values


def find_devices(names: str) -> list[torch.device]:
    """The devices called `names`, one or several with commas between. Raises EngineUnavailable."""
    places = [find_device(name.strip()) for name in names.split(",")]
    if len(places) == 1:
        return places
    if any(place.type != "cuda" or place.index is None for place in places):
        raise EngineUnavailable(
            f"only GPUs can share a model, by their numbers (cuda:0,cuda:1), not {names!r}"
        )
    if len(set(places)) < len(places):
        raise EngineUnavailable(f"a device is named twice in {names!r}")
    return places


def load(folder: Path, devices: str, slots: int | None) -> Loaded:
    """Loads the model in `folder` over several GPUs for `slots` rows at once (None: as many as fit). Blocks; raises
    EngineUnavailable.
    """
    places = find_devices(devices)
    check_folder(folder)
    set_threads()
    torch.cuda.set_device(places[0])
    transformers.utils.logging.disable_progress_bar()
    memory = most_weights({place: torch.cuda.mem_get_info(place)[0] for place in places})
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model = load_weights(folder, places[0], device_map="auto", max_memory=memory)
    except (
        SafetensorError,
        torch.OutOfMemoryError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
    ) as error:
        reason = one_line(error)
        raise EngineUnavailable(
            f"cannot load the model in {folder} over {devices}: {reason}"
        ) from error
    check_map(model.hf_device_map, places)
    log.info("layers are spread", devices=devices)
    return ready(model, tokenizer, slots)


def most_weights(free: dict[torch.device, int]) -> dict[int, int]:
    """For accelerate: how many bytes of weights each GPU, by its number, may hold; `free` is what each has."""
    return {place.index: int(memory * _WEIGHTS_SHARE) for place, memory in free.items()}


def check_map(device_map: dict[str, int | str | torch.device], places: list[torch.device]) -> None:
    """Raises EngineUnavailable if a part of the model is not on one of the GPUs: from the host's memory, or from disk,
    each step would take seconds.
    """
    there = {place.index for place in places}
    elsewhere = sorted(
        part for part, where in device_map.items() if getattr(where, "index", where) not in there
    )  # numbers, or torch devices
    if elsewhere:
        raise EngineUnavailable(
            f"the model is too large for these {len(places)} GPUs: no room for {elsewhere[0]!r}"
        )
