"""`bench engine`: readings, loads, the memory's limit, and the whole command on a tiny model."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import Gemma3TextConfig

from bench.engine import lengths, load, reading, shapes, system, yardsticks
from bench.engine.command import command
from bench.engine.measure import Run, Settings
from bench.engine.prompts import Prompts, Request
from bench.engine.reading import Reading, Result
from bench.engine.subject import Subject
from bench.errors import BenchError
from bench.report import Report
from bench.timeline import Timeline
from broker.wire import Job
from worker import engines
from worker.engines.base import PromptTooLong
from worker.engines.echo import EchoEngine

VOCABULARY = 256


def timeline(sent: float, *times: float, error: str = "") -> Timeline:
    return Timeline(sent, times=list(times), counts=[1] * len(times), error=error)


def test_a_load_counts_from_the_first_request_to_the_last_token() -> None:
    it = reading.read([timeline(10.0, 10.5, 10.6, 10.7), timeline(10.1, 10.6, 10.8, 11.0)], 60)
    assert it.rate == pytest.approx(6.0)
    assert it.prompt_rate == pytest.approx(100.0)
    assert (it.ttft.p50, it.ttft.max) == (pytest.approx(500), pytest.approx(500))
    assert it.gap.max == pytest.approx(200)
    assert not it.failed


def test_a_closed_loop_counts_until_the_last_request_begins() -> None:
    waves = [timeline(0.0, 1.0, 2.0), timeline(2.0, 3.0, 4.0), timeline(4.0, 5.0, 6.0)]
    assert reading.read(waves, closed_loop=True).rate == pytest.approx(1.0)
    only_one = reading.read([timeline(0.0, 1.0, 2.0)], closed_loop=True)
    assert only_one.rate == pytest.approx(1.0)


def test_a_step_is_timed_only_while_all_rows_run() -> None:
    early = timeline(0.0, 1.0, *(3.0 + 0.1 * step for step in range(11)))
    late = timeline(0.0, *(3.0 + 0.1 * step for step in range(31)))
    assert reading.step_ms([early, late]) == pytest.approx(100)
    first, second = timeline(0.0, 1.0, 1.1, 1.2, 1.3), timeline(0.0, 2.0, 2.1, 2.2, 2.3)
    assert reading.step_ms([first, second]) is None
    assert reading.step_ms([first, timeline(0.0, 1.0, 1.1, 1.2, error="gone")]) is None


def test_arrivals_are_the_newcomers_first_tokens_and_the_gaps_meanwhile() -> None:
    streams = [timeline(0.0, 0.1, 0.9, 1.3, 1.5, 2.0, 9.0), timeline(0.0, 1.1)]
    newcomers = [timeline(0.0, 0.8), timeline(1.2, 1.5), timeline(1.6, 2.2)]
    it = reading.read_arrivals(streams, newcomers)
    assert (it.ttft.count, it.ttft.max) == (2, pytest.approx(600))
    assert (it.gap.count, it.gap.max) == (2, pytest.approx(500))


# Loads


@given(st.integers(1, 50), st.integers(20, 3000), st.integers(0, 5))
def test_ragged_requests_fit_the_context_and_come_again_with_their_seed(
    count: int, context: int, seed: int
) -> None:
    requests = load.ragged(count, context, seed)
    assert requests == load.ragged(count, context, seed)
    assert len(requests) == count
    for request in requests:
        assert request.prompt >= 1
        assert request.answer >= 1
        assert request.prompt + request.answer < context


def test_lengths_of_answers_are_those_of_the_trace() -> None:
    assert lengths.quantile(0.0) == 12
    assert lengths.quantile(0.525) == (134 + 162) / 2
    assert lengths.quantile(1.0) == 939


def words() -> Prompts:
    return Prompts(shapes.tokenizer(VOCABULARY), "tiny")


def test_prompts_have_the_given_number_of_tokens_and_differ() -> None:
    prompts = words()
    requests = [Request(tokens, 1) for tokens in (1, 2, 17, 128, 128)]
    texts = prompts.texts(requests)
    assert [len(prompts.ids(text)) for text in texts] == [1, 2, 17, 128, 128]
    assert texts[-1] != texts[-2]


def test_the_prompts_of_a_load_share_their_prefix_and_nothing_with_the_next() -> None:
    prompts = words()
    one, two = prompts.texts([Request(20, 4, shared=16)] * 2)
    assert one.split()[:16] == two.split()[:16]
    assert one.split()[16:] != two.split()[16:]
    assert prompts.texts([Request(20, 4, shared=16)])[0].split()[:16] != one.split()[:16]


def test_a_bos_counts_as_the_engine_counts_it() -> None:
    tokenizer = shapes.tokenizer(VOCABULARY)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", VOCABULARY)])
    tokenizer._tokenizer.post_processor = begin
    prompts = Prompts(tokenizer, "tiny")
    ids = prompts.ids(prompts.texts([Request(12, 1)])[0])
    assert (len(ids), ids[0]) == (12, VOCABULARY)
    with pytest.raises(BenchError):
        prompts.texts([Request(1, 1)])


class Counting(EchoEngine):
    """Counts how many run at once; refuses the first jobs if told to."""

    def __init__(self, refuse: int = 0) -> None:
        super().__init__(model="m", slots=99, token_delay=0.001)
        self.context_length = 200
        self.open = self.most = 0
        self._refuse = refuse

    async def run(self, job: Job):  # type: ignore[no-untyped-def]
        if self._refuse:
            self._refuse -= 1
            raise PromptTooLong("the prompt is too long")
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            async for chunk in super().run(job):
                yield chunk
        finally:
            self.open -= 1


async def test_a_request_that_is_refused_costs_only_itself() -> None:
    jobs = words().jobs([Request(4, 3)] * 5)
    timelines = await load.run_load(Counting(refuse=2), jobs, 2)
    assert [it.error for it in timelines].count("the prompt is too long") == 2
    assert sum(it.tokens for it in timelines) == 9


async def test_newcomers_come_one_after_the_other_while_all_streams_run() -> None:
    engine = Counting()
    requests = load.requests_of(load.ARRIVALS, 3, 2, 1, 200)
    timelines = await load.run_load(engine, words().jobs(requests), 3)
    streams, newcomers = timelines[:2], timelines[2:]
    assert (len(newcomers), engine.open, engine.most) == (load.NEWCOMERS, 0, 3)
    for before, after in pairwise(newcomers):
        assert before.times[-1] <= after.sent
    assert min(it.times[-1] for it in streams) > newcomers[-1].times[-1]


def run_of(file: Path, *concurrency: int) -> Run:
    settings = Settings(
        model=None,
        shape="tiny",
        device="cpu",
        concurrency=concurrency,
        context=200,
        prompt=8,
        answer=6,
        loads=load.LOADS,
        alone=True,
        with_system=False,
        gpus=1,
    )
    model = Subject("tiny", shapes.tokenizer(VOCABULARY), model=None, context=200)
    return Run(settings, model, Report("engine", {}), file)


async def test_every_load_keeps_to_its_concurrency(tmp_path: Path) -> None:
    run = run_of(tmp_path / "engine.json", 1, 3)
    engine = Counting()
    await run.measure_engine(engine)
    facts = json.loads((tmp_path / "engine.json").read_text())["facts"]["results"]
    measured = [(it["load"], it["size"]) for it in facts]
    expected = [(kind, size) for kind in load.LOADS for size in (1, 3)]
    expected.remove(("arrivals", 1))  # of one slot nothing is left for a newcomer
    assert measured == expected
    assert all(it["reading"]["failed"] == 0 for it in facts)
    assert engine.most == 3


async def test_what_fails_costs_only_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("it broke")

    monkeypatch.setattr(reading, "read_arrivals", fail)
    run = run_of(tmp_path / "engine.json", 2)
    engine = Counting()
    engine.context_length = 75  # a prefix of 64 and its rest do not fit
    await run.measure_engine(engine)
    assert [it.load for it in run.results] == ["uniform", "ragged", "prompts"]
    notes = "\n".join(run.report.notes)
    assert "prefix: left out, it needs 78 tokens a slot" in notes
    assert "engine, arrivals, 2 at once: failed: ValueError: it broke" in notes


def test_a_shape_has_its_published_size() -> None:
    model = shapes.build(shapes.config("llama-3-8b"), "meta", torch.bfloat16)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters / 1e6 == pytest.approx(8030, rel=0.005)
    assert yardsticks.kv_bytes(model.config, 2, 1) == 131072
    unread = 128256 * 4096  # input embeddings
    assert yardsticks.weight_bytes(model) == 2 * (parameters - unread)


def test_a_window_bounds_what_a_layer_reads() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    config = Gemma3TextConfig(num_hidden_layers=18, sliding_window=512, **heads)
    assert yardsticks.kv_bytes(config, 2, 1512) == (512 * 15 + 1512 * 3) * 1024


def test_the_engine_is_compared_by_rate_with_the_limit_by_steps_and_the_system_by_node() -> None:
    rows = reading.result_table(
        [
            Result("uniform", 8, "system", Reading(rate=640.0), nodes=2, cores="api 0.50"),
            Result("uniform", 8, "limit", Reading(step_ms=10.0)),
            Result("uniform", 8, "generate", Reading(rate=80.0, step_ms=100.0)),
            Result("uniform", 8, "engine", Reading(rate=400.0, step_ms=20.0)),
            Result("uniform", 1, "generate", Reading(rate=10.0)),
        ]
    ).rows
    contenders = ["generate", "system", "limit", "generate", "engine"]
    assert [row["contender"] for row in rows] == contenders
    assert [row["engine / it"] for row in rows] == [None, 1.25, 0.5, 5.0, None]


# The whole system


def test_the_tokens_of_an_answer_are_shared_out_among_its_events() -> None:
    def event(text: str = "") -> bytes:
        return b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n"

    first, second = event("w1"), event(" w2 w3")
    end = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n'
    pieces = [(1.0, event()), (2.0, first), (3.0, second), (4.0, end)]
    arrivals = [(at, piece.split(b"\n")) for at, piece in pieces]
    it = system.read_events(Timeline(0.5), arrivals)
    assert (it.times, it.counts, it.error) == ([2.0, 3.0], [1, 2], "")


def test_a_stream_that_is_cut_short_says_so() -> None:
    cut_short = system.read_events(Timeline(), [(1.0, [b"data: [DONE]"])])
    assert "without its count" in cut_short.error


async def test_a_node_makes_a_shape_of_its_own() -> None:
    engine = engines.create(
        "bench.engine.subject",
        model="tiny",
        model_path=None,
        device="cpu",
        slots=2,
        token_delay=0.0,
    )
    await engine.start()
    try:
        (job,) = words().jobs([Request(8, 5)])
        chunks = [chunk async for chunk in engine.run(job)]
        assert chunks[0].prompt_tokens == 8
        assert sum(chunk.tokens for chunk in chunks) == 5
    finally:
        await engine.stop()


# The whole command


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, ["--device", "cpu", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


SMALL = "--prompt 8 --answer 6 --load uniform"


def test_the_engine_beside_generate_and_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "tiny"
    shapes.build(shapes.config("tiny"), "cpu", torch.float32).save_pretrained(folder)
    shapes.tokenizer(VOCABULARY).save_pretrained(folder)
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    monkeypatch.setitem(yardsticks._COPY_BYTES, "cpu", 1 << 20)
    file = tmp_path / "engine.json"
    sizes = "--concurrency 1 --concurrency 3"
    code, output = run(*f"--model tiny {SMALL} {sizes} --json {file}".split())
    assert code == 0, output
    record = json.loads(file.read_text())
    assert not [note for note in record["notes"] if note.startswith("system")]
    rows = record["tables"]["speed; times in ms"]
    assert [(row["contender"], row["at once"], row["failed"]) for row in rows] == [
        ("limit", 1, None),
        ("generate", 1, 0),
        ("engine", 1, 0),
        ("limit", 3, None),
        ("generate", 3, 0),
        ("engine", 3, 0),
    ], output
    assert all(row["tok/s"] or row["contender"] == "limit" for row in rows)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--random-weights tiny --model tiny",
        "--random-weights no-such-shape",
        "--random-weights tiny --load square",
        "--random-weights tiny --prompt 100 --context 64",
    ],
)
def test_what_cannot_be_measured_is_refused(words: str) -> None:
    assert run(*words.split())[0] == 2


def test_the_benchmark_alone_needs_nothing_of_the_service() -> None:
    script = (
        "import sys, bench.engine.__main__\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "bad = {'api', 'django', 'pika', 'celery', 'uvicorn', 'torch'} & roots\n"
        "sys.exit(f'imported: {sorted(bad)}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
