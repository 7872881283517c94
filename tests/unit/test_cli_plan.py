"""The programs that `up` starts, and how a node's log line says that it serves."""

import argparse
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from cli import joining, plan, rolling
from cli.errors import CliError
from cli.home import Home
from cli.options import parse_slots
from cli.plan import Request
from cli.prepare.model import Model
from cli.process import Spec
from cli.rabbitmq import Broker
from topology.names import root_name
from worker.settings import parse

BROKER = Broker.elsewhere("amqp://somewhere/", "http://somewhere")


def option(spec: Spec, name: str) -> str:
    words = list(spec.command)
    return words[words.index(name) + 1]


def layout(**options: object) -> plan.Plan:
    request = Request(**{"models": {"echo": None}, "engine": "echo", **options})  # type: ignore[arg-type]
    return plan.make(request, Home(Path("/state")), BROKER, listener=7)


def test_the_default_is_a_root_and_two_nodes_below_it() -> None:
    laid_out = layout()
    assert [spec.name for spec in laid_out.roots] == ["root"]
    assert option(laid_out.roots[0], "--engine") == "none"
    assert "--parent" not in laid_out.roots[0].command
    assert [(spec.name, option(spec, "--parent")) for spec in laid_out.nodes] == [
        ("n1", "root"),
        ("n2", "root"),
    ]


def test_a_server_may_have_no_nodes_of_its_own() -> None:
    laid_out = layout(nodes=0, models={"a": None, "b": None})
    assert len(laid_out.roots) == 2
    assert laid_out.nodes == []


def test_a_fanout_makes_levels() -> None:
    parents = {spec.name: option(spec, "--parent") for spec in layout(nodes=4, fanout=2).nodes}
    assert parents == {"n1": "root", "n2": "n1", "n3": "n1", "n4": "n2"}


def test_each_model_gets_a_tree_with_names_of_its_own() -> None:
    laid_out = layout(models={"a": None, "org/B": Path("/models/b")}, nodes=3, fanout=2)
    second = root_name("org/B", "a")
    assert second.startswith("root-org-b_")
    assert [spec.name for spec in laid_out.roots] == ["root", second]
    assert {spec.name: option(spec, "--parent") for spec in laid_out.nodes} == {
        "n1": "root",
        "n2": "n1",
        "n3": "n1",
        "n4": second,
        "n5": "n4",
        "n6": "n4",
    }
    assert option(laid_out.nodes[3], "--model-path") == "/models/b"
    assert laid_out.apis[0].env["CANOPY_MODELS"] == '["a", "org/B"]'


def test_the_server_behind_the_openai_engine_is_told_to_its_nodes_alone() -> None:
    upstream = {"upstream": "http://far/v1", "upstream_model": "m"}
    laid_out = layout(engine="openai", **upstream)
    assert [option(spec, "--upstream") for spec in laid_out.nodes] == ["http://far/v1"] * 2
    assert option(laid_out.nodes[0], "--upstream-model") == "m"
    others = [*laid_out.roots, *laid_out.apis, *layout(**upstream).nodes]
    assert not any("--upstream" in spec.command for spec in others)


def understood(spec: Spec) -> argparse.Namespace:
    """The options as the node reads them."""
    words = list(spec.command)
    return parse(words[words.index("worker") + 1 :])


def test_slots_are_the_nodes_business_unless_a_number_is_asked_for() -> None:
    assert [understood(spec).slots for spec in layout().nodes] == [None, None]
    assert [understood(spec).slots for spec in layout(slots=5).nodes] == [5, 5]
    assert understood(layout().roots[0]).slots is None


