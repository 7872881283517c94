"""GET /metrics, in Prometheus's text format or OpenMetrics, as the client prefers."""

import asyncio
import time

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from api import errors
from api.context import app
from api.errors import ApiError
from api.metrics import access, merge
from api.metrics.tree import Moment, TreeCollector
from api.settings import ENV
from broker.metric_messages import ProcessMetrics


@require_safe
async def metrics(request: HttpRequest) -> HttpResponseBase:
    """What all API processes have counted, and the tree at this moment."""
    try:
        await access.check(request, ENV)
    except ApiError as error:
        return errors.response(request.path_info, error)
    client = app().client
    others, depths = await asyncio.gather(client.metrics.gather(), app().depths.read())
    moment = Moment(time.time(), client.nodes(), depths, client.connected)
    processes = merge.newest(app().instruments.of_process(client.process), others)
    as_openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
    content = await asyncio.to_thread(_render, processes, moment, as_openmetrics)
    kind = openmetrics.CONTENT_TYPE_LATEST if as_openmetrics else CONTENT_TYPE_PLAIN_0_0_4
    return HttpResponse(content, content_type=kind)


def _render(processes: list[ProcessMetrics], moment: Moment, as_openmetrics: bool) -> bytes:
    """Everything as text. Blocks for a while where the tree is large: needs a thread."""
    registry = CollectorRegistry()
    registry.register(merge.ProcessCollector(processes))
    registry.register(TreeCollector(moment))
    if as_openmetrics:
        return openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
