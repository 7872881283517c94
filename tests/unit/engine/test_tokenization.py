"""Token ids in and out: prompts that are tokens, and jobs that only ask for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.wire import ChatMessage, Job, Sampling
from tests.unit.engine import tiny
from tests.unit.engine.engine_runs import job, read, started, text_of
from worker.engines.base import Engine, EngineError
from worker.engines.echo import EchoEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tiny.save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
async def engine(folder: Path) -> Any:
    running = await started(folder, slots=2)
    yield running
    await running.stop()


def asking(task: str, **fields: Any) -> Job:
    sampling = Sampling(max_tokens=0, prompt_logprobs=fields.pop("prompt_logprobs", None))
    fields = {"request_id": "r", "model": "tiny", "reply_to": "q", "created": 0.0, **fields}
    return Job(**fields, task=task, sampling=sampling)  # type: ignore[arg-type]


async def test_ids_of_a_prompt(engine: Engine) -> None:
    expected = tuple(tiny.tokenizer()("Hé!")["input_ids"])
    first, last = await read(engine, asking("tokenize", prompt="Hé!", prompt_logprobs=0))
    assert (first.prompt_tokens, last.ids, last.finish) == (len(expected), expected, "stop")
    assert b"".join(entry.token for entry in last.prompt_logprobs) == "<s>Hé!".encode()
    assert last.tokens == 0
    bare = asking("tokenize", prompt="Hé!", add_special_tokens=False)
    assert (await read(engine, bare))[-1].ids == expected[1:]


async def test_ids_of_a_dialogue(engine: Engine) -> None:
    turns = (ChatMessage(role="user", content="Hi"),)
    counted = await read(engine, asking("tokenize", messages=turns))
    generated = msgspec.structs.replace(job("x", max_tokens=1), messages=turns, prompt=None)
    assert counted[0].prompt_tokens == (await read(engine, generated))[0].prompt_tokens


async def test_a_repeated_job_tells_the_rest(engine: Engine) -> None:
    ids = (await read(engine, asking("tokenize", prompt="abc")))[-1].ids
    rest = await read(engine, asking("tokenize", prompt="abc", delivered_ids=ids[:2]))
    assert rest[-1].ids == ids[2:]


async def test_text_of_ids(engine: Engine) -> None:
    ids = tuple(tiny.tokenizer()("Hé 🌳")["input_ids"])
    chunks = await read(engine, asking("detokenize", prompt_ids=ids))
    assert (chunks[-1].text, chunks[-1].finish) == ("<s>Hé 🌳", "stop")
    with pytest.raises(EngineError, match="does not know"):
        await read(engine, asking("detokenize", prompt_ids=(5000,)))
    with pytest.raises(EngineError, match="at most 512"):
        await read(engine, asking("detokenize", prompt_ids=(5,) * 513))


async def test_a_prompt_of_ids_is_that_of_its_text(engine: Engine) -> None:
    text = job("Once upon", max_tokens=12)
    ids = tuple(tiny.tokenizer()("Once upon")["input_ids"])
    tokens = msgspec.structs.replace(text, prompt=None, prompt_ids=ids)
    answer = await text_of(engine, text)
    assert await text_of(engine, tokens) == answer
    continued = msgspec.structs.replace(tokens, delivered=answer[:5])
    assert answer[:5] + await text_of(engine, continued) == answer
    assert (await read(engine, tokens))[0].prompt_tokens == len(ids)


async def test_ids_that_do_not_fit(engine: Engine) -> None:
    for ids, reason in (((5,) * 600, "at most"), ((5000,), "does not know")):
        with pytest.raises(EngineError, match=reason):
            await read(engine, asking("generate", prompt_ids=ids))


async def test_another_task_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="does not score"):
        await read(engine, asking("score", prompt="x"))


async def test_echo_counts_words() -> None:
    echo = EchoEngine(model="tiny", slots=1, token_delay=0)
    first, last = await read(echo, asking("tokenize", prompt="one two one"))
    assert first.prompt_tokens == 3
    assert last.ids[0] == last.ids[2] != last.ids[1]
    with pytest.raises(EngineError, match="does not detokenize"):
        await read(echo, asking("detokenize", prompt_ids=(1,)))
    spoken = msgspec.structs.replace(job("x", max_tokens=None), prompt=None, prompt_ids=(4, 5))
    assert await text_of(echo, spoken) == "4 5"
