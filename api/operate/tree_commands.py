"""`python -m api host | autoscale | served | drill …`: hosts and models from the command line."""

import argparse
import asyncio
import json
import logging
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

from api.operate.commands import CommandError, recorded
from api.operate.drills import commands as drill_commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.operate.hosts.hosts import Hosts
    from api.operate.models.schemas import ServedModel
    from api.tree.watch import TreeWatch
    from broker.client import Client

COMMANDS = ("host", "autoscale", "served", "drill")
CONNECT_SECONDS = 5.0
_CARD_NUMBERS = (
    "max-tokens",
    "most-tokens",
    "most-requests",
    "temperature",
    "top-p",
    "top-k",
    "min-p",
    "repetition-penalty",
    "frequency-penalty",
    "presence-penalty",
)
HEAR_SECONDS = 2.5  # in which every agent tells its state


def add_arguments(commands: Any) -> None:
    """Adds the commands to those of `python -m api`."""
    host = commands.add_parser("host", help="machines with an agent")
    host.add_argument("--json", action="store_true")
    actions = host.add_subparsers(dest="action", required=True)
    actions.add_parser("list")
    start = actions.add_parser("start")
    start.add_argument("host")
    start.add_argument("model")
    start.add_argument("--name")
    start.add_argument("--parent")
    start.add_argument("--slots", type=int)
    start.add_argument("--device", default="")
    stop = actions.add_parser("stop")
    stop.add_argument("name")

    autoscale = commands.add_parser("autoscale", help="how many nodes a model has")
    autoscale.add_argument("--json", action="store_true")
    actions = autoscale.add_subparsers(dest="action", required=True)
    actions.add_parser("show")
    rule = actions.add_parser("set")
    rule.add_argument("model")
    for name in ("--least", "--most"):
        rule.add_argument(name, type=int, required=True)
    for name in ("--target-wait", "--cooldown"):
        rule.add_argument(name, type=float, required=True)
    actions.add_parser("off").add_argument("model")

    drill_commands.add_arguments(commands.add_parser("drill", help="kill a node on purpose"))

    served = commands.add_parser("served", help="load, stop and describe models")
    served.add_argument("--json", action="store_true")
    actions = served.add_subparsers(dest="action", required=True)
    load = actions.add_parser("load")
    load.add_argument("model")
    load.add_argument("host")
    load.add_argument("--slots", type=int)
    load.add_argument("--device", default="")
    actions.add_parser("stop").add_argument("model")
    card = actions.add_parser("set")
    card.add_argument("model")
    card.add_argument("--description", default=argparse.SUPPRESS)
    for name in _CARD_NUMBERS:
        card.add_argument(f"--{name}", type=_or_none, default=argparse.SUPPRESS)
    actions.add_parser("list")


