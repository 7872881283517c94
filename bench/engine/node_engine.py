"""An engine with random weights for a node: `./canopy node --engine bench.engine.node_engine`.

The model is named like a shape and made on the device when the node starts: writing 16 GB to a
disk and reading them again takes many minutes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.engines.transformers.engine import TransformersEngine
    from worker.engines.transformers.model.loaded import LoadedModel


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> "TransformersEngine":
    """For `worker.engines.create`; `model` is one of `bench.engine.shapes.SHAPES`."""
    from bench.engine.subject import random_weights
    from worker.engines.transformers.engine import TransformersEngine

    def load(place: str, rows: int) -> "LoadedModel":
        return random_weights(model, place, rows, None).load(place, rows)

    return TransformersEngine(model=model, model_path=None, device=device, slots=slots, loader=load)
