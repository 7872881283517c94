"""A job whose node died goes on exactly where its reader stands, wherever the run was cut."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import LlamaConfig

from broker.wire import ChatMessage, Job, Sampling, TokenLogprob
from tests.unit.engine.tiny import save_model, tokenizer
from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.decoder import Decoder
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.model import loader as loading
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.sequence import Sequence
from worker.engines.transformers.text.chat_template import dialogue

BYTES = tokenizer()
EOS = BYTES.eos_token_id
ROWS = 16  # runs at once


class Scripted:
    """A model that emits fixed tokens after any prompt, and checks that they come back in order."""

    device = "cpu"
    config = LlamaConfig(num_hidden_layers=1)

    def __init__(self, prompt: int, script: list[int]) -> None:
        """`prompt`: how many tokens come before the script."""
        self._before = torch.zeros(prompt, dtype=torch.long)
        self._script = torch.tensor([*script, EOS])

    def __call__(self, *, input_ids: Any, position_ids: Any, past_key_values: Any, **_: Any) -> Any:
        known = torch.cat([self._before, self._script])
        wrong = (input_ids != known[position_ids]) & (position_ids >= len(self._before))
        assert not wrong.any(), "not the tokens it said"
        nothing = torch.zeros(input_ids.shape[0], 1, input_ids.shape[1], 1)
        past_key_values.update(nothing, nothing, 0)
        following = known[
            (position_ids[:, -1:] + 1).clamp(min=len(self._before), max=len(known) - 1)
        ]
        return SimpleNamespace(
            logits=torch.nn.functional.one_hot(following, len(BYTES)).float() * 100
        )


def scripted(job: Job, script: list[int], context: int = 512) -> LoadedModel:
    read = dialogue(job.messages) if job.messages else job.prompt
    return LoadedModel(
        model=Scripted(len(BYTES(read)["input_ids"]), script),
        tokenizer=BYTES,
        eos_token_ids=frozenset([EOS]),
        slots=ROWS,
        context=context,
        vocabulary=len(BYTES),
        prefill_tokens=256,
    )


@contextmanager
def computing(loaded: LoadedModel) -> Iterator["Runs"]:
    runs = Runs(loaded)
    try:
        yield runs
    finally:
        assert runs.decoder.stop(10)


class Runs:
    """A decoder without an event loop: every chunk is seen by itself."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._news: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self.decoder = Decoder(loaded, ROWS, self._news.put)
        self.decoder.start()

    def all(self, jobs: list[Job]) -> list[list[Chunk]]:
        """The chunks of each job, computed together."""
        chunks: dict[Mailbox, list[Chunk]] = {Mailbox(): [] for _ in jobs}
        for item, mailbox in zip(jobs, chunks, strict=True):
            self.decoder.submit(Sequence(item, mailbox))
        running = len(jobs)
        while running:
            for mailbox, chunk in self._news.get(timeout=30):
                if isinstance(chunk, EngineError):
                    raise chunk
                chunks[mailbox].append(chunk)
                running -= chunk.finish is not None
        return list(chunks.values())


def cuts(job: Job, chunks: list[Chunk]) -> list[Job]:
    """The job as it goes on when its node died before the first chunk, and after each."""
    jobs, text, ids = [job], "", ()
    for chunk in chunks[1:]:
        text, ids = text + chunk.text, ids + chunk.ids
        jobs.append(msgspec.structs.replace(job, delivered=text, delivered_ids=ids))
    return jobs


def goes_on(runs: Runs, job: Job) -> list[Chunk]:
    """Cuts an undisturbed run everywhere; returns its chunks."""
    [whole] = runs.all([job])
    text = "".join(chunk.text for chunk in whole)
    tokens = sum(chunk.tokens for chunk in whole)
    assert [len(chunk.ids) for chunk in whole] == [chunk.tokens for chunk in whole]
    continued = cuts(job, whole)
    for cut, chunks in zip(continued, runs.all(continued), strict=True):
        first = Chunk(prompt_tokens=whole[0].prompt_tokens, tokens=len(cut.delivered_ids))
        assert chunks[0] == first
        assert cut.delivered + "".join(chunk.text for chunk in chunks) == text
        assert cut.delivered_ids + sum((chunk.ids for chunk in chunks), ()) == sum(
            (chunk.ids for chunk in whole), ()
        )
        assert sum(chunk.tokens for chunk in chunks) == tokens
        assert likely(chunks) == likely(whole)[before(job, cut, whole) :]
        assert [chunk.finish for chunk in chunks if chunk.finish] == [whole[-1].finish]
        assert chunks[-1].finish
    return whole


