"""CANOPY_MODEL_ALIASES: other names for the models that are served."""

import httpx
import pytest
from django.conf import settings

from api import model_aliases
from api.environment import read
from tests.unit.api_site import FakeClient
from tests.unit.openai_site import CHAT

ALIASES = (("claude-*", "tiny"), ("gpt-4?", "big"), ("*", "other"))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-sonnet-9", "tiny"),
        ("gpt-4o", "big"),
        ("gpt-4", "other"),
        ("big", "big"),  # served under its own name
    ],
)
def test_the_first_pattern_counts(name: str, model: str) -> None:
    assert model_aliases.resolve(name, ALIASES, ("tiny", "big")) == model


def test_a_name_without_an_alias_stays() -> None:
    assert model_aliases.resolve("nope", ALIASES[:2], ("tiny",)) == "nope"


def test_they_are_separated_by_commas_or_spaces() -> None:
    assert read({"CANOPY_MODEL_ALIASES": "a=b, c-*=org/d"}).model_aliases == (
        ("a", "b"),
        ("c-*", "org/d"),
    )


async def test_requests_name_models_by_them(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases = (("gpt-*", "tiny"),)
    env = settings.ENV
    monkeypatch.setattr(settings, "ENV", type(env)(**{**vars(env), "model_aliases": aliases}))
    answer = await program.post("/v1/chat/completions", json={**CHAT, "model": "gpt-99"})
    assert answer.json()["model"] == "tiny"
    assert fake.jobs[0].model == "tiny"
    assert (await program.get("/v1/models/gpt-99")).json()["id"] == "tiny"


async def test_a_key_may_come_as_x_api_key(program: httpx.AsyncClient) -> None:
    key = program.headers.pop("Authorization").removeprefix("Bearer ")
    answer = await program.get("/v1/models", headers={"X-Api-Key": key})
    assert answer.status_code == 200
    assert (await program.get("/v1/models", headers={"X-Api-Key": "x"})).status_code == 401


async def test_anthropics_clients_get_their_errors(web: httpx.AsyncClient) -> None:
    answer = await web.get("/v1/messages/nowhere")
    body = answer.json()
    assert (answer.status_code, body["type"]) == (404, "error")
    assert body["error"]["type"] == "not_found_error"
    assert answer.headers["request-id"] == body["request_id"]
