"""Which devices, precision and threads the nodes of an instance get."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli import devices, options
from cli.errors import CliError
from cli.options import (
    KV_CACHE_DTYPES,
    PRECISIONS,
    check_kv_cache_dtype,
    check_precision,
)
from cli.process import Spec
from tests.unit.test_cli_plan import layout, understood
from worker.engines.transformers.model import float8_cache, gpu_precision, quantization


def test_the_memory_fraction_is_told_to_the_nodes() -> None:
    told = [spec.env["CANOPY_MEMORY_FRACTION"] for spec in layout(memory_fraction=0.45).nodes]
    assert set(told[1:]) == {"0.45"}
    assert "CANOPY_MEMORY_FRACTION" not in layout().nodes[-1].env


def test_the_precision_is_told_to_the_nodes() -> None:
    assert [spec.env["CANOPY_PRECISION"] for spec in layout(precision="int8").nodes] == [
        "int8",
        "int8",
    ]
    assert "CANOPY_PRECISION" not in layout().nodes[0].env
    assert layout(kv_cache_dtype="fp8").nodes[0].env["CANOPY_KV_CACHE_DTYPE"] == "fp8"
    assert "CANOPY_KV_CACHE_DTYPE" not in layout().nodes[0].env


def test_nodes_of_one_start_share_a_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CANOPY_GPU_NODES", raising=False)
    assert layout(models={"a": None, "b": None}, nodes=3).nodes[0].env["CANOPY_GPU_NODES"] == "6"
    assert layout(nodes=1).nodes[0].env["CANOPY_GPU_NODES"] == "1"
    monkeypatch.setenv("CANOPY_GPU_NODES", "1")
    assert layout(nodes=2).nodes[0].env["CANOPY_GPU_NODES"] == "1"


def on_gpus(spec: Spec) -> tuple[str, str]:
    return understood(spec).device, str(spec.env["CANOPY_GPU_NODES"])


def test_nodes_take_the_gpus_in_turn_on_through_all_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANOPY_GPU_NODES", raising=False)
    many = {"engine": "transformers", "gpus": 4}
    four, three = (
        layout(nodes=4, **many),
        layout(nodes=3, models={"a": None, "b": None}, device="auto", **many),
    )
    assert [on_gpus(spec) for spec in four.nodes] == [
        (f"cuda:{number}", "1") for number in range(4)
    ]
    assert [on_gpus(spec) for spec in three.nodes] == [
        (f"cuda:{number}", "2") for number in (0, 1, 2, 3, 0, 1)
    ]
    divided = layout(nodes=3, tensor_parallel=2, **many)
    assert [on_gpus(spec) for spec in divided.nodes] == [
        ("cuda:0", "2"),
        ("cuda:2", "2"),
        ("cuda:0", "2"),
    ]
    own = layout(engine="its.own.engine", gpus=2)
    assert [on_gpus(spec) for spec in own.nodes] == [("cuda:0", "1"), ("cuda:1", "1")]
    assert "--device" not in four.roots[0].command


def test_a_device_that_is_named_is_every_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANOPY_GPU_NODES", raising=False)
    for device in ("cpu", "cuda:1", "cuda:0,cuda:1"):
        laid_out = layout(engine="transformers", gpus=4, device=device)
        assert [on_gpus(spec) for spec in laid_out.nodes] == [(device, "2")] * 2
    for engine, gpus in (("transformers", 0), ("transformers", 1), ("echo", 4), ("openai", 4)):
        laid_out = layout(engine=engine, gpus=gpus, nodes=3)
        assert [on_gpus(spec) for spec in laid_out.nodes] == [("auto", "3")] * 3


@pytest.mark.parametrize(
    ("nodes", "gpus", "tensor_parallel", "assigned"),
    [
        (3, 2, 1, ["cuda:0", "cuda:1", "cuda:0"]),
        (3, 8, 4, ["cuda:0", "cuda:4", "cuda:0"]),
        (2, 5, 2, ["cuda:0", "cuda:2"]),  # the fifth is left over
        (2, 2, 4, ["cuda:0", "cuda:0"]),  # too few: the nodes say so
        (2, 1, 1, [None, None]),
        (2, 0, 2, [None, None]),
    ],
)
def test_gpus_are_dealt_out(
    nodes: int, gpus: int, tensor_parallel: int, assigned: list[str | None]
) -> None:
    assert devices.assign(nodes, gpus, tensor_parallel) == assigned


@pytest.mark.parametrize(
    ("engine", "device", "gpus", "tensor_parallel", "nodes"),
    [
        ("transformers", None, 4, 1, 4),
        ("transformers", "auto", 4, 1, 4),
        ("transformers", "auto", 4, 2, 2),
        ("transformers", "auto", 2, 4, 1),
        ("transformers", "auto", 0, 1, 2),
        ("transformers", "cpu", 4, 1, 2),
        ("transformers", "cuda:3", 4, 1, 1),
        ("transformers", "cuda:0,cuda:1", 4, 1, 1),
        ("its.own.engine", None, 4, 1, 4),
        ("echo", None, 4, 1, 2),
        ("openai", "cuda:0", 4, 1, 2),
    ],
)
def test_a_model_gets_a_node_for_each_gpu(
    engine: str, device: str | None, gpus: int, tensor_parallel: int, nodes: int
) -> None:
    assert devices.default_nodes(engine, device, gpus, tensor_parallel) == nodes


def test_threads_of_a_node_sleep_soon_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert int(layout().nodes[0].env["GOMP_SPINCOUNT"]) < 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert layout().nodes[0].env["GOMP_SPINCOUNT"] == "77"


def test_every_precision_is_known_to_the_engine() -> None:
    """The commands load no torch, so they keep a list of their own."""
    choices = dict.fromkeys((*quantization.CHOICES, *gpu_precision.CHOICES))
    assert tuple(choices) == PRECISIONS
    dtypes = {*float8_cache.CPU_CHOICES, *float8_cache.GPU_CHOICES}
    assert dtypes == set(KV_CACHE_DTYPES)
    with pytest.raises(CliError, match="no precision 'int3'"):
        check_precision("int3")
    with pytest.raises(CliError, match="no KV cache dtype 'int3'"):
        check_kv_cache_dtype("int3")


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANOPY_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert layout(nodes=2).nodes[0].env["CANOPY_THREADS"] == "4"
    assert layout(nodes=20).nodes[0].env["CANOPY_THREADS"] == "1"


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        (options.precision, options.PRECISIONS),
        (options.kv_cache_dtype, options.KV_CACHE_DTYPES),
    ],
)
def test_the_help_names_every_number_format(option: Any, choices: tuple[str, ...]) -> None:
    command = click.command("some")(option(lambda: None))
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert all(choice in text for choice in choices)
