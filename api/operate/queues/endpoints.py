"""GET /api/operate/queues and its stream: what the recorder read of the broker last."""

from collections.abc import AsyncGenerator

from django.http.response import HttpResponseBase
from ninja import Router

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.http import sse
from api.operate.queues.describe import Broker, describe
from api.settings import ENV
from api.tree.watch import FIRST_SECONDS, TreeUnreadable
from broker.broker_reports import REPORT_SECONDS
from broker.operator_messages import BrokerOverview

router = Router(tags=["operate"], auth=Staff())


@router.get("", response=Broker)
async def read(request: AuthRequest) -> Broker:
    """The broker's queues, the bindings that make the tree, and its health: at most 5 s old."""
    overview = await app().client.reports.first(FIRST_SECONDS)
    if overview is None:
        raise TreeUnreadable("no API process has read the broker's management API lately")
    return _described(overview)


@router.get("/stream")
async def stream(request: AuthRequest) -> HttpResponseBase:
    """The same as server-sent events, named `broker`: at once, and with each reading."""
    return sse.EventStream(_events(), endless=True)


async def _events() -> AsyncGenerator[bytes]:
    reports = app().client.reports
    while True:
        if reports.latest is not None:
            yield sse.event("broker", _described(reports.latest).model_dump())
        await reports.next(2 * REPORT_SECONDS)


def _described(overview: BrokerOverview) -> Broker:
    client = app().client
    return describe(overview, client.nodes(), client.reports.age, ENV.management_url)
