"""Peers: engines of others, each in a process of its own, whose memory is free again afterwards.

`python -m bench.engine.peers NAME FILE` measures one by the settings on its standard input.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from bench import harness
from bench.engine import measure, shapes, subject
from bench.engine.contender import Contender
from bench.engine.measure import Record, Settings
from bench.engine.prompts import Prompts
from bench.engine.reading import Result
from bench.errors import NotStarted
from worker.models import installed

VLLM, LLAMA_CPP = "vllm", "llama.cpp"
PEERS = {VLLM: "vllm", LLAMA_CPP: "llama_cpp"}  # and the module that it needs
_SECONDS = 3600.0


class Measured(msgspec.Struct):
    """What a peer's process leaves in its file."""

    results: list[Result]
    notes: list[str]


def check(peer: str) -> None:
    """Raises NotStarted if it is not installed."""
    if find_spec(PEERS[peer]) is None:
        raise NotStarted(f"--peer {peer} needs the Python package {PEERS[peer].replace('_', '-')}")


def run(peer: str, settings: Settings, record: Record) -> None:
    """Its process, to the end. What it had is kept where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measured.json"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": None}
        environment = harness.clean_environment()
        words = msgspec.json.encode(asdict(settings)).decode()
        with (
            suppress(subprocess.TimeoutExpired),  # its status says so
            harness.child(_command(peer, str(file)), environment, **pipes) as process,
        ):
            process.communicate(words, _SECONDS)
        if file.exists():
            measured = msgspec.json.decode(file.read_bytes(), type=Measured)
            record.results += measured.results
            record.notes += measured.notes
    if process.returncode:
        record.note(f"{peer}: ended with status {process.returncode}; its reason is above")


def _command(peer: str, file: str) -> list[str]:
    return [sys.executable, "-m", "bench.engine.peers", peer, file]


def main(peer: str, file: Path) -> None:
    """Measures `peer` in this process. Raises NotStarted, EngineUnavailable."""
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)

    def save() -> None:
        part = file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(Measured(record.results, record.notes)))
        part.replace(file)

    record = Record(save)
    with tempfile.TemporaryDirectory() as folder:
        contender, tokenizer = _contender(peer, settings, Path(folder))
        asyncio.run(measure.measure(contender, Prompts(tokenizer), settings, record))


def _contender(peer: str, it: Settings, scratch: Path) -> tuple[Contender, object]:
    """And the tokenizer of its prompts. Raises NotStarted, EngineUnavailable."""
    tokenizer = subject.tokenizer(it.model, it.shape)
    if peer == LLAMA_CPP:
        from bench.engine.llama_peer import LlamaCpp, find_weights

        return LlamaCpp(find_weights(it.model, it.gguf), it.slots, it.context), tokenizer
    from bench.engine.vllm_peer import Vllm

    if it.model is not None:
        return Vllm(installed(it.model), it.slots, it.context, dummy=False), tokenizer
    config = shapes.config(str(it.shape))
    config.architectures = [shapes.ARCHITECTURE]
    config.save_pretrained(scratch)
    return Vllm(scratch, it.slots, it.context, dummy=True), tokenizer


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # what a peer leaves running must not keep its memory