def likely(chunks: list[Chunk]) -> list[TokenLogprob]:
    return [each for chunk in chunks for each in chunk.logprobs]


def before(job: Job, cut: Job, whole: list[Chunk]) -> int:
    """How many logprobs were told with what `cut` has already."""
    return len(likely(whole[: 1 + cuts(job, whole)[1:].index(cut) + 1])) if cut != job else 0


def prompt(
    text: str = "Say: ", delivered: str = "", ids: tuple[int, ...] = (), **sampling: Any
) -> Job:
    return Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        prompt=text,
        delivered=delivered,
        delivered_ids=ids,
        sampling=Sampling(**{"temperature": 0.0, **sampling}),
    )


def ids_of(text: str) -> list[int]:
    return list(BYTES(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("said", "sampling", "text", "finish"),
    [
        ("a 🌳 in the 日本 woods", {}, "a 🌳 in the 日本 woods", "stop"),
        ("a 🌳 in the woods", {"max_tokens": 4}, "a ", "length"),  # ends inside the tree
        ("a tree\nUser: b", {"stop": ("\nUser:",)}, "a tree", "stop"),
        (
            "a tree\nUs",
            {"stop": ("\nUser:",)},
            "a tree\nUs",
            "stop",
        ),  # the beginning of a stop string after all
        ("a tree\nUsed up", {"stop": ("\nUser:",), "max_tokens": 9}, "a tree\nUs", "length"),
        ("🌳🌲🌳", {"stop": ("🌲",)}, "🌳", "stop"),
        ("", {}, "", "stop"),
        ("a 🌳 in the woods", {"logprobs": 2}, "a 🌳 in the woods", "stop"),
        ("a tree\nUser: b", {"stop": ("\nUser:",), "logprobs": 0}, "a tree", "stop"),
    ],
)
def test_any_cut(said: str, sampling: dict[str, Any], text: str, finish: str) -> None:
    job = prompt(**sampling)
    with computing(scripted(job, ids_of(said))) as runs:
        whole = goes_on(runs, job)
    assert ("".join(chunk.text for chunk in whole), whole[-1].finish) == (text, finish)


@pytest.mark.parametrize(
    ("said", "sampling", "seen"),
    [
        ("a 🌳!", {}, "a 🌳!"),
        ("a 🌳!", {"max_tokens": 4}, "a \ufffd"),
        ("one two", {"stop": ("e t",)}, "on"),
        ("\nUs", {"stop": ("\nUser:",)}, "\nUs"),
        ("\nUser:", {"stop": ("\nUser:",)}, ""),
    ],
)
def test_logprobs_are_told_of_the_tokens_that_are_seen(
    said: str, sampling: dict[str, Any], seen: str
) -> None:
    job = prompt(**sampling, logprobs=3)
    with computing(scripted(job, ids_of(said))) as runs:
        [chunks] = runs.all([job])
    logprobs = likely(chunks)
    assert b"".join(each.token for each in logprobs).decode(errors="replace") == seen
    assert all(
        each.logprob == 0.0 and each.top[0] == (each.token, 0.0) and len(each.top) == 3
        for each in logprobs
    )


def test_logprobs_that_nobody_asked_for_are_not_told() -> None:
    with computing(scripted(prompt(), ids_of("a tree"))) as runs:
        assert likely(runs.all([prompt()])[0]) == []


@settings(max_examples=15, deadline=None)
@given(some.data())
def test_any_cut_of_any_bytes(data: Any) -> None:
    """Half characters, stop strings and invalid bytes in any mixture."""
    pieces = [
        "a",
        "b",
        " ",
        "ab",
        "🌳",
        "é",
        *(bytes([byte]) for byte in (0xF0, 0x9F, 0x8C, 0xB3, 0xC3, 0xFF)),
    ]
    said = data.draw(some.lists(some.sampled_from(pieces), max_size=12))
    script = [token for piece in said for token in _tokens(piece)]
    stops = data.draw(some.lists(some.sampled_from(["ab", "b ", "🌳a", "bb"]), max_size=2))
    job = prompt(stop=tuple(stops), max_tokens=data.draw(some.none() | some.integers(0, 20)))
    with computing(scripted(job, script)) as runs:
        goes_on(runs, job)


def _tokens(piece: str | bytes) -> list[int]:
    """Also of bytes that are no text: those of the tokenizer's letters for them."""
    if isinstance(piece, str):
        return ids_of(piece)
    letter = {0xF0: "ð", 0x9F: "Ł", 0x8C: "Į", 0xB3: "³", 0xC3: "Ã", 0xFF: "ÿ"}[piece[0]]
    return [BYTES.convert_tokens_to_ids(letter)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    torch.set_num_threads(1)
    return {
        kind: loading.load(save_model(kind, tmp_path_factory.mktemp("models") / kind), "cpu", ROWS)
        for kind in ("llama", "gemma3")
    }


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1.0, "seed": 11},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 5},
        {
            "seed": 3,
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.5,
            "min_p": 0.02,
        },
    ],
)
def test_a_model_goes_on_as_if_nothing_had_been(
    kind: str, sampling: dict[str, Any], models: dict[str, LoadedModel]
) -> None:
    with computing(models[kind]) as runs:
        whole = goes_on(runs, prompt("Once upon a time", max_tokens=24, **sampling))
    assert sum(chunk.tokens for chunk in whole) > 10


