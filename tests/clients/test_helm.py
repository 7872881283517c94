"""The chart as Helm renders it, held against Kubernetes' schemas and against our command line."""

import json
import subprocess
from typing import Any

import click
import pytest

from cli.__main__ import command_line
from cli.home import REPOSITORY
from cli.lazy import LazyCommand
from tests.clients import environments
from tests.clients.programs import SCRIPTS

CHART = REPOSITORY / "deploy" / "helm" / "canopy"
Objects = dict[tuple[str, str], dict[str, Any]]


def render(**values: Any) -> Objects:
    """By kind and name."""
    done = subprocess.run(
        [environments.python("helm"), SCRIPTS / "render_chart.py", CHART, json.dumps(values)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {(each["kind"], each["metadata"]["name"]): each for each in json.loads(done.stdout)}


def container(objects: Objects, role: str) -> dict[str, Any]:
    pod = objects["StatefulSet", f"chat-canopy-{role}"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    [only] = pod["containers"]
    assert only["securityContext"]["readOnlyRootFilesystem"]
    return only


def assert_known(words: list[str]) -> None:
    """The command line takes these words."""
    command = command_line().commands[words[0]]
    assert isinstance(command, LazyCommand)
    with click.Context(command) as parent:
        command.make_context(words[0], words[1:], parent=parent)


def test_the_default() -> None:
    objects = render()
    assert set(objects) == {
        ("StatefulSet", "chat-canopy-server"),
        ("StatefulSet", "chat-canopy-node"),
        ("Service", "chat-canopy"),
        ("PodDisruptionBudget", "chat-canopy-node"),
        ("NetworkPolicy", "chat-canopy-server"),
        ("NetworkPolicy", "chat-canopy-node"),
    }
    assert objects["NetworkPolicy", "chat-canopy-node"]["spec"]["ingress"] == []
    for role in ("server", "node"):
        known = container(objects, role)
        assert {"startupProbe", "livenessProbe", "readinessProbe", "lifecycle"} <= set(known)
        assert_known([word.replace("$(POD_NAME)", "chat-canopy-node-0") for word in known["args"]])


def test_a_node_has_time_to_drain_and_no_database() -> None:
    objects = render(nodes={"drainSeconds": 300})
    node = container(objects, "node")
    assert "--wait 300" in node["lifecycle"]["preStop"]["exec"]["command"][-1]
    pod = objects["StatefulSet", "chat-canopy-node"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 300
    [secrets] = [volume for volume in pod["volumes"] if volume["name"] == "secrets"]
    assert {item["key"] for item in secrets["secret"]["items"]} == {"amqp-url", "management-url"}


def test_autoscaling_reads_the_models_wait_and_leaves_the_number_to_keda() -> None:
    objects = render(
        engine="echo",
        model="tiny",
        autoscaling={"enabled": True, "max": 4},
        ingress={"enabled": True},
    )
    assert "replicas" not in objects["StatefulSet", "chat-canopy-node"]["spec"]
    scaled = objects["ScaledObject", "chat-canopy-node"]["spec"]
    assert scaled["maxReplicaCount"] == 4
    places = [trigger["metadata"]["valueLocation"] for trigger in scaled["triggers"]]
    assert places == [
        'canopy_model_oldest_wait_seconds{model="tiny"}',
        'canopy_model_running_jobs{model="tiny"}',
    ]
    assert ("Ingress", "chat-canopy") in objects


@pytest.mark.parametrize(
    "wrong", [{"broker": {"prefix": "A b"}}, {"nodes": {"drainSeconds": "x"}}, {"secretName": ""}]
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"(?i)schema|values"):
        render(**wrong)
