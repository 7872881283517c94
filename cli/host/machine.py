"""What the machine has: processors, memory, GPUs."""

import asyncio
import os

import psutil

from broker.host_messages import HostDevice
from cli.prepare import gpus

_QUERY = ("--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 5.0
_MIB = 2**20


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def memory() -> tuple[int, int]:
    """Bytes in all, and available."""
    now = psutil.virtual_memory()
    return now.total, now.available


async def devices() -> tuple[HostDevice, ...]:
    """The GPUs with their memory; none if the driver does not answer."""
    if not gpus.count():
        return ()
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi",
            *_QUERY,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ()
    try:
        async with asyncio.timeout(_QUERY_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ()
    return parse(output.decode(errors="replace"))


def parse(output: str) -> tuple[HostDevice, ...]:
    """The lines `total, free` in MiB that nvidia-smi prints; other lines are left out."""
    devices = []
    for number, line in enumerate(output.splitlines()):
        total, _, free = line.partition(",")
        if total.strip().isdecimal() and free.strip().isdecimal():
            devices.append(
                HostDevice(
                    name=f"cuda:{number}",
                    memory=int(total) * _MIB,
                    memory_free=int(free) * _MIB,
                )
            )
    return tuple(devices)
