"""How the openai engine finds its server and its model."""

from typing import Any

import pytest

from tests.unit.engine.openai.runs import KEY, chat, engine_for, error_of, read, whole
from tests.unit.engine.upstream import (
    Script,
    Upstream,
    answering,
    listing,
    nobody,
    refusing,
)
from worker.engines import create
from worker.engines.base import (
    EngineUnavailable,
)


@pytest.mark.parametrize(
    ("there", "wanted", "served"),
    [
        (["far"], "", "far"),
        (["far", "near"], "", "near"),
        (["far", "other"], "other", "other"),
        (["far", "other"], "an-alias", "an-alias"),
        ([], "blind", "blind"),
    ],
)
async def test_the_model_is_found(there: list[str], wanted: str, served: str) -> None:
    async with Upstream(answering("x"), models=listing(*there)) as upstream:
        engine = engine_for(upstream.url, upstream_model=wanted)
        await engine.start()
        await read(engine, chat())
        await engine.stop()
        assert upstream.asked[0].body["model"] == served
        assert engine.device == upstream.url.removeprefix("http://").removesuffix("/v1")


@pytest.mark.parametrize(
    ("told", "length"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 512, "max_model_len": 4096}, 512),
        ({}, 0),
        ({"max_model_len": "4096"}, 0),
        ({"max_model_len": True, "context_length": -1}, 0),
        ({"max_model_len": 10**30}, 0),
        ({"max_model_len": None}, 0),
    ],
)
async def test_the_context_is_as_the_server_tells(told: dict[str, Any], length: int) -> None:
    models = refusing(200, {"data": [{"id": "near", **told}]})
    async with Upstream(answering(), models=models) as upstream:
        engine = engine_for(upstream.url)
        assert engine.context_length == 0
        await engine.start()
        assert engine.context_length == length
        await engine.stop()


@pytest.mark.parametrize(
    ("models", "model_name", "said"),
    [
        (listing("far", "other"), "", "no model 'near'.*far, other"),
        (listing(), "", "There are: none"),
        (refusing(404, {"detail": "Not Found"}), "", "end in /v1.*--upstream-model"),
        (refusing(200, b"<html>hello</html>"), "", "--upstream-model"),
        (refusing(401, {"error": {"message": "no"}}), "m", "CANOPY_UPSTREAM_KEY"),
        (refusing(503, {"error": {"message": "Loading model"}}), "m", "503: Loading model"),
    ],
)
async def test_a_server_that_will_not_do_is_said_in_one_line(
    models: Script, model_name: str, said: str
) -> None:
    async with Upstream(answering(), models=models) as upstream:
        with pytest.raises(EngineUnavailable, match=said) as caught:
            await engine_for(upstream.url, upstream_model=model_name).start()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [404, 405, 500, 501])
async def test_without_a_list_a_named_model_will_do(status: int) -> None:
    async with Upstream(answering("x"), models=refusing(status, b"nothing here")) as upstream:
        engine = engine_for(upstream.url, upstream_model="blind")
        await engine.start()
        assert whole(await read(engine, chat()))[0] == "x"
        await engine.stop()


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000/v1", "http://[nowhere/v1"])
async def test_an_address_is_needed(address: str) -> None:
    with pytest.raises(EngineUnavailable, match="--upstream"):
        await engine_for(address).start()


async def test_nobody_there() -> None:
    async with nobody() as url:
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await engine_for(url).start()


async def test_the_environment_will_do_and_the_key_is_sent_and_never_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Upstream(
        answering("x"), refusing(400, {"error": {"message": f"bad key {KEY}"}})
    ) as upstream:
        monkeypatch.setenv("CANOPY_UPSTREAM", upstream.url)
        monkeypatch.setenv("CANOPY_UPSTREAM_MODEL", "far")
        monkeypatch.setenv("CANOPY_UPSTREAM_KEY", KEY)
        engine = engine_for("")
        await engine.start()
        await read(engine, chat())
        assert upstream.asked[0].headers["authorization"] == f"Bearer {KEY}"
        error = await error_of(engine, chat())
        await engine.stop()
    assert KEY not in str(error) + "".join(capsys.readouterr())


async def test_engines_without_a_server_ignore_the_settings() -> None:
    engine = create(
        "echo",
        model="m",
        model_path=None,
        device="auto",
        slots=1,
        token_delay=0,
        upstream="http://x",
    )
    assert engine.name == "echo"
