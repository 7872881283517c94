"""Which of a server's models a node stands for."""

import asyncio
from typing import Any

import httpx
import msgspec
import structlog

from worker.engines.base import EngineUnavailable
from worker.engines.openai.errors import BUSY_STATUSES, complaint

START_SECONDS = 15.0
_LIST_BYTES = 8 << 20
_MAX_NAMES = 10  # in a message
_MAX_LENGTH = 1 << 30  # tokens; no server has a longer context

log = structlog.get_logger(__name__)


class ListedModel(msgspec.Struct, frozen=True):
    """An entry of the server's list. `owned_by` is where servers say who they are."""

    id: str
    owned_by: str | None = None
    max_model_len: Any = None  # vLLM and SGLang; not every server that sends it means a number
    context_length: Any = None  # Canopy and others


class _List(msgspec.Struct, frozen=True):
    data: list[ListedModel]


class ServedModel(msgspec.Struct, frozen=True):
    """The model behind a node.

    `name`: on the server; `owner`: what the server calls itself, empty if it does not say;
    `context_length`: tokens of prompt and answer together, 0 if unknown.
    """

    name: str
    owner: str
    context_length: int = 0


async def find_model(
    client: httpx.AsyncClient, address: str, configured: str, public: str
) -> ServedModel:
    """The model `configured`, else the one of the node's `public` name, else the only one.

    Raises EngineUnavailable.
    """
    status, text = await _get_list(client, address)
    if status in (401, 403):
        raise EngineUnavailable(f"{address} refuses the key ({status}); set CANOPY_UPSTREAM_KEY")
    if status in BUSY_STATUSES:
        raise EngineUnavailable(f"{address} is not ready, it answers {status}: {complaint(text)}")
    if status == 200:
        models = _parse(text)
        if models is not None:
            return _choose(models, address, configured, public)
    if configured:
        return ServedModel(configured, "")
    raise EngineUnavailable(
        f"{address} has no list of models (it answers {status} to GET /models): does the address "
        "end in /v1? If it does, name the model: --upstream-model NAME"
    )


async def _get_list(client: httpx.AsyncClient, address: str) -> tuple[int, str]:
    """Status and body of GET /models."""
    try:
        async with asyncio.timeout(START_SECONDS), client.stream("GET", "models") as response:
            return response.status_code, await _read(response)
    except TimeoutError as error:
        message = f"{address} does not list its models within {START_SECONDS:.0f} s"
        raise EngineUnavailable(message) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise EngineUnavailable(
            f"{address} cannot be reached: {reason}; is the server up, is --upstream right?"
        ) from error


def _choose(listed: list[ListedModel], address: str, configured: str, public: str) -> ServedModel:
    models = {model.id: _served(model) for model in listed}
    first = next(iter(models.values()), None)
    names = _names(list(models))
    if configured:
        if configured in models:
            return models[configured]
        log.warning("the server does not list this model", model=configured, there_are=names)
        owner = ""
        if first is not None:
            owner = first.owner
        return ServedModel(configured, owner)  # an alias, perhaps: the server knows
    if public in models:
        return models[public]
    if first is not None and len(models) == 1:
        return first
    raise EngineUnavailable(
        f"{address} has no model {public!r}; name one with --upstream-model. There are: {names}"
    )


def _served(model: ListedModel) -> ServedModel:
    lengths = []
    for length in (model.max_model_len, model.context_length):
        if type(length) is int and 0 < length <= _MAX_LENGTH:
            lengths.append(length)
    return ServedModel(model.id, model.owned_by or "", min(lengths, default=0))


def _names(names: list[str]) -> str:
    text = ", ".join(names[:_MAX_NAMES]) or "none"
    if len(names) > _MAX_NAMES:
        text += f", and {len(names) - _MAX_NAMES} more"
    return text


async def _read(response: httpx.Response) -> str:
    """The body, cut where it is beyond all reason."""
    text = b""
    async for received in response.aiter_bytes():
        text += received
        if len(text) > _LIST_BYTES:
            break
    return text.decode(errors="replace")


def _parse(text: str) -> list[ListedModel] | None:
    try:
        return msgspec.json.decode(text, type=_List).data
    except msgspec.DecodeError:
        return None
