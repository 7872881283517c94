"""From a folder on disk to a model that makes vectors or scores, or one line why not."""

from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from worker.engines import tasks
from worker.engines.base import EngineUnavailable
from worker.engines.encoder import files
from worker.engines.encoder.head import activation
from worker.engines.encoder.model import Embedder, PoolingModel, Scorer
from worker.engines.encoder.tokens import Reader
from worker.engines.transformers.model import settings
from worker.engines.transformers.model.context_length import context_length
from worker.engines.transformers.model.load_progress import reporting
from worker.engines.transformers.model.loader import check_folder, load_tokenizer, set_threads
from worker.engines.transformers.model.memory import limit_gpu_memory
from worker.engines.transformers.model.placement import find_device
from worker.engines.transformers.model.room import check_room
from worker.errors import one_line

log = structlog.get_logger(__name__)

_LOAD_ERRORS = (
    SafetensorError,
    torch.OutOfMemoryError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
)
_PRECISIONS = ("auto", "float32", "bfloat16")
_UNLIMITED = 100_000_000  # tokens; a tokenizer without a limit says a larger number


def load(folder: Path, device_name: str, task: str) -> PoolingModel:
    """Blocks; raises EngineUnavailable."""
    device = find_device(device_name)
    check_folder(folder)
    chosen = tasks.choose(task, folder)
    set_threads()
    limit_gpu_memory(device)
    check_room(folder, [device])
    try:
        if chosen == "score":
            return _scorer(folder, device)
        return _embedder(folder, device)
    except _LOAD_ERRORS as error:
        raise EngineUnavailable(
            f"cannot load the model in {folder} on {device}: {one_line(error)}"
        ) from error


def _embedder(folder: Path, device: torch.device) -> Embedder:
    config = _config(folder)
    layout = files.read(folder, causal=_is_causal(config))
    if layout.transformer != folder:
        check_folder(layout.transformer)
        config = _config(layout.transformer)
    kind = transformers.AutoModel
    if config.is_encoder_decoder:
        kind = transformers.AutoModelForTextEncoding
    model = _weights(kind, layout.transformer, config, device)
    tokenizer = load_tokenizer(layout.transformer)
    reader = Reader(
        tokenizer,
        _longest(model, tokenizer, layout.longest),
        _vocabulary(model),
        lower=layout.lower,
        prompts=layout.prompts,
        default_prompt=layout.default_prompt,
        pools_prompt=layout.pools_prompt,
    )
    return Embedder(model, layout, reader)


def _scorer(folder: Path, device: torch.device) -> Scorer:
    config = _config(folder)
    if config.num_labels != 1:
        raise EngineUnavailable(
            f"{folder} sorts texts into {config.num_labels} classes; a model that scores has one"
        )
    kind = transformers.AutoModelForSequenceClassification
    model = _weights(kind, folder, config, device)
    tokenizer = load_tokenizer(folder)
    if model.config.pad_token_id is None:  # by which decoders find a text's last token
        model.config.pad_token_id = tokenizer.pad_token_id
    reader = Reader(tokenizer, _longest(model, tokenizer, None), _vocabulary(model))
    return Scorer(model, activation(_activation_path(config)), reader)


def _config(folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )


def _weights(kind: Any, folder: Path, config: Any, device: torch.device) -> Any:
    """Raises what transformers raises, and EngineUnavailable where weights are missing."""
    config.use_cache = False  # nothing comes after the text
    with reporting(sum(file.stat().st_size for file in folder.glob("*.safetensors"))):
        model, report = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            dtype=_dtype(config, device),
            device_map=device,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    # what transformers would fill with random numbers; a pooler is not used
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    if missing:
        raise EngineUnavailable(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    return model.eval()


def _dtype(config: Any, device: torch.device) -> torch.dtype:
    """On a CPU float32; on a GPU 16 bits, as the checkpoint has them or bfloat16."""
    precision = settings.precision(_PRECISIONS, "for a model that embeds or scores")
    if precision == "float32" or (precision == "auto" and device.type == "cpu"):
        return torch.float32
    if precision == "auto" and config.dtype == torch.float16:
        return torch.float16
    return torch.bfloat16


def _is_causal(config: Any) -> bool:
    """Whether it is a decoder, whose tokens see only what precedes them."""
    text = config.get_text_config()
    if getattr(text, "use_bidirectional_attention", False) or config.is_encoder_decoder:
        return False
    if config.model_type in tasks.ENCODERS:
        return False
    return text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _longest(model: Any, tokenizer: Any, configured: int | None) -> int:
    """Tokens of an input."""
    lengths = [context_length(model, tokenizer)]
    for limit in (configured, tokenizer.model_max_length):
        if isinstance(limit, int) and 1 < limit < _UNLIMITED:
            lengths.append(limit)
    return min(lengths)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _activation_path(config: Any) -> str:
    """As the sentence-transformers library chooses it, whose present and former names these are."""
    path = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    path = path or getattr(config, "sbert_ce_default_activation_function", None)
    return str(path or "torch.nn.Sigmoid")