@pytest.mark.parametrize("nonsense", ["0", "-1", "", "many", "1.5", "Auto", "²", "10001", "9" * 99])
def test_slots_are_a_number_or_auto(nonsense: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = ["--name", "n1", "--model", "m"]
    assert [parse_slots(text) for text in ("auto", "1", "256")] == [None, 1, 256]
    assert [parse([*node, "--slots", text]).slots for text in ("auto", "1", "256")] == [
        None,
        1,
        256,
    ]
    with pytest.raises(
        CliError, match="--slots must be a number from 1 to 10,000, or auto"
    ) as error:
        parse_slots(nonsense)
    assert error.value.code == 2
    with pytest.raises(SystemExit):
        parse([*node, f"--slots={nonsense}"])
    assert (
        f"argument --slots: {nonsense[:60]!r} is neither"
        in capsys.readouterr().err.splitlines()[-1]
    )


def test_nodes_hear_what_their_models_do() -> None:
    assert [option(spec, "--task") for spec in layout(task="embed").nodes] == ["embed", "embed"]
    assert "--task" not in layout().nodes[0].command


def test_processes_that_share_a_model_are_told_to_its_nodes_alone() -> None:
    laid_out = layout(tensor_parallel=4)
    assert [option(spec, "--tensor-parallel") for spec in laid_out.nodes] == ["4", "4"]
    assert not any(
        "--tensor-parallel" in spec.command
        for spec in [*laid_out.roots, *laid_out.apis, *layout().nodes]
    )


def test_the_api_inherits_the_socket_that_outlives_it() -> None:
    api = layout(port=8123).apis[0]
    assert option(api, "--fd") == "7"
    assert api.inherits == (7,)
    assert api.env["CANOPY_PORT"] == "8123"


def test_large_buffers_stay_off_the_heap_where_many_prompts_wait_and_tensors_are_left_alone() -> (
    None
):
    laid_out = layout()
    for spec in (*laid_out.apis, *laid_out.roots):
        assert int(spec.env["MALLOC_MMAP_THRESHOLD_"]) < 256 * 1024  # what asyncio receives into
    assert not any("MALLOC_MMAP_THRESHOLD_" in spec.env for spec in laid_out.nodes)


def test_standby_roots_are_equal_to_the_root_and_logged_apart() -> None:
    laid_out = layout(models={"a": None, "b": None}, nodes=1, standby=2)
    names = [
        "root",
        "root-standby-1",
        "root-standby-2",
        "root-b",
        "root-b-standby-1",
        "root-b-standby-2",
    ]
    assert [spec.name for spec in laid_out.roots] == names
    assert [option(spec, "--name") for spec in laid_out.roots] == ["root"] * 3 + ["root-b"] * 3
    assert all("--standby" in spec.command for spec in laid_out.roots)
    assert not any("--standby" in spec.command for spec in (*laid_out.nodes, *layout().roots))


def test_a_rolling_restart_goes_from_the_api_to_the_leaves_and_up() -> None:
    laid_out = layout(nodes=4, fanout=2, standby=1)
    assert rolling.order(laid_out, [], with_broker=False) == [
        "api",
        "n4",
        "n3",
        "n2",
        "n1",
        "root-standby-1",
        "root",
    ]
    assert rolling.order(laid_out, [], with_broker=True)[-2:] == ["root", "broker"]
    assert rolling.order(laid_out, ["x1", "x2"], with_broker=False)[1:3] == ["x2", "x1"]


@pytest.mark.parametrize(
    ("line", "ready"),
    [
        ("2026-11-22 12:42:12 [info     ] ready                          model=echo node=n1", True),
        ("2026-11-22 12:42:12 [\x1b[32minfo     \x1b[0m] \x1b[1mready\x1b[0m model=echo", True),
        ('{"event": "ready", "node": "n1"}', True),
        ("timestamp='2026-11-22T12:42:12Z' level='info' event='ready'", True),
        ("2026-11-22 12:42:12 [info     ] standby                        node=root", True),
        ("timestamp='2026-11-22T12:42:12Z' level='info' event='not ready'", False),
        ("2026-11-22 12:42:12 [info     ] leaving                        node=n1", False),
        ("2026-11-22 12:42:12 [warning  ] not registered, trying again   reason=not ready", False),
    ],
)
def test_ready_lines(line: str, ready: bool) -> None:
    assert plan.is_ready_line(line) is ready


def test_the_address_of_a_service_for_everybody_is_one_a_browser_understands() -> None:
    assert Request(models={"m": None}, host="0.0.0.0", port=80).url == "http://127.0.0.1:80"


# ---- joining a running instance

RECORD = {
    "amqp": {"node": "amqp://node:a'b$c@[::1]:5000/%2F"},
    "tls": None,
    "engine": "transformers",
    "policy": None,
    "upstream": None,
    "upstream_model": None,
    "roots": {"gemma-3-270m": "root", "my model": "root-my-model"},
    "asked": {"gemma-3-270m": "gemma-3-270m", "my model": "/models/my model"},
}


def test_a_join_line_survives_the_shell_and_names_model_and_engine() -> None:
    first, second = joining.lines(RECORD)
    assert shlex.split(first) == [
        "CANOPY_AMQP_URL=amqp://node:a'b$c@[::1]:5000/%2F",
        *("./canopy", "node", "NAME", "--parent", "root"),
        *("--model", "gemma-3-270m", "--engine", "transformers"),
    ]
    assert shlex.split(second)[5:8] == ["root-my-model", "--model", "/models/my model"]
    other = {
        **RECORD,
        "engine": "openai",
        "upstream": "http://far/v1",
        "upstream_model": "m",
        "policy": "paper",
    }
    assert shlex.split(joining.lines(other)[0])[-6:] == [
        *("--upstream", "http://far/v1", "--upstream-model", "m", "--policy", "paper")
    ]


def test_another_machine_joins_with_a_token_if_it_can() -> None:
    private = {**RECORD, "amqp": {"node": "amqp://node:p@h/", "admin": "amqp://admin:q@h/"}}
    assert "--listen" in joining.elsewhere(private)
    listening = {**private, "tls": {"port": 1}, "management": "http://admin:q@h"}
    assert "node-token create" in joining.elsewhere(listening)
    operators = {**RECORD, "amqp": dict.fromkeys(("node", "admin"), "amqp://me:p@h/")}
    assert "CANOPY_MANAGEMENT_URL" in joining.elsewhere(operators)
    for line in joining.local_lines(private):
        assert line.startswith("./canopy node NAME --parent root")


def test_an_operators_all_rights_password_is_in_no_join_line() -> None:
    urls = "amqp://canopy:p%40ss@a.example:5672/%2F,amqps://canopy:secret@b.example/x?prefix=t"
    line = joining.lines({**RECORD, "amqp": {"node": urls, "admin": urls}})[0]
    assert shlex.split(line)[0] == (
        "CANOPY_AMQP_URL=amqp://USER:PASSWORD@a.example:5672/%2F,"
        "amqps://USER:PASSWORD@b.example/x?prefix=t"
    )


def test_a_join_line_names_each_address_for_other_machines() -> None:
    tls = {
        "addresses": ["192.0.2.1", "fd00::1"],
        "port": 5671,
        "fingerprint": "sha256:00",
        "prefix": "room",
    }
    url = shlex.split(joining.lines({**RECORD, "tls": tls})[0])[0].partition("=")[2]
    assert url.split(",") == [
        "amqps://node:a%27b%24c@192.0.2.1:5671/%2F?fingerprint=sha256:00&prefix=room",
        "amqps://node:a%27b%24c@[fd00::1]:5671/%2F?fingerprint=sha256:00&prefix=room",
    ]


def test_a_worker_serves_what_its_parents_tree_does() -> None:
    assert joining.model_below(RECORD, "root-my-model") == "/models/my model"
    assert joining.model_below({**RECORD, "asked": {"m": "/models/m"}}, "n7") == "/models/m"
    with pytest.raises(CliError, match="say --model, one of: gemma-3-270m, my model"):
        joining.model_below(RECORD, "n7")


# ---- addresses


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:80"),
        ("::", "http://[::1]:80"),
        ("fd00::7", "http://[fd00::7]:80"),
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("box.example", "http://box.example:80"),
    ],
)
def test_the_address_that_is_printed_works(host: str, url: str) -> None:
    assert Request(models={"m": None}, host=host, port=80).url == url
    assert httpx.URL(url).host == urlsplit(url).hostname


