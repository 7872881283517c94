"""Tiny encoders with random weights, in folders as sentence-transformers writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

CLS, PAD, SEP, UNK = "<s>", "<pad>", "</s>", "<unk>"
SPECIAL = [CLS, PAD, SEP, UNK]
WIDTH = 32

_SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_SHAPE),
    "mpnet": lambda: transformers.MPNetConfig(**_SHAPE),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_SHAPE, cls_token_id=0, sep_token_id=2, local_attention=8, global_attn_every_n_layers=2
    ),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**_SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE, num_key_value_heads=2, head_dim=8),
}


def tokenizer(longest: int = 128) -> Any:
    """A token a byte, between `<s>` and `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={t: n for n, t in enumerate([*SPECIAL, *alphabet])}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    core.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, 0), (SEP, 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        cls_token=CLS,
        sep_token=SEP,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=longest,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_encoder(kind: str, folder: Path) -> Path:
    """An encoder alone, without the library's files."""
    torch.manual_seed(7)
    model = transformers.AutoModel.from_config(CONFIGS[kind]())
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_embedder(
    kind: str,
    folder: Path,
    *,
    pooling: dict[str, Any],
    dense: str = "",
    normalize: bool = False,
    **settings: Any,
) -> Path:
    """With the library's files. `dense`: the activation of a dense layer; `settings`: of its
    configuration, such as `prompts`.
    """
    save_encoder(kind, folder)
    modules = ["Transformer", "Pooling"] + ["Dense"] * bool(dense) + ["Normalize"] * normalize
    write(folder / "modules.json", [_module(number, name) for number, name in enumerate(modules)])
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **pooling})
    write(folder / "config_sentence_transformers.json", settings)
    if dense:
        _save_dense(folder / "2_Dense", dense, WIDTH * len(_modes(pooling)))
    return folder


def save_cross_encoder(kind: str, folder: Path, activation: str = "") -> Path:
    """A classifier with one class."""
    torch.manual_seed(7)
    config = CONFIGS[kind]()
    config.num_labels = 1
    if activation:
        config.sentence_transformers = {"activation_fn": activation}
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write(file: Path, document: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def _module(number: int, name: str) -> dict[str, Any]:
    path = "" if number == 0 else f"{number}_{name}"
    return {
        "idx": number,
        "name": str(number),
        "path": path,
        "type": f"sentence_transformers.models.{name}",
    }


def _modes(pooling: dict[str, Any]) -> list[str]:
    mode = pooling.get("pooling_mode")
    if mode is None:
        return [name for name, on in pooling.items() if name.startswith("pooling_mode") and on]
    return [mode] if isinstance(mode, str) else mode


def _save_dense(folder: Path, activation: str, width: int) -> None:
    torch.manual_seed(8)
    layer = torch.nn.Linear(width, 20)
    write(
        folder / "config.json",
        {
            "in_features": width,
            "out_features": 20,
            "bias": True,
            "activation_function": activation,
        },
    )
    weights = {"linear.weight": layer.weight.detach(), "linear.bias": layer.bias.detach()}
    save_file(weights, folder / "model.safetensors")