def test_any_cut_of_a_plain_dialogue() -> None:
    """Its template's space and stop strings are not the answer's."""
    job = msgspec.structs.replace(
        prompt(), prompt=None, messages=(ChatMessage(role="user", content="Hi"),)
    )
    with computing(scripted(job, ids_of("  a tree\nUser: b"))) as runs:
        whole = goes_on(runs, job)
    assert "".join(chunk.text for chunk in whole) == "a tree"


def continued(job: Job, script: str, **loaded: Any) -> list[Chunk]:
    with computing(scripted(job, ids_of(script), **loaded)) as runs:
        return runs.all([job])[0]


def told(chunks: list[Chunk]) -> tuple[str, int, str | None]:
    return (
        "".join(chunk.text for chunk in chunks),
        sum(chunk.tokens for chunk in chunks),
        chunks[-1].finish,
    )


def test_text_and_tokens_that_are_not_equally_far() -> None:
    assert told(continued(prompt(delivered="one t", ids=tuple(ids_of("one"))), "one two")) == (
        "wo",
        7,
        "stop",
    )
    assert told(continued(prompt(delivered="on", ids=tuple(ids_of("one t"))), "one two")) == (
        "e two",
        7,
        "stop",
    )
    chunks = continued(prompt(delivered="on", ids=tuple(ids_of("one")), max_tokens=3), "one two")
    assert chunks == [Chunk(prompt_tokens=6, tokens=3), Chunk(text="e", finish="length")]


@pytest.mark.parametrize("ids", [(), tuple(ids_of("two")), (10**6,), (-1,)])
def test_without_the_texts_own_tokens_the_text_is_read(ids: tuple[int, ...]) -> None:
    """And no token ids are sent: behind missing ones they would mean another text."""
    chunks = continued(prompt(delivered="one", ids=ids), "one two")
    assert told(chunks) == (" two", 7, "stop")
    assert chunks[0] == Chunk(prompt_tokens=6, tokens=3)
    assert not any(chunk.ids for chunk in chunks)


def test_what_a_smaller_context_holds_ends_by_length() -> None:
    chunks = continued(
        prompt(delivered="one two", ids=tuple(ids_of("one two"))), "one two three", context=10
    )
    assert chunks == [Chunk(prompt_tokens=6, tokens=7), Chunk(finish="length")]


def test_a_bias_for_a_token_outside_the_model_fails_its_job_alone() -> None:
    fine = prompt("Say:", logit_bias={len(BYTES) - 1: -3.0})
    with computing(scripted(fine, ids_of("ok"))) as runs:
        with pytest.raises(EngineError, match=f"logit_bias: .* {len(BYTES)}") as caught:
            runs.all([prompt("Say:", logit_bias={3: 1.0, len(BYTES): 1.0})])
        assert (caught.value.code, caught.value.retryable) == ("invalid", False)
        assert told(runs.all([fine])[0]) == ("ok", 2, "stop")


def test_a_token_outside_the_model_fails_its_job_alone() -> None:
    """In a forward pass it would fail the whole batch, and on a GPU the process."""
    fine = prompt("Say:")
    loaded = msgspec.structs.replace(scripted(fine, ids_of("ok")), vocabulary=max(ids_of("z")) + 1)
    with computing(loaded) as runs:
        with pytest.raises(EngineError, match="does not know") as caught:
            runs.all([prompt("🌳")])
        assert (caught.value.code, caught.value.retryable) == ("invalid", False)
        assert told(runs.all([fine])[0]) == ("ok", 2, "stop")
