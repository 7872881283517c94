"""An instance with several users, and settings that only its environment can give (bench.instance has neither)."""

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.instance import END_SECONDS, NotStarted
from bench.report import say
from cli import ports, processes
from cli.home import REPOSITORY, Home, module_command, module_environment
from cli.process import Child, Spec

MODEL = "echo"
_READY = "Canopy is ready: "
_READY_SECONDS = 120.0
_KEYS_SECONDS = 30.0


@dataclass(frozen=True)
class Service:
    """A running instance. `keys`: by user; `pids`: by name, the nodes together."""

    port: int
    keys: Mapping[str, str]
    admin_key: str
    pids: Mapping[str, list[int]]

    async def root(self) -> dict[str, float]:
        """What the root says of those who waited there: `waited`, `wait_error` in seconds. Raises httpx.HTTPError."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            headers = {"Authorization": f"Bearer {self.admin_key}"}
            answer = await http.get(f"http://127.0.0.1:{self.port}/api/tree", headers=headers)
            answer.raise_for_status()
        root = next(node for node in answer.json()["nodes"] if node["parent"] is None)
        return {name: float(root.get(name) or 0.0) for name in ("waited", "wait_error")}


@contextlib.asynccontextmanager
async def running(
    options: list[str], environment: Mapping[str, str], shares: Mapping[str, float]
) -> AsyncIterator[Service]:
    """`canopy up` with the echo engine, these options and this environment, in a folder of its own and on a free port,
    with a user for each share. Raises NotStarted.
    """
    folder = Path(tempfile.mkdtemp(prefix="canopy-fair-"))
    (port,) = ports.pick(1)
    words = ["up", "--engine", "echo", "--port", str(port), *options]
    say(
        " ".join(
            [
                "starting an instance:",
                *(f"{name}={value}" for name, value in environment.items()),
                "canopy",
                *words,
            ]
        )
    )
    surroundings = {**_alone(folder), **environment}
    command = [sys.executable, str(REPOSITORY / "canopy"), *words]
    spec = Spec("launcher", command, surroundings, is_ready=lambda line: line.startswith(_READY))
    launcher = await Child.start(spec, folder)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            if not await launcher.until_ready():
                raise NotStarted(launcher.last_line())
        made = await _output(
            module_command("bench.fair.accounts", *(f"{n}={s}" for n, s in shares.items())), folder
        )
        admin = await _output([sys.executable, str(REPOSITORY / "canopy"), "key", "create"], folder)
        yield Service(
            port, dict(zip(shares, made.split(), strict=True)), admin.strip(), _pids(folder)
        )
    except TimeoutError as error:
        raise NotStarted(f"not ready in time; it said last: {launcher.last_line()}") from error
    finally:
        await launcher.stop(END_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _pids(folder: Path) -> dict[str, list[int]]:
    """The benchmark itself is `bench`."""
    found: dict[str, list[int]] = {
        "api": [],
        "root": [],
        "nodes": [],
        "broker": [],
        "bench": [os.getpid()],
    }
    for each in processes.read(Home(folder)):
        group = "nodes" if re.fullmatch(r"n\d+", each.name) else each.name
        if group in found:
            found[group].append(each.pid)
    return found


def _alone(folder: Path) -> dict[str, str]:
    """Nothing of an instance that this shell may point to: what is empty counts as not given."""
    return {
        "CANOPY_AMQP_URL": "",
        "CANOPY_MANAGEMENT_URL": "",
        "DATABASE_URL": "",
        "CANOPY_HOME": str(folder),
    }


async def _output(command: list[str], folder: Path) -> str:
    """What a short program prints. Raises NotStarted if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**module_environment(), **_alone(folder)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        printed, complaint = await asyncio.wait_for(process.communicate(), _KEYS_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise NotStarted(complaint.decode(errors="replace").strip().rpartition("\n")[2])
    return printed.decode()
