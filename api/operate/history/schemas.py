"""What the endpoints of the history take and give."""

from typing import Annotated

from ninja import Schema
from pydantic import Field

from api.http.parsing import Integer
from api.operate.history.read import History
from api.operate.history.series import Grouping, Metric

Moment = Annotated[Integer, Field(ge=0, le=10**11)]


class HistoryQuery(Schema):
    """What to show: `from` and `to` are Unix seconds, `step` is seconds.

    Without `from` the last hour, without `step` the shortest that fits.
    """

    metric: Metric = "requests"
    by: Grouping = "all"
    since: Moment | None = Field(default=None, alias="from")
    until: Moment | None = Field(default=None, alias="to")
    step: Moment | None = None


class HistorySeries(Schema):
    """One line: a value for each start; null where there is none. `total`: of the whole span."""

    name: str
    values: list[float | None]
    total: float | None


class HistoryAnswer(Schema):
    """One metric; `starts`: Unix seconds. The largest series come first, the others summed last."""

    metric: Metric
    by: Grouping
    unit: str
    step: int
    starts: list[int]
    series: list[HistorySeries]


def answer(history: History) -> HistoryAnswer:
    """The history as the API shows it."""
    lines = []
    for line in history.series:
        lines.append(HistorySeries(name=line.name, values=line.values, total=line.total))
    return HistoryAnswer(
        metric=history.metric,
        by=history.by,
        unit=history.unit,
        step=history.shown.step,
        starts=history.shown.starts,
        series=lines,
    )
