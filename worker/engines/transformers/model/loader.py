"""From a folder on disk to a model in memory that is known to work, or one clear line saying why not."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import structlog
import torch
import transformers
from safetensors import SafetensorError

from worker import models
from worker.engines.base import DEFAULT_SLOTS, EngineUnavailable
from worker.engines.transformers.fallback.batch import Batch
from worker.engines.transformers.fallback.one_by_one import bytes_per_token
from worker.engines.transformers.model import cache_size as sizing
from worker.engines.transformers.model import quantization as precision
from worker.engines.transformers.model.cache_size import Size
from worker.engines.transformers.model.context_length import context_length
from worker.engines.transformers.model.fused_qkv import join
from worker.engines.transformers.model.loaded import Loaded
from worker.engines.transformers.model.probe import Shape, compile_layers, fit, uncompile
from worker.engines.transformers.model.rope import choose_by_sequence
from worker.engines.transformers.model.runner import BUCKETS, SlotModel, Unfit
from worker.engines.transformers.model.twin import Twin, prove_rows, prove_slots
from worker.errors import one_line

log = structlog.get_logger(__name__)

_READ_SECONDS = 0.05  # for which the reading of a prompt may hold up others at a time, on a GPU
_GPU_SHARE = 0.85  # of the memory that is free once the weights are there

# How chat templates end a turn. A model that was converted may list only <eos> in its generation settings.
_TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|eom_id|>")


def load(folder: Path, device: str, slots: int | None) -> Loaded:
    """Loads safetensors and tokenizer of `folder` for `slots` rows at once (None: see `size_of`). Blocks; raises
    EngineUnavailable.
    """
    place = find_device(device)
    check_folder(folder)
    set_threads()
    if place.type == "cuda":
        torch.cuda.set_device(place)  # of this thread: Triton launches on the current one
    transformers.utils.logging.disable_progress_bar()  # logs are one line a fact
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model = load_weights(folder, place, device_map=place)
    except (
        SafetensorError,
        torch.OutOfMemoryError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
    ) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {one_line(error)}") from error
    return ready(model, tokenizer, slots)


def ready(model: Any, tokenizer: Any, slots: int | None, context: int | None = None) -> Loaded:
    """A model in memory, made ready for `slots` sequences at once (None: see `size_of`) of at most `context` tokens
    (None: what the memory allows). It is computed over slots where that gives its own answers, else the library's way.
    Raises EngineUnavailable.
    """
    place: torch.device = model.device
    attention = str(model.config._attn_implementation)  # the library's
    over, alone = None, False
    longest = context_length(model, tokenizer)
    context = min(longest, context or longest)
    choose_by_sequence(model)
    twin = Twin(model)
    try:
        over = _onto_slots(model, twin, slots, context)
        size = Size(over.slots, over.context)
    except Unfit as error:
        alone = not _batches(model, twin)
        log.warning(
            "computed the library's way", model=type(model).__name__, alone=alone, reason=str(error)
        )
        # There rows are padded, and copied as they grow: how many have room is not known before.
        size = size_of(
            model, room(place, _bytes_per_token(model, alone)), slots or DEFAULT_SLOTS, context
        )
    chosen = ""
    if place.type == "cpu":  # only now: that a model fits was proved in the numbers it came in
        chosen = precision.settle(model, tokenizer, size.slots, attention)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        eos_token_ids=end_tokens(model, tokenizer),
        slots=size.slots,
        context=size.context,
        vocabulary=model.config.get_text_config(decoder=True).vocab_size,
        prefill_tokens=_prefill_tokens(over, place),
        over=over,
        alone=alone,
        precision=chosen,
    )


def _onto_slots(model: Any, twin: Twin, slots: int | None, context: int) -> SlotModel:
    """Raises Unfit, and leaves the model as it was then."""
    if os.environ.get("CANOPY_LIBRARY_ATTENTION"):
        raise Unfit("CANOPY_LIBRARY_ATTENTION is set")
    place = model.device
    try:
        shape = Shape(model)
        reread = prove_slots(twin, shape.kinds)
        tokens = min(
            room(each, shape.bytes_per_token(model.dtype, each), shared=slots is None)
            for each in {*shape.places.values()}
        )
        over = fit(model, shape, *size_of(model, tokens, slots, context))
    except (
        Unfit,
        RuntimeError,
    ) as error:  # a RuntimeError is torch's: no memory, no such kernel for this GPU
        raise Unfit(one_line(error)) from error
    limit = choose_by_sequence(model)
    over.limit = limit._replace(reread=reread) if limit is not None else None
    if len({*shape.places.values()}) > 1:
        log.info("steps are not recorded: a graph is one device's")
    elif place.type == "cuda":
        _quicken(model, shape, over)
    return over


def _prefill_tokens(over: SlotModel | None, place: torch.device) -> int:
    """How much of a prompt is read between two steps: as much as those who run will hardly notice."""
    if place.type == "cpu":
        return 256
    if over is None:
        return 2048
    most = min(2048, over.context)
    with torch.inference_mode():
        seconds = min(over.seconds_to_read(most) for _ in range(3))
    tokens = min(most, max(256, int(_READ_SECONDS / seconds * most) // 256 * 256))
    log.info(
        "reading prompts", tokens=tokens, milliseconds=round(1000 * seconds * tokens / most, 1)
    )
    return tokens


def _quicken(model: Any, shape: Shape, over: SlotModel) -> None:
    """For a GPU: fewer and larger kernels, and a step that is one launch."""
    cached = models.home() / "cache"
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(cached / "inductor")
    )  # a restart compiles nothing
    os.environ.setdefault("TRITON_CACHE_DIR", str(cached / "triton"))
    sys.setswitchinterval(0.0005)  # a step must not wait for the event loop's turn to end
    joined = sum(join(module) for module in shape.modules)
    blocks = compile_layers(model, shape)
    log.info("compiling", layers=blocks, joined=joined)
    with torch.inference_mode():
        try:
            over.capture(_progress)
        except Exception as error:  # a compiler fails in many ways; the model runs without it
            log.warning("not compiled", reason=one_line(error))
            uncompile(model, shape)
            _record(over)


def _record(over: SlotModel) -> None:
    """Some models ask the device for a number in the middle of a step: they are computed unrecorded."""
    try:
        over.capture(_progress)
    except RuntimeError as error:
        log.warning("decoding steps are not recorded", reason=one_line(error))
        over.forget_graphs()


def _progress(doing: str) -> None:
    log.info(doing)


def find_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first GPU or else the CPU. Raises EngineUnavailable."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # torch says "no CUDA" by assertion
        raise EngineUnavailable(f"no such device {name!r}: {one_line(error)}") from error
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
    ends = set(configured if isinstance(configured, list) else [configured]) | {
        tokenizer.eos_token_id
    }
    template = str(tokenizer.chat_template or "")
    vocabulary = tokenizer.get_added_vocab()
    ends |= {vocabulary.get(mark) for mark in _TURN_ENDS if mark in template}
    return frozenset(end for end in ends if end is not None)


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


def load_weights(folder: Path, place: torch.device, **how: Any) -> Any:
    """float32 on a CPU, where bfloat16 is slower unless the CPU has instructions for it; bfloat16 on a GPU. `how`:
    where to, in transformers' words.
    """
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        dtype=torch.float32 if place.type == "cpu" else torch.bfloat16,
        **how,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # the library would fill them with random numbers
        raise EngineUnavailable(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    return model.eval()


def _batches(model: Any, twin: Twin) -> bool:
    """Whether rows that are padded and computed together give the library's answers."""
    try:
        prove_rows(twin, model)
    except Unfit as error:
        log.info("computed one by one", model=type(model).__name__, reason=str(error))
        return False
    return True


