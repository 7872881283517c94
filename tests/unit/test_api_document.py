"""Whatever an operation is sent, the response is documented and not a server error.

`HUNT=5000 pytest tests/unit/test_api_document.py --timeout 0` tries more, new requests.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio
import schemathesis
from asgiref.sync import sync_to_async
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.accounts import keys
from api.chat.models import Conversation
from api.http.answers import ANSWERS
from api.http.examples import EXAMPLES
from api.operate.line.models import PausedModel
from api.operate.models.models import ModelSettings
from api.urls import endpoints
from broker.operator_messages import BrokerOverview
from tests.unit.api_site import FakeClient, log_in, make_user
from tests.unit.stateful.hunt import histories

HOLDS = [status_code_conformance, content_type_conformance, response_schema_conformance]
pytestmark = pytest.mark.timeout(240)  # of all files the longest: it starts first
# Requests of each operation that takes a body or a number: more than 2,000 in all. A body of
# several schemas takes schemathesis ten times as long to make as a small one.
REQUESTS, REQUESTS_WITH_LARGE_BODY = 35, 12
LARGE = 4  # schemas
ENDLESS = {
    "GET /api/tree/stream",
    "GET /api/events",
    "GET /api/operate/dead/stream",
    "GET /api/operate/logs/stream",
    "GET /api/operate/line/stream",
    "GET /api/operate/drills/stream",
    "GET /api/operate/hosts/stream",
    "GET /api/operate/queues/stream",
}

# Examples that this instance refuses with 400: it has no such person, and its node is down.
REFUSED = {
    "POST /api/login": "wrong_login",
    "POST /api/operate/nodes/{name}": "invalid_value",
}

DOCUMENT: dict[str, Any] = json.loads(json.dumps(endpoints.get_openapi_schema()))
SCHEMA = schemathesis.openapi.from_dict(copy.deepcopy(DOCUMENT))  # it changes what it gets
SCHEMA.config.generation.update(with_security_parameters=False)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
FINITE = [each for each in OPERATIONS if each.label not in ENDLESS]


def schemas_below(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for schema in base.__subclasses__():
        yield schema
        yield from schemas_below(schema)


def test_names_of_schemas_are_unique() -> None:
    """The document has one schema of each name: of two, it would describe one by the other."""
    ours = {each for each in schemas_below(BaseModel) if each.__module__.startswith("api.")}
    names = Counter(schema.__name__ for schema in ours)
    assert {name: count for name, count in names.items() if count > 1} == {}


def can_be_violated(operation: Any) -> bool:
    """True if a request can be other than the document says; any text is a name."""
    parameters = operation.definition.raw["parameters"]
    typed = any(each["schema"].get("type") != "string" for each in parameters)
    return typed or "requestBody" in operation.definition.raw


def has_large_body(operation: Any) -> bool:
    """True if making its body takes long."""
    schemas = DOCUMENT["components"]["schemas"]
    names: set[str] = set()
    reached = [operation.definition.raw.get("requestBody", {})]
    while reached:
        named = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(reached.pop()))
        reached += [schemas[name] for name in set(named) - names]
        names.update(named)
    return len(names) >= LARGE


VIOLABLE = [each for each in FINITE if can_be_violated(each)]
WITH_LARGE_BODY = [each for each in VIOLABLE if has_large_body(each)]
SMALL = [each for each in VIOLABLE if not has_large_body(each)]
INVIOLABLE = [each for each in FINITE if not can_be_violated(each)]


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that may call everything: it has a session, a CSRF token and a key of the staff."""

    http: httpx.AsyncClient
    conversation: int

    async def call(self, case: Case, *, real: bool) -> httpx.Response:
        """Sends what was generated; `real`: for things that are there, wherever it names one."""
        if real:
            self._name_real_things(case)
        sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
        headers = {
            name: str(value).encode("latin-1", "replace") for name, value in sent["headers"].items()
        }
        headers.pop("Authorization", None)
        content = json.dumps(sent["json"]).encode() if "json" in sent else sent.get("data")
        form: dict[str, Any] = {"content": content}
        if sent.get("files"):
            form = {"files": [as_part(*each) for each in sent["files"]]}
        request = self.http.build_request(sent["method"], sent["url"], headers=headers, **form)
        await request.aread()  # the checks look at it
        return await self.http.send(request)

    def _name_real_things(self, case: Case) -> None:
        if "number" in case.path_parameters:
            case.path_parameters["number"] = self.conversation
        if "name" in case.path_parameters:
            case.path_parameters["name"] = "n1" if "tree" in case.path else "tiny"
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"