def _or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def run(options: argparse.Namespace) -> int:
    """Runs one of them on a migrated database; returns the exit status."""
    from pydantic import ValidationError

    from api.errors import ApiError
    from broker.errors import BrokerError

    structlog.configure(  # results alone go to standard output
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        asyncio.run(_run(options))
    except (CommandError, BrokerError) as error:
        print(error, file=sys.stderr)
        return 1
    except ApiError as error:
        print(error.message, file=sys.stderr)
        return 1
    except ValidationError as error:
        first = error.errors()[0]
        print(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", file=sys.stderr)
        return 2
    return 0


async def _run(options: argparse.Namespace) -> None:
    match options.command, options.action:
        case "drill", _:
            await drill_commands.run(options, connected)
        case "autoscale", "show":
            await _show_rules(options.json)
        case "autoscale", _:
            await _change_rule(options)
        case "served", "list":
            await _list_models(options.json)
        case "served", "set":
            await _describe(options)
        case "served", _:
            await _change_tree(options)
        case _:
            await _run_on_hosts(options)


async def _run_on_hosts(options: argparse.Namespace) -> None:
    async with connected() as (client, tree):
        from api.operate.hosts.hosts import Hosts

        hosts = Hosts(client, tree)
        match options.action:
            case "list":
                await _list(hosts, options.json)
            case "start":
                await _start(hosts, options)
            case _:
                await _stop(hosts, options)


# ---- models


async def _show_rules(as_json: bool) -> None:
    from api.operate.models import store

    rules = {model: asdict(rule) for model, rule in (await store.stored_rules()).items()}
    if as_json:
        print(json.dumps({"rules": rules}))
        return
    for model, rule in rules.items():
        print(
            f"{model}  {rule['least']} to {rule['most']} nodes, target wait "
            f"{rule['target_wait']:.0f} s, cool-down {rule['cooldown']:.0f} s"
        )
    if not rules:
        print("No model is autoscaled.")


async def _change_rule(options: argparse.Namespace) -> None:
    from api.operate.models import store
    from api.operate.models.schemas import RuleBody, rule_of

    if options.action == "off":
        async with recorded("autoscaler off", options.model):
            if not await store.remove_rule(options.model):
                raise CommandError(f"{options.model} has no autoscaling rule")
        _say({"model": options.model}, f"{options.model} is not autoscaled", options.json)
        return
    body = RuleBody(
        model=options.model,
        least=options.least,
        most=options.most,
        target_wait=options.target_wait,
        cooldown=options.cooldown,
    )
    async with recorded("set autoscaler", body.model, f"{body.least} to {body.most} nodes"):
        await store.store_rule(body.model, rule_of(body))
    said = f"{body.model} gets {body.least} to {body.most} nodes"
    _say(body.model_dump(), said, options.json)


async def _describe(options: argparse.Namespace) -> None:
    from api.operate.models import store
    from api.operate.models.schemas import CardBody, card_of, described
    from broker.announcements import announce_once

    former = (await store.stored_cards()).get(options.model, store.NO_CARD)
    changes = {name: value for name, value in vars(options).items() if name in store.CARD_FIELDS}
    body = CardBody(model=options.model, **{**asdict(former), **changes})
    card = card_of(body)
    async with recorded("change model", body.model, described(card)):
        await store.store_card(body.model, card)
    async with connected() as (client, _):
        session = await client.open_session()
        try:
            await announce_once(session, store.SETTING)
        finally:
            await session.close()
    _say(body.model_dump(), f"{body.model}: {described(card)}", options.json)


async def _list_models(as_json: bool) -> None:
    from api.catalog import Catalog
    from api.operate.models import store, view
    from api.settings import ENV

    async with connected() as (client, tree):
        models = view.served(
            await tree.now(),
            client.hosts.states(),
            Catalog(client, ENV).context_lengths(),
            await store.stored_cards(),
            await store.stored_rules(),
        )
    if as_json:
        print(json.dumps({"models": [model.model_dump() for model in models]}))
        return
    for model in models:
        _show_model(model)
    if not models:
        print("No model is served.")


def _show_model(model: "ServedModel") -> None:
    from api.operate.models.schemas import CardBody, card_of, described

    facts = [f"{model.usable} of {model.slots} slots usable"]
    if not any(node.root for node in model.nodes):
        facts = [f"not served; may be loaded on: {', '.join(model.loadable) or 'no host'}"]
    if model.context:
        facts.append(f"context {model.context}")
    if model.autoscale:
        facts.append(f"autoscaled from {model.autoscale.least} to {model.autoscale.most} nodes")
    print(f"{model.model}  {'  '.join(facts)}")
    card = card_of(CardBody(**model.model_dump(include={"model", *CardBody.model_fields})))
    print(f"  {described(card)}")
    for node in model.nodes:
        if node.root:
            continue
        amounts = {"weights": node.weights, "cache": node.cache, "free": node.memory_free}
        memory = [f"{name} {size / 1e9:.2f} GB" for name, size in amounts.items() if size]
        parts = [node.host, node.engine, node.device, node.precision, *memory]
        where = "  ".join(part for part in parts if part)
        print(f"  {node.name:<10} {node.state:<10} {node.running}/{node.slots}  {where}")


async def _change_tree(options: argparse.Namespace) -> None:
    from api.errors import ApiError
    from api.operate.audit.store import begin_command, finish
    from api.operate.hosts.hosts import Hosts
    from api.operate.hosts.schemas import StartBody
    from api.operate.models.trees import ModelTrees
    from api.operate.nodes.actions import NodeActions
    from api.settings import ENV

    async with connected() as (client, tree):
        hosts, nodes = Hosts(client, tree), NodeActions(client, tree)
        trees = ModelTrees(tree, hosts, nodes, ENV.default_model)
        entry = await begin_command(f"{options.action} model", options.model)
        try:
            if options.action == "load":
                body = StartBody(model=options.model, slots=options.slots, device=options.device)
                await trees.load(options.host, body, entry)
            else:
                await trees.stop(options.model, entry)
        except ApiError as error:
            await finish(entry, error.message)
            raise
        failures = await trees.settled()
        if failures:
            raise CommandError(failures[0])
        await entry.arefresh_from_db()
    _say({"model": options.model, "result": entry.result}, entry.result, options.json)


def _say(outcome: dict[str, Any], said: str, as_json: bool) -> None:
    print(json.dumps(outcome) if as_json else said)


# ---- hosts


async def _list(hosts: "Hosts", as_json: bool) -> None:
    from api.operate.hosts import schemas

    states = hosts.states().values()
    if as_json:
        print(json.dumps({"hosts": [schemas.host(state) for state in states]}))
        return
    for state in states:
        print(
            f"{state.name}  {state.cpus} cpus  {state.memory_free / 1e9:.1f} of "
            f"{state.memory / 1e9:.1f} GB free  {len(state.nodes)} of {state.max_nodes} nodes  "
            f"models: {', '.join(model.name for model in state.models)}"
        )
        for node in state.nodes:
            print(f"  {node.name:<14} {node.state:<10} {node.pid or '':<8} {node.note}".rstrip())
    if not states:
        print("No host has an agent (./canopy agent starts one).")


async def _start(hosts: "Hosts", options: argparse.Namespace) -> None:
    from api.operate.hosts.schemas import StartBody

    body = StartBody(
        model=options.model,
        name=options.name,
        parent=options.parent,
        slots=options.slots,
        device=options.device,
    )
    async with recorded("start node", options.host, options.model):
        started = await hosts.start(options.host, body)
    if options.json:
        print(started.model_dump_json())
    else:
        print(f"{started.host} starts {started.node} below {started.parent}")


async def _stop(hosts: "Hosts", options: argparse.Namespace) -> None:
    host = hosts.host_of(options.name)
    async with recorded("stop node", options.name, host):
        await hosts.stop(host, options.name)
    if options.json:
        print(json.dumps({"host": host, "node": options.name}))
    else:
        print(f"{host} ends {options.name}")


@asynccontextmanager
async def connected() -> "AsyncIterator[tuple[Client, TreeWatch]]":
    """Connected like an API process for a moment, and every agent heard."""
    from api.settings import ENV
    from api.tree.watch import TreeWatch
    from broker.client import Client

    client = Client(ENV.amqp_url, queue_type=ENV.queue_type)
    await client.start()
    try:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while not client.connected:
                    await client.changed()
        except TimeoutError as error:
            raise CommandError("the broker does not answer") from error
        await asyncio.sleep(HEAR_SECONDS)
        yield client, TreeWatch(client)
    finally:
        await client.stop()
