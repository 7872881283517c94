"""`join`: a node on another machine, with a token from the machine that runs Canopy."""

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from cli import broker_urls, environment, join_token, options
from cli import home as homes
from cli.errors import MachineError, StateError, UnreachableError, UsageError
from cli.home import PRIVATE_UMASK, Home, become_module
from cli.join_token import JoinToken
from cli.plan import OPENMP_SPIN_COUNT
from cli.prepare import steps
from cli.prepare.model import Model, is_local
from topology.limits import MAX_JOINED_SLOTS

TOKEN_VARIABLE = "CANOPY_NODE_TOKEN"  # noqa: S105 - the variable's name
RETRY_SECONDS = 2.0
_NOT_IN_ADDRESSES = re.compile(r"[,@?#\s]")
REACH_SECONDS = 5.0  # for one address to accept a connection

T = TypeVar("T", bound=Callable[..., Any])


def _decided_there(_context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Answers an option that people look for here. Raises UsageError."""
    if value is not None:
        raise UsageError(
            f"The token says the node's {option.name}. For another: ./canopy node-token create "
            f"--{option.name} {option.metavar}, on the machine that runs Canopy."
        )


def _of_the_token(name: str, metavar: str) -> Callable[[T], T]:
    return click.option(
        f"--{name}", metavar=metavar, hidden=True, callback=_decided_there, expose_value=False
    )


@click.command()
@click.argument("words", nargs=-1, metavar="[ADDRESS] [TOKEN]")
@options.slots
@options.device
@options.precision
@options.kv_cache_dtype
@options.memory_fraction
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the model is on this machine, if it is a folder on the other one.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to go on trying while the other machine is not reached. Default: once.",
)
@_of_the_token("name", "NAME")
@_of_the_token("parent", "NAME")
@_of_the_token("model", "MODEL")
@_of_the_token("expires", "WHEN")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where models and logs are kept. Default: CANOPY_HOME, else var/ beside this program.",
)
def join(
    words: tuple[str, ...],
    slots: str,
    device: str | None,
    precision: str | None,
    kv_cache_dtype: str | None,
    memory_fraction: float | None,
    model_path: Path | None,
    wait: float,
    home: Path | None,
) -> None:
    """Run a node here, below the Canopy of another machine.

    There, ./canopy node-token create prints TOKEN, which says everything else: the addresses, the
    model, the engine and the parent. A copy of this folder is all that is needed here. With "-" the
    token is read from standard input; without one from CANOPY_NODE_TOKEN.

    ADDRESS is where the pages are, https://chat.example.org, for a machine that reaches nothing
    else of the other one, which then needs: ./canopy up --tunnel

    One token is for one node, whose name it says; make one for each GPU.
    """
    options.check_precision(precision)
    options.check_kv_cache_dtype(kv_cache_dtype)
    number = options.parse_slots(slots, MAX_JOINED_SLOTS)
    folder = Home(home.expanduser().resolve()) if home else homes.read()
    address, text = _address_and_token(words)
    parsed = join_token.decode(text)
    join_token.check(parsed)
    if address is not None:
        parsed = msgspec.structs.replace(parsed, urls=(_tunnel(address, parsed),))
    _check_urls(parsed)
    urls = asyncio.run(_reached(parsed, wait))
    arguments = ["--name", parsed.name, "--parent", parsed.parent, "--engine", parsed.engine]
    arguments += ["--slots", str(number or "auto"), "--task", parsed.task]
    arguments += _model_options(parsed, model_path, folder)
    if device:
        arguments += ["--device", device]
    for option, value in (
        ("--policy", parsed.policy),
        ("--upstream", parsed.upstream),
        ("--upstream-model", parsed.upstream_model),
    ):
        if value:
            arguments += [option, value]
    os.umask(PRIVATE_UMASK)
    folder.make()
    os.environ.pop(TOKEN_VARIABLE, None)
    become_module(
        "worker",
        *arguments,
        "--wait",
        str(wait),
        CANOPY_AMQP_URL=",".join(urls),
        **folder.node_variables(parsed.name),
        CANOPY_PRECISION=precision or "auto",
        CANOPY_KV_CACHE_DTYPE=kv_cache_dtype or "auto",
        CANOPY_MEMORY_FRACTION=str(memory_fraction or ""),
        GOMP_SPINCOUNT=environment.read().spin_count or OPENMP_SPIN_COUNT,
    )


def _address_and_token(words: tuple[str, ...]) -> tuple[str | None, str]:
    """The pages' address, if there is one, and the token's text, which a shell may have split."""
    addresses_given = [word for word in words if _is_address(word)]
    if len(addresses_given) > 1:
        raise UsageError("join takes one address of pages: ./canopy join ADDRESS TOKEN")
    text = _text(" ".join(word for word in words if not _is_address(word)))
    return (addresses_given[0] if addresses_given else None), text


def _is_address(word: str) -> bool:
    return word.startswith(("https://", "http://"))


def _tunnel(pages: str, token: JoinToken) -> str:
    """The way through the pages' address. Raises UsageError."""
    parts = urlsplit(pages)
    if not _is_address(pages) or not parts.hostname or _NOT_IN_ADDRESSES.search(pages):
        raise UsageError(f"{pages!r} is no address of pages; it is like https://chat.example.org")
    return broker_urls.through_pages(pages, token.urls[0])


def _check_urls(token: JoinToken) -> None:
    """Raises UsageError, without the URL, which has a password in it."""
    from broker.addresses import addresses
    from broker.errors import BadAddress

    for url in token.urls:
        try:
            addresses(url)
        except BadAddress as error:
            raise UsageError(f"This leads to no broker: {error}.") from None
        if "," in url:
            raise UsageError("The token is damaged: an address in it has a comma.")


def _text(argument: str) -> str:
    """The token's text. Raises UsageError without one."""
    if argument == "-":
        return _pasted(sys.stdin)
    text = argument or os.environ.get(TOKEN_VARIABLE, "")
    if not text:
        raise UsageError(
            "A token is needed: ./canopy node-token create prints one on the machine that runs "
            "Canopy. Then here: ./canopy join TOKEN"
        )
    return text


def _pasted(lines: Iterable[str]) -> str:
    """The lines of a token that may have been broken into several; no more than it needs."""
    text = ""
    for line in lines:
        text += line[: join_token.MAX_PASTED]
        if join_token.is_whole(text) or len(text) > join_token.MAX_PASTED:
            break
    return text


def _model_options(token: JoinToken, model_path: Path | None, home: Home) -> list[str]:
    """The model's name and, once it is prepared, its folder. Raises UsageError."""
    words = ["--model", token.model]
    if token.engine != "transformers":
        return words
    argument = str(model_path) if model_path else token.model_argument
    if is_local(argument) and not Path(argument).expanduser().is_dir():
        raise UsageError(
            f"The model {token.model} is a folder on the other machine ({argument}): copy it here "
            "and say --model-path FOLDER."
        )
    model = Model(argument)
    home.make()
    with steps.exclusive(home.models_lock):
        steps.run_together([model.step(home)], home.logs)
    return [*words, "--model-path", str(model.folder)]


async def _reached(token: JoinToken, wait: float) -> list[str]:
    """The URLs at which the broker lets this node in; the others would only cost time later.

    Tries again until `wait` is over. Raises CliError.
    """
    give_up = time.monotonic() + wait
    while True:
        try:
            return await _try(token)
        except UnreachableError as error:
            if time.monotonic() >= give_up:
                raise
            print(f"{error}; trying again", file=sys.stderr, flush=True)
            await asyncio.sleep(RETRY_SECONDS)


async def _try(token: JoinToken) -> list[str]:
    """Raises UnreachableError with each address and why, or what else is wrong."""
    from broker.amqp import AmqpSession
    from broker.errors import AccessRefused, BadCertificate, BrokerError

    outcomes = await asyncio.gather(*(_accepts(url) for url in token.urls))
    open_urls = [url for url, reason in zip(token.urls, outcomes, strict=True) if not reason]
    if not open_urls:
        raise UnreachableError(
            "The other machine is not reached: "
            + "; ".join(outcomes)
            + ". Is Canopy running there, and does a firewall let this port through?"
        )
    try:
        session = await AmqpSession.open(",".join(open_urls), f"join {token.name}")
    except AccessRefused as error:
        when = join_token.expired(token)
        why = f"it expired on {when}" if when else "it was revoked or has expired"
        raise StateError(
            f"The other machine does not know this token any more: {why}. "
            "There: ./canopy node-token create"
        ) from error
    except BadCertificate as error:
        raise MachineError(f"{error}. There: ./canopy node-token create") from error
    except BrokerError as error:
        raise UnreachableError(str(error)) from error
    await session.close()
    return open_urls


async def _accepts(url: str) -> str:
    """Why nothing is reached there; "" if a server accepts connections, or for a tunnel."""
    from broker.addresses import addresses

    (address,) = addresses(url)
    if address.tunnelled:
        return ""
    host, port = address.host, address.port
    try:
        async with asyncio.timeout(REACH_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{host}:{port} does not answer (wrong address, or a firewall)"
    except ConnectionRefusedError:
        return f"{host}:{port} refuses connections (wrong port, or Canopy does not run there)"
    except socket.gaierror as error:
        return f"{host}: {error.strerror}"
    except OSError as error:  # whose own text has only the address again
        reason = os.strerror(error.errno) if error.errno else str(error)
        return f"{host}:{port}: {reason}"
    writer.close()
    return ""