def as_part(name: str, part: tuple[str | None, Any]) -> tuple[str, Any]:
    """A part of a form, as httpx takes it; generated numbers are sent as text."""
    filename, content = part[:2]
    return name, (filename, content if isinstance(content, str | bytes) else str(content))


@pytest.fixture
async def caller(fake: FakeClient, web: httpx.AsyncClient) -> Caller:
    """Who may call everything, with a conversation of their own."""
    fake.reports.publish(BrokerOverview(process="api-2"))  # or each look at the tree waits for one
    user = await make_user(is_staff=True)
    await log_in(web, user)
    web.headers["Authorization"] = f"Bearer {await sync_to_async(keys.create)(user)}"
    conversation = await Conversation.objects.acreate(user=user, model="tiny")
    return Caller(web, conversation.pk)


async def check(
    caller: Caller, operation: Any, data: st.DataObject, modes: list[GenerationMode]
) -> None:
    """One request of the operation, and what the document says of its answer."""
    mode = data.draw(st.sampled_from(modes))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    answer = await caller.call(case, real=data.draw(st.booleans()))
    assert answer.status_code != 500, answer.text
    case.validate_response(answer, checks=HOLDS)


@pytest.mark.parametrize("operation", SMALL, ids=lambda each: each.label)
@histories(REQUESTS)
@given(data=st.data())
async def test_what_takes_a_body_or_a_number(
    caller: Caller, operation: Any, data: st.DataObject
) -> None:
    await check(caller, operation, data, [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@pytest.mark.parametrize("operation", WITH_LARGE_BODY, ids=lambda each: each.label)
@histories(REQUESTS_WITH_LARGE_BODY)
@given(data=st.data())
async def test_what_takes_a_large_body(caller: Caller, operation: Any, data: st.DataObject) -> None:
    await check(caller, operation, data, [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@pytest.mark.parametrize("operation", INVIOLABLE, ids=lambda each: each.label)
@histories(15)
@given(data=st.data())
async def test_what_takes_no_more_than_a_name(
    caller: Caller, operation: Any, data: st.DataObject
) -> None:
    await check(caller, operation, data, [GenerationMode.POSITIVE])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
@histories(3)
@given(data=st.data())
async def test_without_a_key(web: httpx.AsyncClient, operation: Any, data: st.DataObject) -> None:
    case = data.draw(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    answer = await Caller(web, 1).call(case, real=True)
    case.validate_response(answer, checks=HOLDS)
    assert answer.status_code in {200, 401, 403, 404}


async def test_the_document_is_served(staff: httpx.AsyncClient) -> None:
    assert (await staff.get("/api/openapi.json")).json() == DOCUMENT


def test_nothing_in_the_document_is_left_out() -> None:
    assert len(OPERATIONS) == sum(len(each) for each in DOCUMENT["paths"].values())
    large = len(WITH_LARGE_BODY) * REQUESTS_WITH_LARGE_BODY
    assert len(SMALL) * REQUESTS + large >= 2000


def test_every_success_says_what_comes() -> None:
    silent = []
    for operation in OPERATIONS:
        answers = operation.definition.raw["responses"]
        said = [each for status, each in answers.items() if status in {"200", "201"}]
        silent += [operation.label for each in said if not each.get("content")]
    assert silent == []


def test_every_body_has_an_example() -> None:
    bodies = {
        each.label
        for each in OPERATIONS
        if "application/json" in each.definition.raw.get("requestBody", {}).get("content", {})
    }
    assert set(EXAMPLES) == bodies
    assert set(ANSWERS) <= {each.label for each in OPERATIONS}


@pytest_asyncio.fixture
async def settings_of_models(fake: FakeClient) -> AsyncIterator[None]:
    """An example pauses a model: not for the tests of other files."""
    yield
    await PausedModel.objects.all().adelete()
    await ModelSettings.objects.all().adelete()


@pytest.mark.usefixtures("settings_of_models")
@pytest.mark.parametrize("label", EXAMPLES)
async def test_an_example_is_valid(caller: Caller, label: str) -> None:
    """Nothing that it names may be there, but nothing is wrong with it."""
    method, path = label.split(" ")
    schema = DOCUMENT["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]
    components = {"components": DOCUMENT["components"]}
    jsonschema.validate(schema["example"], {**schema["schema"], **components})
    path = re.sub(r"\{(number|message)\}", str(caller.conversation), path)
    address = re.sub(r"\{\w+\}", "n1", path)
    caller.http.headers["X-Canopy-Deadline"] = "5"
    answer = await caller.http.request(method, address, json=schema["example"])
    assert answer.status_code not in {415, 422, 500}
    refused = answer.status_code == 400
    assert not refused or answer.json()["error"]["code"] == REFUSED.get(label), answer.text
