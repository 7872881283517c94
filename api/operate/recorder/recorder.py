"""The recorder's work: read the management API, publish that, and have it written down.

It runs in every API process and does something in one of them (broker/broker_reports.py), so that
RabbitMQ's management API is asked once in REPORT_SECONDS, whoever looks at it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from broker.broker_reports import REPORT_SECONDS, BrokerReports
from broker.errors import ManagementError
from broker.operator_messages import BrokerOverview
from broker.overview import read_overview

log = structlog.get_logger("canopy.api")

NO_ADDRESS = "CANOPY_MANAGEMENT_URL is not set"

Writer = Callable[[BrokerOverview], Awaitable[None]]


class Recorder:
    """See the module. `management_url`: empty where there is none."""

    def __init__(self, reports: BrokerReports, management_url: str) -> None:
        self._reports = reports
        self._management_url = management_url
        self._writers: dict[str, Writer] = {}

    def add(self, name: str, writer: Writer) -> None:
        """Calls `writer` with each reading, in the process that is the recorder.

        Its failures are logged and end nothing. It must take less than REPORT_SECONDS.
        """
        self._writers[name] = writer

    async def run(self) -> None:
        """Never ends."""
        while True:
            began = time.monotonic()
            if await self._reports.take_seat():
                await self._record()
            await asyncio.sleep(max(0.0, began + REPORT_SECONDS - time.monotonic()))

    async def _record(self) -> None:
        overview = await self._read()
        self._reports.publish(overview)
        for name, writer in self._writers.items():
            try:
                await writer(overview)
            except Exception as error:  # fate: logged; the next reading is another chance
                log.error("a reading of the broker was not recorded", writer=name, exc_info=error)

    async def _read(self) -> BrokerOverview:
        process = self._reports.process
        if not self._management_url:
            return BrokerOverview(process=process, problem=NO_ADDRESS)
        try:
            return await read_overview(self._management_url, process, time.time())
        except ManagementError as error:
            log.warning("the broker's management API does not answer", reason=str(error))
            return BrokerOverview(process=process, problem=str(error))
