"""Divided layers as plain modules: in a group of one here, of two in tests/broker/test_parallel."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from worker.engines.transformers.tensor_parallel.local_layers import use_local_layers
from worker.engines.transformers.tensor_parallel.peer_memory import PeerMemory, share_memory

CPU = torch.device("cpu")


@pytest.fixture
def mesh() -> Iterator[Any]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(self.up(hidden).relu())


class Model(nn.Module):
    tp_plan: ClassVar = {
        "embed": "embedding_rowwise",
        "layers.*.up": "colwise",
        "layers.*.down": "rowwise",
        "head": "colwise_gather_output",
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden))


def divide(model: nn.Module, mesh: Any) -> None:
    """As transformers does it: weights become DTensors."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            dimension = 1 if name.endswith("down") else 0
            weight = distribute_tensor(module.weight.data, mesh, [Shard(dimension)])
            module.weight = nn.Parameter(weight)


def no_memory() -> PeerMemory:
    return share_memory(CPU, torch.float32)


@pytest.mark.parametrize("compiled", [False, True])
def test_local_layers_give_the_same(mesh: Any, compiled: bool) -> None:
    model, ids = Model().eval(), torch.arange(11)[None]
    expected = model(ids)
    divide(model, mesh)
    assert use_local_layers(model, no_memory()) == 6
    assert not any(isinstance(weight, DTensor) for weight in model.parameters())
    if compiled:  # in one piece, as a layer on a GPU has to be
        for layer in model.layers:
            layer.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), expected)


def test_a_layer_of_another_kind_or_without_a_plan_is_left_as_it_is(mesh: Any) -> None:
    class Special(nn.Linear):
        pass

    model = Model()
    model.layers[0].up = Special(8, 16)
    divide(model, mesh)
    model.extra = nn.Linear(8, 8)
    assert use_local_layers(model, no_memory()) == 5
    assert type(model.layers[0].up) is Special and isinstance(model.layers[0].up.weight, DTensor)
    assert type(model.extra) is nn.Linear


def test_a_cpu_shares_no_memory(mesh: Any) -> None:
    memory = no_memory()
    assert memory.capacity == 0
    memory.release()
