"""`model list|load|stop|set` and `autoscale`: by the API's program, which records what is done."""

from collections.abc import Callable
from typing import Any

import click

from cli import options
from cli.commands.host import become_operator

_model = click.argument("model")
_NONE = "none"
_penalty = click.FloatRange(-2, 2)
_CARD: dict[str, tuple[click.ParamType[Any], str]] = {
    "max-tokens": (click.IntRange(1, 10_000_000), "Of answers whose request names no number."),
    "most-tokens": (click.IntRange(1, 10_000_000), "Of any answer."),
    "most-requests": (click.IntRange(1, 100_000), "Of one user at a time; batches count apart."),
    "temperature": (click.FloatRange(0, 2), "0: always the likeliest token."),
    "top-p": (click.FloatRange(0, 1, min_open=True), "Of the likeliest tokens' probability."),
    "top-k": (click.IntRange(0, 1_000_000), "Of the likeliest tokens; 0: of all."),
    "min-p": (click.FloatRange(0, 1), "Of the likeliest token's probability, at least."),
    "repetition-penalty": (click.FloatRange(0, 10, min_open=True), "1: none."),
    "frequency-penalty": (_penalty, "For each occurrence in the answer."),
    "presence-penalty": (_penalty, "Once, for a token in the answer."),
}


class _OrNone(click.ParamType[Any]):
    """A value, or "none" to clear it."""

    def __init__(self, value: click.ParamType[Any]) -> None:
        self._value = value
        self.name = f"{value.name}|{_NONE}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == _NONE:
            return _NONE
        return str(self._value.convert(value, param, ctx))


def _card_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, (value, text) in reversed(_CARD.items()):
        option = click.option(f"--{name}", type=_OrNone(value), metavar=f"N|{_NONE}", help=text)
        command = option(command)
    return command


@click.command("list")
@options.as_json
def list_models(as_json: bool) -> None:
    """List the models: nodes, memory, settings, and where they may be loaded."""
    become_operator("served", ["list"], as_json)


@click.command("load")
@_model
@click.argument("host")
@click.option("--slots", type=click.IntRange(1, 1000), help="Answers that it writes at once.")
@click.option("--device", default="", help="cpu, cuda:0, ...; default: the agent's choice.")
@options.as_json
def load(model: str, host: str, slots: int | None, device: str, as_json: bool) -> None:
    """Load a model on a host: the root of its tree, and a node.

    MODEL is one that the host allows (--allow-model of its agent, or of up).
    """
    words = ["load", model, host, "--device", device]
    if slots is not None:
        words += ["--slots", str(slots)]
    become_operator("served", words, as_json)


@click.command("stop")
@_model
@options.as_json
def stop(model: str, as_json: bool) -> None:
    """End all nodes of a model.

    They leave from the leaves up, the root last; jobs that wait stay in the root's queue.
    """
    become_operator("served", ["stop", model], as_json)


@click.command("set")
@_model
@click.option("--description", metavar="TEXT", help="Shown on the chat page; '' clears it.")
@_card_options
@options.as_json
def set_model(model: str, as_json: bool, **settings: str | None) -> None:
    """Set a model's description, limits and defaults.

    The defaults are for requests that name no value, of users without one. What is left out stays
    as it is; "none" clears a value. ./canopy model list shows them.
    """
    words = ["set", model]
    for name, value in settings.items():
        if value is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    if len(words) == 2:
        raise click.UsageError("say what to set: --help lists it")
    become_operator("served", words, as_json)


@click.command("show")
@options.as_json
def show(as_json: bool) -> None:
    """Show which models are autoscaled."""
    become_operator("autoscale", ["show"], as_json)


@click.command("set")
@_model
@click.option("--min", "least", type=click.IntRange(0, 1000), required=True, help="Nodes.")
@click.option("--max", "most", type=click.IntRange(1, 1000), required=True, help="Nodes.")
@click.option(
    "--target-wait",
    type=click.FloatRange(0, 86_400),
    default=10.0,
    show_default=True,
    help="Seconds that the first in line may wait.",
)
@click.option(
    "--cooldown",
    type=click.FloatRange(5, 86_400),
    default=60.0,
    show_default=True,
    help="Seconds between two changes.",
)
@options.as_json
def set_rule(
    model: str, least: int, most: int, target_wait: float, cooldown: float, as_json: bool
) -> None:
    """Keep a model between two numbers of nodes.

    Nodes are started on hosts with an agent while jobs wait too long, and ended, drained first,
    when one less would do for two cool-downs.
    """
    words = ["set", model, "--least", str(least), "--most", str(most)]
    words += ["--target-wait", str(target_wait), "--cooldown", str(cooldown)]
    become_operator("autoscale", words, as_json)


@click.command("off")
@_model
@options.as_json
def off(model: str, as_json: bool) -> None:
    """Leave a model's nodes to people again."""
    become_operator("autoscale", ["off", model], as_json)
