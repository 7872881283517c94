"""The metrics of several processes as one answer: each sample says which process counted it."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from broker.metric_messages import MetricFamily, MetricSample, ProcessMetrics

_CREATED = "_created"  # samples that the library adds; the process's start says as much


def families(registry: CollectorRegistry) -> tuple[MetricFamily, ...]:
    """What a registry's instruments have counted."""
    return tuple(_family(metric) for metric in registry.collect())


def _family(metric: Metric) -> MetricFamily:
    samples = []
    for sample in metric.samples:
        if not sample.name.endswith(_CREATED):
            samples.append(MetricSample(sample.name, dict(sample.labels), float(sample.value)))
    return MetricFamily(metric.name, metric.type, metric.documentation, tuple(samples))


def newest(own: ProcessMetrics, others: Iterable[ProcessMetrics]) -> list[ProcessMetrics]:
    """One of each name: during a handover two processes have the same, and the later one serves."""
    by_name: dict[str, ProcessMetrics] = {}
    for metrics in sorted(others, key=lambda metrics: metrics.started):
        by_name[metrics.name] = metrics
    by_name[own.name] = own
    return [by_name[name] for name in sorted(by_name)]


class ProcessCollector(Collector):
    """The families of all processes, each sample with a label `process`."""

    def __init__(self, processes: Iterable[ProcessMetrics]) -> None:
        self._processes = list(processes)

    def collect(self) -> Iterator[Metric]:
        """Each family once. One that another release counts differently is left out there."""
        merged: dict[str, Metric] = {}
        for process in self._processes:
            for family in process.families:
                metric = merged.setdefault(
                    family.name, Metric(family.name, family.text, family.kind)
                )
                if metric.type == family.kind:
                    _add(metric, family, process.name)
        yield from merged.values()


def _add(metric: Metric, family: MetricFamily, process: str) -> None:
    for sample in family.samples:
        metric.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
