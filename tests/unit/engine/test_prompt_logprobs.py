"""How likely a prompt's own tokens are: the library's numbers, on every path, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from broker.wire import Job, TokenLogprob
from tests.unit.engine import tiny
from tests.unit.engine.decoder_runs import Runs, job
from tests.unit.engine.pages import look_a_step_later, use_pages
from worker.engines.base import Chunk, EngineError
from worker.engines.transformers.model.loader import load
from worker.engines.transformers.sampling import prompt_logprobs

PROMPT = "Once upon a time, in a land far away, there lived a tiny model."
PATHS = [
    ("llama", "runner"),
    ("llama", "pages"),
    ("llama", "padded"),
    ("llama", "sequential"),
    ("gemma3", "runner"),
]
SLOTS = 3


@pytest.fixture(params=PATHS, ids="-".join)
def runs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runs]:
    """Logits of seven tokens at once, so that a prompt takes several passes."""
    kind, path = request.param
    monkeypatch.setenv("CANOPY_THREADS", "1")
    monkeypatch.setattr(prompt_logprobs, "_CPU_LOGITS", 7 * 259)
    if path == "pages":
        use_pages(monkeypatch)
        look_a_step_later(monkeypatch)
    elif path != "runner":
        monkeypatch.setenv("CANOPY_LIBRARY_ATTENTION", "1")
    loaded = load(tiny.save_model(kind, tmp_path), "cpu", SLOTS)
    if path in ("padded", "sequential"):
        loaded = msgspec.structs.replace(loaded, batched=path == "padded")
    created = Runs(loaded, SLOTS)
    yield created
    assert created.decoder.stop(10)


def model_logprobs(folder: Path, text: str) -> tuple[list[int], torch.Tensor]:
    """The prompt's ids, and the distribution after each of them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tiny.tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return ids[0].tolist(), model(ids).logits[0].log_softmax(-1)


def told(runs: Runs, asked: Job) -> tuple[list[TokenLogprob], list[Chunk]]:
    """The prompt's logprobs, and all chunks of a run to its end."""
    sequence = runs.submit(asked)
    runs.until(lambda: runs.ended(sequence))
    chunks = runs.outputs[sequence.mailbox]
    for chunk in chunks:
        if isinstance(chunk, EngineError):
            raise chunk
    plain = [chunk for chunk in chunks if isinstance(chunk, Chunk)]
    return [entry for chunk in plain for entry in chunk.prompt_logprobs], plain


def check(entries: list[TokenLogprob], ids: list[int], expected: torch.Tensor, top: int) -> None:
    assert [entry.ids[0] for entry in entries] == ids
    assert (entries[0].logprob, entries[0].top) == (0.0, ())
    for position, entry in enumerate(entries[1:]):
        row = expected[position]
        assert entry.logprob == pytest.approx(row[ids[position + 1]].item(), abs=1e-4)
        assert [logprob for _, logprob in entry.top] == pytest.approx(
            row.topk(top).values.tolist(), abs=1e-4
        )
        assert len(entry.ids) == 1 + top


def test_they_are_the_librarys(runs: Runs, tmp_path: Path) -> None:
    ids, expected = model_logprobs(tmp_path, PROMPT)
    entries, chunks = told(runs, job(PROMPT, prompt_logprobs=2, max_tokens=0))
    check(entries, ids, expected, 2)
    assert b"".join(entry.token for entry in entries).decode() == f"<s>{PROMPT}"
    assert (chunks[-1].finish, sum(chunk.tokens for chunk in chunks)) == ("length", 0)
    # Again, with an answer, though all of the prompt is cached by now.
    alone = runs.texts([job(PROMPT, max_tokens=6)])
    entries, chunks = told(runs, job(PROMPT, prompt_logprobs=0, max_tokens=6))
    check(entries, ids, expected, 0)
    assert "".join(chunk.text for chunk in chunks) == alone[0]
    first_text = next(index for index, chunk in enumerate(chunks) if chunk.text)
    assert not any(chunk.prompt_logprobs for chunk in chunks[first_text + 1 :])


def test_several_at_once_beside_ordinary_ones(runs: Runs, tmp_path: Path) -> None:
    prompts = [PROMPT, "Hi", "a" * 40, "The quick brown fox", "b"]
    alone = runs.texts([job(prompt) for prompt in prompts])
    asked = [runs.submit(job(prompt, prompt_logprobs=1, max_tokens=0)) for prompt in prompts]
    beside = [runs.submit(job(prompt)) for prompt in prompts]
    runs.until(lambda: all(runs.ended(sequence) for sequence in [*asked, *beside]))
    assert [runs.text(sequence) for sequence in beside] == alone
    for prompt, sequence in zip(prompts, asked, strict=True):
        ids, expected = model_logprobs(tmp_path, prompt)
        chunks = [each for each in runs.outputs[sequence.mailbox] if isinstance(each, Chunk)]
        check([entry for each in chunks for entry in each.prompt_logprobs], ids, expected, 1)


def test_a_continued_job_does_not_tell_them_again(runs: Runs) -> None:
    asked = job(PROMPT, prompt_logprobs=1, max_tokens=0)
    entries, _ = told(runs, asked)
    known = msgspec.structs.replace(asked, delivered_prompt_logprobs=len(entries))
    assert told(runs, known)[0] == []
    answered = job(PROMPT, prompt_logprobs=1, max_tokens=4)
    continued = msgspec.structs.replace(answered, delivered="x")
    assert told(runs, continued)[0] == []


def test_more_than_an_answer_may_have(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_logprobs, "MAX_ENTRIES", 200)
    with pytest.raises(EngineError, match="at most 2 for a prompt of 64 tokens"):
        told(runs, job(PROMPT, prompt_logprobs=5))


def test_what_the_prefix_cache_had_is_told(runs: Runs) -> None:
    """At the end; nothing where the prompt's own logits are needed, or there is no such cache."""
    runs.texts([job(PROMPT, max_tokens=2)])
    _, chunks = told(runs, job(PROMPT, max_tokens=2))
    cached = [chunk.cached_tokens for chunk in chunks]
    _, scored = told(runs, job(PROMPT, max_tokens=2, prompt_logprobs=0))
    assert sum(chunk.cached_tokens for chunk in scored) == 0
    assert not any(cached[:-1])
    if runs.decoder.reuse[0]:
        assert cached[-1] > len(PROMPT) // 2
