"""The tree and the broker as Prometheus metrics, from what an API process knows at one moment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.node_state import NodeState
from broker.tree import edges_as_told
from broker.tree import tree as describe
from topology import names
from topology.natural import natural_key

_SUMS = ("waiting", "running", "usable", "oldest_wait")
NODES = 1000  # shown, the first by name; a tree has fewer

_NODE_GAUGES = {
    "slots": "Jobs that the node can run at once.",
    "running": "Jobs that run on the node.",
    "held": "Jobs that wait in the node's hands.",
}
_NODE_COUNTERS = {
    "received": "Jobs that arrived at the node.",
    "finished": "Jobs that ended on the node.",
    "failed": "Runs that failed by a fault of the node, or were given up.",
    "tokens": "Tokens that the node generated.",
    "prompt_tokens": "Tokens of prompts, if the engine counts them.",
    "reused_tokens": "Of these, tokens found in the prefix cache.",
}


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known at a scrape, `at` Unix seconds. `depths`: jobs ready, by queue."""

    at: float
    nodes: Mapping[str, NodeState]
    depths: Mapping[str, int]
    connected: bool


class TreeCollector(Collector):
    """The metrics of one moment."""

    def __init__(self, moment: Moment) -> None:
        shown = sorted(moment.nodes, key=natural_key)[:NODES]
        self._nodes = {name: moment.nodes[name] for name in shown}
        self._moment = moment

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        yield from self._broker()
        yield from self._models()
        yield from self._node_facts()
        for name, text in _NODE_GAUGES.items():
            yield self._of_nodes(GaugeMetricFamily, f"canopy_node_{name}", text, name)
        for name, text in _NODE_COUNTERS.items():
            yield self._of_nodes(CounterMetricFamily, f"canopy_node_{name}", text, name)

    def _broker(self) -> Iterator[Metric]:
        connected = GaugeMetricFamily(
            "canopy_broker_connected", "1 if this process could submit a job now."
        )
        connected.add_metric([], float(self._moment.connected))
        yield connected
        letters = self._moment.depths.get(names.DEAD_QUEUE)
        if letters is not None:
            dead = GaugeMetricFamily("canopy_dead_letters", "Jobs that were given up on.")
            dead.add_metric([], letters)
            yield dead

    def _models(self) -> Iterator[Metric]:
        waiting = _by_model("canopy_model_waiting_jobs", "Jobs that wait, in nodes or queues.")
        running = _by_model("canopy_model_running_jobs", "Jobs that run.")
        slots = _by_model("canopy_model_usable_slots", "Slots that jobs can reach now.")
        oldest = _by_model(
            "canopy_model_oldest_wait_seconds", "How long the first waiting job has waited."
        )
        for model, sums in self._sums().items():
            waiting.add_metric([model], sums["waiting"])
            running.add_metric([model], sums["running"])
            slots.add_metric([model], sums["usable"])
            oldest.add_metric([model], sums["oldest_wait"])
        yield from (waiting, running, slots, oldest)

    def _sums(self) -> dict[str, dict[str, float]]:
        """By model, which may have several trees."""
        nodes, depths = self._moment.nodes, self._moment.depths
        seen = describe(edges_as_told(nodes), nodes, depths, self._moment.at)
        by_model: dict[str, dict[str, float]] = {}
        for tree in seen["summary"]["trees"]:
            sums = by_model.setdefault(tree["model"], dict.fromkeys(_SUMS, 0))
            for name in _SUMS[:-1]:
                sums[name] += tree[name]
            sums["oldest_wait"] = max(sums["oldest_wait"], tree["oldest_wait"])
        return by_model

    def _node_facts(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "canopy_node_info",
            "1 for each node.",
            labels=["node", "model", "engine", "device", "host", "parent"],
        )
        status = GaugeMetricFamily(
            "canopy_node_status", "1 for the node's present status.", labels=["node", "status"]
        )
        started = GaugeMetricFamily(
            "canopy_node_start_time_seconds", "Unix time of the node's start.", labels=["node"]
        )
        depth = GaugeMetricFamily(
            "canopy_node_queue_depth", "Jobs ready in the node's queue.", labels=["node"]
        )
        for name, state in self._nodes.items():
            words = [name, state.model, state.engine, state.device, state.host, state.parent or ""]
            info.add_metric(words, 1)
            status.add_metric([name, state.status], 1)
            started.add_metric([name], state.started)
            ready = self._moment.depths.get(names.node(name))
            if ready is not None:
                depth.add_metric([name], ready)
        yield from (info, status, started, depth)

    def _of_nodes(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        metric: str,
        text: str,
        attribute: str,
    ) -> Metric:
        metrics = family(metric, text, labels=["node", "model"])
        for name, state in self._nodes.items():
            metrics.add_metric([name, state.model], getattr(state, attribute))
        return metrics


def _by_model(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model"])
