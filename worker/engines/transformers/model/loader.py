"""From a folder on disk to a model in memory that is known to work, or one line why not."""

import json
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from safetensors import SafetensorError

from worker.engines.base import DEFAULT_SLOTS, EngineUnavailable
from worker.engines.transformers.fallback import padded, sequential
from worker.engines.transformers.model import (
    compilation,
    float8_cache,
    gpu_precision,
    quantization,
    settings,
)
from worker.engines.transformers.model.cache_size import CacheSize
from worker.engines.transformers.model.checkpoint_format import choose_loading, packed_bits
from worker.engines.transformers.model.context_length import context_length
from worker.engines.transformers.model.errors import UnsupportedModel
from worker.engines.transformers.model.float8 import has_float8_products
from worker.engines.transformers.model.float8_loading import count_float8_weights, float8_config
from worker.engines.transformers.model.gpu_precision import FP8
from worker.engines.transformers.model.kv_cache import KVCacheLayout, attention_restored_on_error
from worker.engines.transformers.model.load_progress import reporting
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.model.memory import (
    cache_size_for,
    free_on_gpu,
    limit_gpu_memory,
    token_capacity,
    uses_pages,
)
from worker.engines.transformers.model.miniature import Miniature
from worker.engines.transformers.model.placement import (
    check_device_map,
    find_devices,
    max_weight_memory,
)
from worker.engines.transformers.model.prefill_speed import (
    measure_step_seconds,
    prefill_tokens,
)
from worker.engines.transformers.model.probe import (
    create_runner,
    probe_padded_batch,
    probe_runner,
)
from worker.engines.transformers.model.room import check_room
from worker.engines.transformers.model.rope import choose_by_sequence
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.errors import one_line

log = structlog.get_logger(__name__)

# How chat templates end a turn. A converted model may list only <eos> in its generation settings.
_TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|eom_id|>")

_LOAD_ERRORS = (
    SafetensorError,
    torch.OutOfMemoryError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
)


def load(folder: Path, device_names: str, slots: int | None) -> LoadedModel:
    """Loads safetensors and tokenizer of `folder` on a device, or spread over several, for `slots`
    sequences at once (None: see `cache_size_for`). Blocks; raises EngineUnavailable.
    """
    devices = find_devices(device_names)
    check_folder(folder)
    set_threads()
    for device in devices:
        limit_gpu_memory(device)
    first = devices[0]
    float8_cache.is_requested(first)
    if first.type == "cuda":
        gpu_precision.check(first)
        torch.cuda.set_device(first)  # of this thread: Triton launches on the current device
    try:
        config = load_config(folder, first)
        options = _room_options(folder, config, devices)
        tokenizer = load_tokenizer(folder)
        if len(devices) == 1:
            model = load_weights(folder, first, config, device_map=first, **options)
        else:
            free = {device: free_on_gpu(device) for device in devices}
            memory = max_weight_memory(free)
            model = load_weights(folder, first, config, device_map="auto", max_memory=memory)
    except _LOAD_ERRORS as error:
        raise EngineUnavailable(
            f"cannot load the model in {folder} on {device_names}: {one_line(error)}"
        ) from error
    if len(devices) > 1:
        check_device_map(model.hf_device_map, devices)
        log.info("layers are spread", devices=device_names)
    return prepare_model(model, tokenizer, slots)


def _room_options(folder: Path, config: Any, devices: list[torch.device]) -> dict[str, Any]:
    """For `load_weights`, where weights have room only if they become float8 as they are read.
    Raises EngineUnavailable if they have none, and what transformers raises.
    """
    first = devices[0]
    try:
        check_room(folder, devices, packed_bits=packed_bits(config))
        return {}
    except EngineUnavailable as error:
        if len(devices) > 1 or _is_quantized(config) or not has_float8_products(first):
            raise
        float8_weights = count_float8_weights(config)
        if gpu_precision.check(first) != FP8:
            if _has_room(folder, devices, float8_weights):
                raise EngineUnavailable(f"{error}, or --precision fp8, which has room") from error
            raise
    check_room(folder, devices, float8_weights=float8_weights)
    return {"quantization_config": float8_config()}