def test_who_is_reached_by_an_address_is_not_refused_by_the_api() -> None:
    assert layout(host="fd00::7").apis[0].env["CANOPY_HOSTS"] == "[fd00::7]"
    assert layout(host="192.0.2.7").apis[0].env["CANOPY_HOSTS"] == "192.0.2.7"
    everywhere = layout(host="::").apis[0].env["CANOPY_HOSTS"].split()
    assert "127.0.0.1" in everywhere
    assert "[::1]" in everywhere


def test_api_processes_share_the_socket_and_are_replaced_first() -> None:
    laid_out = layout(api_processes=3)
    assert [spec.name for spec in laid_out.apis] == ["api", "api-2", "api-3"]
    assert {option(spec, "--fd") for spec in laid_out.apis} == {"7"}
    assert rolling.order(laid_out, [], with_broker=False)[:3] == ["api", "api-2", "api-3"]


def test_models_that_differ_in_punctuation_are_prepared_side_by_side(tmp_path: Path) -> None:
    names = ["a/b", "a-b", "a_b", "模型", "模" * 60, "x" * 200]
    steps = [Model(name).step(Home(tmp_path)) for name in names]
    assert len({step.name for step in steps}) == len(names)
    assert all(len(f"prepare-{step.name}.log".encode()) < 255 for step in steps)


@pytest.mark.parametrize("name", ["", "模" * 90, "x" * 201])
def test_a_model_with_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(CliError, match="--model must name a model"):
        Model(name)


def test_login_links_lead_to_the_proxy_where_there_is_one() -> None:
    assert Request(models={"m": None}, port=80).address == "http://127.0.0.1:80"
    assert (
        Request(models={"m": None}, public_url="https://chat.example/").address
        == "https://chat.example"
    )
