"""The logs of this instance's processes on this machine, for staff."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated

from django.http.response import HttpResponseBase
from ninja import Query, Router

from api.accounts.auth import AuthRequest, Staff
from api.errors import ApiError
from api.http import sse
from api.http.documentation import error_statuses
from api.operate.logs.files import Tails, log_files
from api.operate.logs.lines import Filter, LogLine
from api.operate.logs.schemas import LogLineView, LogProcess, LogQuery, Logs
from api.settings import ENV

router = Router(tags=["operate"], auth=Staff())

LOOK_SECONDS = 0.5  # between two looks for new lines
IDLE_SECONDS = 10.0  # after which a reader hears that there are none

_Query = Annotated[LogQuery, Query()]


def folder() -> Path:
    """Where the launcher writes the logs."""
    return ENV.home / "logs"


@router.get("", response=Logs, openapi_extra=error_statuses(404))
async def read(request: AuthRequest, query: _Query) -> Logs:
    """The last lines of one process's log, or of all, in the order of time."""
    await _check_process(query.process)
    processes, lines = await asyncio.to_thread(_read, query)
    return Logs(processes=processes, lines=[LogLineView(**line.document()) for line in lines])


@router.get("/stream", openapi_extra=error_statuses(404))
async def stream(request: AuthRequest, query: _Query) -> HttpResponseBase:
    """The same as server-sent events: the last lines, then new ones as they are written."""
    await _check_process(query.process)
    return sse.EventStream(_events(query), endless=True)


async def _check_process(process: str) -> None:
    """Raises ApiError 404 for a process without a log here."""
    files = await asyncio.to_thread(log_files, folder())
    if process and process not in {file.process for file in files}:
        message = "there is no log of that process on this machine"
        raise ApiError(404, message, field="process", code="not_found")


def _filter(query: LogQuery) -> Filter:
    return Filter(query.level, query.request)


def _read(query: LogQuery) -> tuple[list[LogProcess], list[LogLine]]:
    processes = []
    for file in log_files(folder()):
        processes.append(LogProcess(name=file.process, bytes=file.size, modified=file.modified))
    with Tails(folder(), query.process) as tails:
        return processes, tails.last(_filter(query), query.lines)


async def _events(query: LogQuery) -> AsyncGenerator[bytes]:
    chosen = _filter(query)
    with Tails(folder(), query.process) as tails:
        lines = await asyncio.to_thread(tails.last, chosen, query.lines)
        silent = IDLE_SECONDS  # so that the first event comes at once, even without a line
        while True:
            if lines or silent >= IDLE_SECONDS:
                yield sse.event("lines", [line.document() for line in lines])
                silent = 0.0
            await asyncio.sleep(LOOK_SECONDS)
            silent += LOOK_SECONDS
            lines = await asyncio.to_thread(tails.grown, chosen)
