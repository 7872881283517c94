"""What a model is for, told from the files in its folder. Imports nothing that takes time."""

import json
from pathlib import Path
from typing import Any, get_args

from broker.wire import Task
from worker.engines.base import EngineUnavailable

AUTO = "auto"
MODULES_FILE = "modules.json"  # of the sentence-transformers library
_CLASSIFIER = "ForSequenceClassification"
# Architectures that read a text in both directions, and so cannot continue one.
ENCODERS = frozenset(
    [
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "eurobert",
        "longformer",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "roberta",
        "roformer",
        "squeezebert",
        "xlm-roberta",
        "xlm-roberta-xl",
    ]
)


def choose(task: str, folder: Path) -> Task:
    """`task` as the operator said it, or what the folder holds for "auto". Raises
    EngineUnavailable.
    """
    for known in get_args(Task):
        if task == known:
            return task  # type: ignore[return-value]
    if task != AUTO:
        raise EngineUnavailable(f"no task {task!r}; there are: auto, {', '.join(get_args(Task))}")
    return detect(folder)


def detect(folder: Path) -> Task:
    """ "generate" unless the files plainly say something else."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        return "generate"
    architectures = [str(name) for name in config.get("architectures") or ()]
    if any(name.endswith(_CLASSIFIER) for name in architectures):
        return "score"
    if (folder / MODULES_FILE).is_file():
        return "embed"
    if config.get("model_type") in ENCODERS or "T5EncoderModel" in architectures:
        return "embed"
    return "generate"


def read_json(file: Path) -> Any:
    """The document; None if there is none that can be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
