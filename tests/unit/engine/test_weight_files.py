"""What weights need is known, and refused, before they are read."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from structlog.testing import capture_logs

from tests.unit.engine.published import FORMATS, save
from tests.unit.engine.tiny import save_model
from worker.engines.base import EngineUnavailable
from worker.engines.transformers.model import loader, room
from worker.engines.transformers.model.checkpoint_format import packed_bits
from worker.engines.transformers.model.load_progress import LoadProgress
from worker.engines.transformers.model.room import advise, check_room, free_room
from worker.engines.transformers.model.weight_files import WeightFiles, read_headers
from worker.engines.transformers.tensor_parallel import sharding

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", index) for index in range(4)]
GIGABYTE = 1_000_000_000


def write(file: Path, header: Any, weights: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + weights)
    return file


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_numbers_are_counted_and_small_formats_keep_their_size(tmp_path: Path) -> None:
    save_file(
        {
            "a": torch.zeros(3, 5, dtype=torch.bfloat16),
            "b": torch.zeros(4),
            "c": torch.zeros(7, dtype=torch.int32),
            "d": torch.zeros(9, dtype=torch.float8_e4m3fn),
        },
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    files = read_headers(tmp_path)
    assert files == WeightFiles(bytes_on_disk=30 + 16 + 28 + 9, converted=19, kept=37)
    assert files.bytes_in(torch.float32) == 4 * 19 + 37
    assert files.bytes_in(torch.bfloat16) == 2 * 19 + 37


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    for name in ("part-1", "part-2", "consolidated"):
        save_file({name: torch.zeros(4)}, tmp_path / f"{name}.safetensors")
    assert read_headers(tmp_path).converted == 12  # nothing says which
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_headers(tmp_path).converted == 8
    save_file({"all": torch.zeros(5)}, tmp_path / "model.safetensors")
    assert read_headers(tmp_path).converted == 5


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor("F32", [2], 0, 8)},  # broken off
        {"a": tensor("F32", [2], 4, 0)},
        {"a": tensor("F32", [-2], 0, 0)},
        {"a": tensor("F32", [1 << 40, 1 << 40], 0, 4)},
        {"a": tensor("F32", [1] * 9, 0, 4)},
        {"a": tensor("F32", [1 << 48, 0], 0, 4)},
        {"a": tensor("F32", [1 << 90], 0, 4)},
        {"a": tensor("F32", [1], 0, 1 << 90)},
        {"a": {"dtype": "F32"}},
        {"a": 1},
        [],
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    write(tmp_path / "model.safetensors", header, b"1234")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_headers(tmp_path)


@pytest.mark.parametrize("content", [b"", b"123", struct.pack("<Q", 1 << 63), b"\0" * 100])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_headers(tmp_path)


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside its folder"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b"7",
        b"{",
        b"\xff",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b"[" * 100_000,
        b'{"weight_map":' * 100_000,
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.json does not say which weights"):
        read_headers(tmp_path)
    check_room(tmp_path, [CPU])  # loading them says what is wrong


def test_a_shape_of_many_sizes_is_refused_at_once(tmp_path: Path) -> None:
    """Their product alone would take more than a minute."""
    header = {"a": tensor("F32", [(1 << 47) + 1] * 100_000, 0, 4)}
    write(tmp_path / "model.safetensors", header, b"1234")
    before = time.process_time()
    with pytest.raises(ValueError, match="length <= 8"):
        read_headers(tmp_path)
    assert time.process_time() - before < 2


def test_a_model_without_room_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model("llama", tmp_path / "llama")

    def unread(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(loader, "load_weights", unread)
    monkeypatch.setattr(room, "free_room", lambda *_: 50_000)
    with pytest.raises(
        EngineUnavailable,
        match=r"^the weights in .*llama need 0.1 MB, and there is room for 0.1 MB in this machine: "
        r"end what else .* or a smaller model, such as --model smollm2-135m-instruct$",
    ):
        loader.load(folder, "cpu", 1)


def test_a_folder_whose_size_is_not_known_passes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with capture_logs() as logs:
        check_room(tmp_path, [CPU])
    assert logs[0]["event"] == "the size of the weights is not known"


def test_the_room_of_some_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {GPUS[0]: 10, GPUS[1]: 20, GPUS[2]: 30, GPUS[3]: 5}
    monkeypatch.setattr(room, "free_on_gpu", lambda device: free[device])
    assert free_room(GPUS[:1], 1) == 10
    free.pop(GPUS[1])  # asking would make a context there
    assert free_room(GPUS[:1], 2) == 2 * 10
    free[GPUS[1]] = 20
    assert free_room(GPUS[:3], 1) == 8 + 16 + 24
    assert 0 < free_room([CPU], 2) <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("needed", "ranks", "gpus", "expected"),
    [
        (16, 1, 0, "end what"),
        (16, 1, 1, "end what"),
        (16, 1, 4, "take --tensor-parallel 2"),
        (30, 1, 4, "take --tensor-parallel 4"),
        (50, 1, 4, "end what"),
        (30, 2, 8, "take --tensor-parallel 8"),
    ],
)
def test_the_advice_is_what_would_fit(needed: int, ranks: int, gpus: int, expected: str) -> None:
    advice = advise(needed * GIGABYTE, 10 * GIGABYTE, ranks, gpus, packaged=True)
    assert advice.startswith(expected)
    assert advice.endswith("--model smollm2-135m-instruct")
    assert f"({needed - 10}.0 GB are missing)" in advice
    assert "--memory-fraction" not in advice


def test_a_fraction_that_is_too_small_is_named() -> None:
    advice = advise(9 * 10**8, 5 * 10**8, 1, 1, packaged=False, fraction=0.25)
    assert advice.startswith("raise --memory-fraction, which is 0.25, end what else")
    assert "(400.0 MB are missing)" in advice


def test_a_refusal_names_every_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(11)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(room, "free_on_gpu", lambda _: 10)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(EngineUnavailable, match="on cuda:0, cuda:1 together: take --tensor-par"):
        check_room(tmp_path, GPUS[:2])
    with pytest.raises(EngineUnavailable, match="on 2 GPUs together: take --tensor-parallel 4"):
        check_room(tmp_path, GPUS[:1], ranks=2)


def test_ranks_refuse_together_what_one_of_them_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each knows its own device alone."""

    def reduce(room: torch.Tensor, operation: Any) -> None:
        assert (int(room), operation) == (1 << 40, torch.distributed.ReduceOp.MIN)
        room.fill_(1000)

    folder = save_model("llama", tmp_path / "llama")
    monkeypatch.setattr(sharding, "free_room", lambda devices, ranks: 1 << 40)
    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    with pytest.raises(EngineUnavailable, match="and there is room for"):
        sharding.load_shard(folder, CPU, 2)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_dequantized_counts_as_what_it_becomes(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    plain = sum(tensor.numel() for tensor in save(FORMATS[form], folder).values())
    bits = packed_bits(loader.load_config(folder, CPU))
    counted = read_headers(folder).bytes_in(torch.float32, bits) / 4
    assert plain <= counted < 1.1 * plain  # scales, which a tiny weight has many of


def test_bits_of_a_packed_integer_are_the_fewest_that_are_named() -> None:
    names: list[Any] = [3, 8, True, 0, -1, "2", None]
    groups = {str(at): {"weights": {"num_bits": bits}} for at, bits in enumerate(names)}
    settings = {"dequantize": True, "config_groups": groups}
    assert packed_bits(transformers.LlamaConfig(quantization_config=settings)) == 3
    assert packed_bits(transformers.LlamaConfig(quantization_config={"dequantize": True})) == 4
    assert packed_bits(transformers.LlamaConfig(quantization_config={})) is None
    assert packed_bits(transformers.LlamaConfig()) is None


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=30))
def test_progress_is_reported_every_two_seconds_with_what_is_left(pauses: list[float]) -> None:
    now = 0.0
    progress = LoadProgress(GIGABYTE, clock=lambda: now)
    with capture_logs() as logs:
        for done, pause in enumerate(pauses, 1):
            now += pause
            progress.advance(done, len(pauses))
    assert len(logs) <= now / 2
    assert all(0 <= entry["seconds_left"] <= 5 * len(pauses) * 30 for entry in logs)


def test_transformers_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its progress bar, which has a description of its own."""
    monkeypatch.setattr("worker.engines.transformers.model.load_progress._REPORT_SECONDS", 0.0)
    folder = save_model("llama", tmp_path / "llama")
    with capture_logs() as logs:
        loader.load_weights(folder, CPU, loader.load_config(folder, CPU))
    reports = [entry for entry in logs if entry["event"] == "loading weights"]
    assert len(reports) > 10
    assert all(entry["of"] == "0.0 GB" and entry["seconds_left"] >= 0 for entry in reports)