def _has_room(folder: Path, devices: list[torch.device], float8_weights: int) -> bool:
    try:
        check_room(folder, devices, float8_weights=float8_weights)
    except EngineUnavailable:
        return False
    return True


def _is_quantized(config: Any) -> bool:
    """Whether the checkpoint is published so."""
    return getattr(config, "quantization_config", None) is not None


def prepare_model(
    model: Any, tokenizer: Any, slots: int | None, context: int | None = None
) -> LoadedModel:
    """Prepares a model in memory for `slots` sequences at once (None: see `cache_size_for`) of at
    most `context` tokens (None: what the memory allows). It gets a runner if that gives its own
    answers; otherwise `fallback` computes it. Raises EngineUnavailable.
    """
    device: torch.device = model.device
    library_attention = str(model.config._attn_implementation)
    longest = context_length(model, tokenizer)
    context = min(longest, context or longest)
    choose_by_sequence(model)
    miniature = Miniature(model)
    runner, batched, precision = None, True, ""
    if device.type == "cuda":  # before the probe: the library, too, computes the new layers
        precision = gpu_precision.quantize(model, tokenizer, library_attention)
    try:
        runner = runner_of(model, tokenizer, miniature, slots, context)
        size = CacheSize(runner.slots, runner.context, runner.blocks)
    except UnsupportedModel as error:
        batched = _batches(model, miniature)
        log.warning(
            "computed the library's way",
            model=type(model).__name__,
            alone=not batched,
            reason=str(error),
        )
        # Rows are padded, and copied as they grow: how many have room is not known beforehand.
        capacity = token_capacity(device, _fallback_bytes_per_token(model, batched=batched))
        size = cache_size_for(model, capacity, slots or DEFAULT_SLOTS, context)
    if device.type == "cpu":  # after the probe, which compares the numbers that the model came in
        precision = quantization.quantize(model, tokenizer, size.slots, library_attention)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(model, tokenizer),
        slots=size.slots,
        context=size.context,
        vocabulary=model.config.get_text_config(decoder=True).vocab_size,
        prefill_tokens=prefill_tokens(runner, device),
        step_seconds=_step_seconds(runner, device),
        runner=runner,
        batched=batched,
        precision=precision,
    )


def _step_seconds(runner: LocalModelRunner | None, device: torch.device) -> dict[int, float]:
    """See `measure_step_seconds`. Raises EngineUnavailable where a step cannot be computed."""
    try:
        return measure_step_seconds(runner, device)
    except torch.OutOfMemoryError as error:
        raise EngineUnavailable(
            "beside the model and its KV cache there is no memory for a step: end other programs "
            f"on {device}, or say a larger or no --memory-fraction: {one_line(error)}"
        ) from error
    except RuntimeError as error:
        raise EngineUnavailable(
            f"the model cannot be run on {device}: {one_line(error)}"
        ) from error


def runner_of(
    model: Any, tokenizer: Any, miniature: Miniature, slots: int | None, context: int
) -> LocalModelRunner:
    """Raises UnsupportedModel, and leaves the model as it was then."""
    if settings.library_attention():
        raise UnsupportedModel("CANOPY_LIBRARY_ATTENTION is set")
    try:
        with attention_restored_on_error(model):
            return _proved_runner(model, tokenizer, miniature, slots, context)
    except UnsupportedModel as error:
        raise UnsupportedModel(one_line(error)) from error
    except RuntimeError as error:  # torch's: no memory, no such kernel for this GPU
        raise UnsupportedModel(one_line(error)) from error


