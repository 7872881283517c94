"""`bench gpu`: where nodes are put, the tables, and what cannot be measured."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.cpu import Meter
from bench.engine.reading import Ask, Reading, Spread
from bench.gpu import asking, system, table
from bench.gpu.command import check_gpus, command
from bench.gpu.system import Cell
from bench.instance import Instance


def cell(rate: float, failed: int = 0, **cores: float) -> Cell:
    spread = Spread(1.0, 2.0, 3.0)
    return Cell(
        Reading(4, failed, 100, 1.0, rate, None, spread, spread, 1.0),
        1.5,
        {"api": 0.1, "n1": 0.5, **cores},
    )


ONE = {8: cell(1000, load=0.2), 64: cell(4000, failed=1, load=0.3)}
TWO = {8: cell(1900, n2=0.6, load=0.4), 64: cell(6000, failed=2, n2=0.6, load=0.5)}
ALONE = {"8": {"rate": 1250.0, "ttft": {"p50": 5.0, "p99": 6.0, "max": 7.0}, "gap": None}}


def test_several_gpus_are_set_beside_one() -> None:
    assert table.scaling(ONE, TWO, 2).as_records() == [
        {"at once a GPU": 8, "1 GPU": 1000, "2 GPUs": 1900, "2 / 1": 1.9, "failed": 0},
        {"at once a GPU": 64, "1 GPU": 4000, "2 GPUs": 6000, "2 / 1": 1.5, "failed": 3},
    ]
    assert table.scaling({8: cell(0)}, {8: cell(1)}, 2).as_records()[0]["2 / 1"] is None


def test_the_system_is_set_beside_its_engine_where_that_was_measured() -> None:
    rows = table.rates(ONE, ALONE).as_records()
    assert [row["system / engine"] for row in rows] == [0.8, None]
    assert [row["engine"] for row in table.rates(ONE, {}).as_records()] == [None, None]
    delays = table.delays({"system": ONE, "2 GPUs": TWO}, ALONE).as_records()
    assert [(row["at once"], row["who"], row["TTFT max"], row["gap p50"]) for row in delays[:3]] == [
        (8, "system", 3.0, 1.0), (8, "2 GPUs", 3.0, 1.0), (8, "engine", 7.0, None),
    ]  # fmt: skip
    assert {row["who"] for row in table.delays({"system": ONE}, {}).as_records()} == {"system"}


def test_every_process_has_a_row_and_those_of_more_nodes_a_place_in_it() -> None:
    rows = table.processors({1: ONE, 2: TWO}).as_records()
    assert [row["process"] for row in rows] == ["api", "n1", "n2", "load"]
    assert rows[2] == {"process": "n2", "1 x 8": None, "1 x 64": None, "2 x 8": 0.6, "2 x 64": 0.6}
    assert rows[3] == {"process": "load", "1 x 8": 0.2, "1 x 64": 0.3, "2 x 8": 0.4, "2 x 64": 0.5}


def test_several_nodes_take_gpus_in_turn_and_one_the_device_that_is_named() -> None:
    assert system.placed("cuda:0", 1) == ["--nodes", "1", "--device", "cuda:0"]
    assert system.placed("cuda:0", 4) == ["--nodes", "4", "--device", "auto"]
    assert system.placed("cpu", 2) == ["--nodes", "2", "--device", "cpu"]


def test_each_node_must_have_a_gpu() -> None:
    check_gpus(2, "cuda:0", 2)
    check_gpus(1, "cuda:3", 4)
    check_gpus(4, "cpu", 0)
    with pytest.raises(typer.BadParameter, match="this machine has 2"):
        check_gpus(3, "cuda:0", 2)
    with pytest.raises(typer.BadParameter, match="say --device auto"):
        check_gpus(2, "cuda:1", 4)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--random-weights", "tiny", "--model", "tiny"),
        ("--random-weights", "no-such-shape"),
        ("--random-weights", "tiny", "--gpus", "0"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: tuple[str, ...]) -> None:
    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, ["--device", "cpu", *options]).exit_code == 2


EVENTS = (
    b'data: {"choices": [{"text": "w1 w2"}]}\n\n'
    b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n'
)


@asynccontextmanager
async def serving(together: int) -> AsyncIterator[int]:
    """The port of a server that answers nobody before so many have asked."""
    everyone, left = asyncio.Barrier(together), asyncio.Barrier(together + 1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.startswith(b"Content-Length")
        )
        body = await reader.readexactly(length)
        await everyone.wait()
        status = b"429 Too Many Requests" if b"refuse" in body else b"200 OK"
        writer.write(
            b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS
        )
        await reader.read()
        writer.close()
        await writer.wait_closed()
        await left.wait()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await left.wait()


async def test_a_wave_asks_all_at_once_and_tells_what_it_cost() -> None:
    async with asyncio.timeout(10), serving(3) as port:
        canopy = Instance(Path("/nowhere"), port, "key", {"models": ["m"]}, "")
        tracks, spent = await asking.wave(
            canopy, ["one", "two", "refuse"], Ask(1, 2), Meter({"gone": [2**22 + 1]})
        )
    assert [track.tokens for track in tracks] == [2, 2, 0]
    assert tracks[2].error.startswith("429")
    assert spent["gone"] == 0
    assert spent["seconds"] >= max(track.times[-1] - track.asked for track in tracks[:2])
