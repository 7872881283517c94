"""What API processes tell each other when one of them is scraped, after the rules of wire.py."""

from typing import Annotated

import msgspec

from broker.bounds import Moment, Name
from broker.errors import DecodeError
from broker.wire import Wire

MetricName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,99}\Z")]
Help = Annotated[str, msgspec.Meta(max_length=500)]
Labels = Annotated[dict[MetricName, Name], msgspec.Meta(max_length=10)]


class MetricSample(msgspec.Struct, frozen=True, array_like=True):
    """One line of Prometheus's text format."""

    name: MetricName
    labels: Labels
    value: float


class MetricFamily(msgspec.Struct, frozen=True, array_like=True):
    """A metric with all its samples. `kind`: counter, gauge or histogram."""

    name: MetricName
    kind: MetricName
    text: Help
    samples: Annotated[tuple[MetricSample, ...], msgspec.Meta(max_length=20_000)]


class MetricsRequest(Wire, frozen=True, kw_only=True, tag_field="kind", tag="metrics_request"):
    """An API process is scraped: every other one publishes its metrics now."""

    process: Name  # the sender


class ProcessMetrics(Wire, frozen=True, kw_only=True, tag_field="kind", tag="process_metrics"):
    """What one API process has counted since it started."""

    process: Name  # the sender
    name: Name  # as people know it, such as api-2
    started: Moment
    families: Annotated[tuple[MetricFamily, ...], msgspec.Meta(max_length=200)]


AnyMetricsMessage = MetricsRequest | ProcessMetrics

_decoder = msgspec.json.Decoder(AnyMetricsMessage)


def decode_metrics(body: bytes) -> AnyMetricsMessage:
    """An AnyMetricsMessage. Raises DecodeError."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from error
    except RecursionError as error:
        raise DecodeError("nested too deeply") from error