def _proved_runner(
    model: Any, tokenizer: Any, miniature: Miniature, slots: int | None, context: int
) -> LocalModelRunner:
    layout = KVCacheLayout(model, context)
    prefill_again = probe_runner(miniature, layout.kinds)
    rope_limit = choose_by_sequence(model)
    if rope_limit is not None:
        rope_limit = rope_limit._replace(prefill_again=prefill_again)
    if float8_cache.is_requested(model.device):
        float8_cache.use_float8(model, tokenizer, layout)
    devices = set(layout.devices.values())
    capacities: list[int] = []
    for device in devices:
        bytes_per_token = layout.bytes_per_token(layout.dtype, device)
        capacities.append(token_capacity(device, bytes_per_token, shared=slots is None))
    pages = uses_pages(model.device)
    size = cache_size_for(
        model, min(capacities), slots, context, pages=pages, groups=layout.block_groups
    )
    runner = create_runner(model, layout, size, rope_limit=rope_limit)
    if len(devices) > 1:
        log.info("steps are not recorded: a graph belongs to one device")
    elif model.device.type == "cuda":
        _optimize(model, layout, runner)
    return runner


def _optimize(model: Any, layout: KVCacheLayout, runner: LocalModelRunner) -> None:
    try:
        compilation.optimize(model, layout, runner)
    except Exception as error:  # whatever it is, the library can still compute the model
        compilation.uncompile_layers(model, layout)
        runner.release()
        raise UnsupportedModel(one_line(error)) from error


def _batches(model: Any, miniature: Miniature) -> bool:
    """Whether padded rows that are computed together give the library's answers."""
    try:
        probe_padded_batch(miniature, model)
    except UnsupportedModel as error:
        log.info("computed one by one", model=type(model).__name__, reason=str(error))
        return False
    return True


def _fallback_bytes_per_token(model: Any, *, batched: bool) -> int:
    """Computes a few tokens, which also shows whether the model can be computed at all. Raises
    EngineUnavailable.
    """
    try:
        with torch.inference_mode():
            if batched:
                return padded.bytes_per_token(model)
            return sequential.bytes_per_token(model)
    except Exception as error:  # any architecture may fail in its own way
        raise EngineUnavailable(
            f"the model {type(model).__name__} cannot be run here: {one_line(error)}"
        ) from error


def set_threads() -> None:
    """Computes on as many cores as CANOPY_THREADS says; unset, torch takes all of them."""
    threads = settings.threads()
    if threads is not None:
        torch.set_num_threads(threads)


def check_folder(folder: Path) -> None:
    """Raises EngineUnavailable if it holds no model."""
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


def load_tokenizer(folder: Path) -> Any:
    """Raises EngineUnavailable."""
    transformers.utils.logging.disable_progress_bar()  # logs are one line a fact
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except _LOAD_ERRORS as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {one_line(error)}") from error


def load_config(folder: Path, device: torch.device, *, divided: bool = False) -> Any:
    """With the quantization settings that suit `device`; see `choose_loading`. Raises what
    transformers raises, and EngineUnavailable.
    """
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    try:
        choose_loading(config, device, divided=divided)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {error}") from error
    return config


def load_weights(folder: Path, device: torch.device, config: Any, **options: Any) -> Any:
    """`config`: as `load_config` gives it. float32 on a CPU, where bfloat16 is slower unless the
    CPU has instructions for it; bfloat16 on a GPU; quantized weights see `checkpoint_format`.
    `options`: from_pretrained's, which say where to. Raises what it raises, and EngineUnavailable
    where weights are missing.
    """
    dtype = torch.bfloat16
    if device.type == "cpu":
        dtype = torch.float32
    if _is_quantized(config):
        log.info("quantized weights", as_loaded=packed_bits(config) is None)
    with reporting(sum(file.stat().st_size for file in folder.glob("*.safetensors"))):
        result: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            dtype=dtype,
            **options,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    model, report = result
    missing = sorted(report["missing_keys"])  # transformers would fill them with random numbers
    if missing:
        raise EngineUnavailable(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    return model.eval()


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: of the generation settings, the tokenizer, the template."""
    ids = {tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id
    if isinstance(configured, list):
        ids.update(configured)
    else:
        ids.add(configured)
    template = str(tokenizer.chat_template or "")
    vocabulary = tokenizer.get_added_vocab()
    for mark in _TURN_ENDS:
        if mark in template:
            ids.add(vocabulary.get(mark))
    return frozenset(token for token in ids if token is not None)
