"""Which of a server's models a node stands for."""

import asyncio
from typing import Any

import httpx
import msgspec
import structlog

from worker.engines.base import EngineUnavailable
from worker.engines.openai.errors import BUSY, complaint

START_SECONDS = 15.0
_LIST_BYTES = 8 << 20
_SHOWN = 10  # names
_LONGEST = 1 << 30  # tokens; a context length beyond it is no fact

log = structlog.get_logger(__name__)


class Model(msgspec.Struct, frozen=True):
    """An entry of the list. `owned_by` is where servers say who they are."""

    id: str
    owned_by: str | None = None
    max_model_len: Any = None  # vLLM and SGLang tell it; not every server that does means a number
    context_length: Any = None  # Canopy and others


class _List(msgspec.Struct, frozen=True):
    data: list[Model]


class Found(msgspec.Struct, frozen=True):
    """The model's name on the server, what the server calls itself (empty if it says nothing), and how many tokens
    prompt and answer may have together (0 if it does not say).
    """

    name: str
    owner: str
    context_length: int = 0


async def choose(client: httpx.AsyncClient, address: str, wanted: str, public: str) -> Found:
    """The model `wanted`, or else the one of the node's `public` name, or the only one. Raises EngineUnavailable."""
    try:
        async with asyncio.timeout(START_SECONDS), client.stream("GET", "models") as response:
            status, text = response.status_code, await _read(response)
    except TimeoutError as error:
        raise EngineUnavailable(
            f"{address} does not tell its models within {START_SECONDS:.0f} s"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise EngineUnavailable(
            f"{address} cannot be reached: {reason}; is the server up, is --upstream right?"
        ) from error
    if status in (401, 403):
        raise EngineUnavailable(f"{address} refuses the key ({status}); set CANOPY_UPSTREAM_KEY")
    if status in BUSY:
        raise EngineUnavailable(f"{address} is not ready, it answers {status}: {complaint(text)}")
    models = _parsed(text) if status == 200 else None
    if models is None:
        if wanted:
            return Found(wanted, "")
        raise EngineUnavailable(
            f"{address} has no list of models (it answers {status} to GET /models): does the address end in /v1? "
            "If it does, name the model: --upstream-model NAME"
        )
    return _chosen(models, address, wanted, public)


def _chosen(models: list[Model], address: str, wanted: str, public: str) -> Found:
    found = {model.id: _found(model) for model in models}
    if wanted:
        if wanted in found:
            return found[wanted]
        log.warning(
            "the server does not list this model", model=wanted, there_are=_names(list(found))
        )
        owner = (
            next(iter(found.values())).owner if found else ""
        )  # an alias, perhaps: the server knows
        return Found(wanted, owner)
    if public in found:
        return found[public]
    if len(found) == 1:
        return next(iter(found.values()))
    raise EngineUnavailable(
        f"{address} has no model {public!r}; name one with --upstream-model. There are: {_names(list(found))}"
    )


def _found(model: Model) -> Found:
    told = [model.max_model_len, model.context_length]
    lengths = [length for length in told if type(length) is int and 0 < length <= _LONGEST]
    return Found(model.id, model.owned_by or "", min(lengths, default=0))


def _names(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


async def _read(response: httpx.Response) -> str:
    """The body, cut where it is beyond all reason."""
    text = b""
    async for piece in response.aiter_bytes():
        text += piece
        if len(text) > _LIST_BYTES:
            break
    return text.decode(errors="replace")


def _parsed(text: str) -> list[Model] | None:
    try:
        return msgspec.json.decode(text, type=_List).data
    except msgspec.DecodeError:
        return None
