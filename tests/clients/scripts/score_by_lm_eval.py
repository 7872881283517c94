"""Scores a task by lm-eval twice, with its own `hf` backend and through the API, and prints both.

Arguments: the model's name, its folder, the task's folder, and where torch and transformers are.
"""

import json
import os
import sys
from typing import Any

model, folder, tasks, packages = sys.argv[1:]
sys.path.append(packages)  # last: lm-eval's own packages come first

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


def scores(backend: str, **arguments: Any) -> list[list[Any]]:
    """Log-likelihood and greediness of each choice of each document."""
    found = lm_eval.simple_evaluate(
        model=backend,
        model_args=arguments,
        tasks=["choices"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        log_samples=True,
        batch_size=8,
        bootstrap_iters=0,
    )
    told: list[list[Any]] = []
    for sample in sorted(found["samples"]["choices"], key=lambda sample: sample["doc_id"]):
        for score, greedy in sample["filtered_resps"]:
            told.append([float(score), bool(greedy)])
    return told


served = {
    "model": model,
    "base_url": f"{os.environ['OPENAI_BASE_URL']}/completions",
    "tokenizer": folder,
    "tokenizer_backend": "huggingface",
    "add_bos_token": True,  # as `hf` does for a tokenizer that has one
    "max_length": 512,
    "num_concurrent": 2,
}
print(
    json.dumps(
        {
            "hf": scores("hf", pretrained=folder, dtype="float32", device="cpu"),
            "api": scores("local-completions", **served),
        }
    )
)