def _bytes_per_token(model: Any, alone: bool) -> int:
    """Reads a few tokens, which also shows whether the model can be computed at all. Raises EngineUnavailable."""
    try:
        with torch.inference_mode():
            if alone:
                return bytes_per_token(model)
            batch = Batch(model)
            batch.start([], [0])
            batch.step([[0]])
            return batch.bytes_per_token()
    except (
        Exception
    ) as error:  # any architecture may fail in its own way; to the operator it is one thing
        raise EngineUnavailable(
            f"the model {type(model).__name__} cannot be run here: {one_line(error)}"
        ) from error


def room(place: torch.device, bytes_per_token: int, *, shared: bool = False) -> int:
    """How many tokens' keys and values fit into the memory meant for them on that device. `shared`: where other nodes
    compute there too (CANOPY_GPU_NODES), into this node's part.
    """
    if place.type == "cuda":  # the rest is for what a step computes meanwhile, and for graphs
        free, total = torch.cuda.mem_get_info(place)
        nodes = gpu_nodes() if shared else 1
        meant = int(sizing.part(free, total, torch.cuda.memory_reserved(place), nodes) * _GPU_SHARE)
    else:
        meant = psutil.virtual_memory().available // 2
    return meant // max(1, bytes_per_token)


def size_of(model: Any, tokens: int, slots: int | None, asked: int | None = None) -> Size:
    """How many sequences at once, how long, where `tokens` fit on the tightest device: `slots` (None: on a GPU as many
    as fit, else DEFAULT_SLOTS), each with the model's own context, or `asked`, or what the memory allows. Raises
    EngineUnavailable.
    """
    longest = asked or context_length(model)
    if slots is not None or model.device.type != "cuda":
        return sizing.fixed(tokens, longest, slots or DEFAULT_SLOTS)
    size = sizing.chosen(tokens, longest, BUCKETS)
    if size is None:
        wanted = sizing.least_tokens(longest)
        raise EngineUnavailable(
            f"beside the model the GPU has room for keys and values of {tokens} tokens, and one answer wants {wanted}: "
            "take a GPU with more memory, several, or fewer nodes on it"
        )
    log.info("slots", chosen=size.slots, context=size.context)
    return size


def gpu_nodes() -> int:
    """CANOPY_GPU_NODES: how many nodes share a GPU. Raises EngineUnavailable."""
    wanted = os.environ.get("CANOPY_GPU_NODES") or "1"
    if not wanted.isdecimal() or int(wanted) < 1:
        raise EngineUnavailable(f"CANOPY_GPU_NODES must be a number from 1 up, not {wanted!r}")
    return int(wanted)
