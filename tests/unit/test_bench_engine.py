"""`bench engine`: readings, loads, the memory's limit, and the whole command on a tiny model."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.engine import baselines, limit, load, reading, shapes, system, tables, write
from bench.engine.command import command
from bench.engine.load import Arrivals, Ask
from bench.engine.prompts import NoPrompt, Prompts
from bench.engine.reading import Reading
from bench.engine.subject import random_weights
from bench.engine.system import Cell
from bench.engine.tables import Limit, LoadResult
from bench.stats import Spread
from bench.timeline import Timeline
from broker.wire import Job
from worker import engines
from worker.engines.base import PromptTooLong
from worker.engines.echo import EchoEngine

VOCABULARY = 256


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> EchoEngine:
    """An engine of known speed; `--engine` finds it by this module's path."""
    return EchoEngine(model=model, slots=slots, token_delay=0.002)


def timeline(sent: float, *times: float, error: str = "") -> Timeline:
    return Timeline(sent, times=list(times), counts=[1] * len(times), error=error)


# What follows from arrival times


def test_a_load_counts_from_the_first_request_to_the_last_token() -> None:
    it = reading.read([timeline(10.0, 10.5, 10.6, 10.7), timeline(10.1, 10.6, 10.8, 11.0)])
    assert it.tokens == 6
    assert it.rate == pytest.approx(6.0)
    assert (it.ttft.p50, it.ttft.max) == (pytest.approx(500), pytest.approx(500))
    assert it.gap.max == pytest.approx(200)
    assert not it.failed


def test_a_closed_loop_counts_until_the_last_request_begins() -> None:
    waves = [timeline(0.0, 1.0, 2.0), timeline(2.0, 3.0, 4.0), timeline(4.0, 5.0, 6.0)]
    it = reading.read(waves, steady=True)
    assert (it.tokens, it.seconds) == (4, pytest.approx(4.0))
    only_one = reading.read([timeline(0.0, 1.0, 2.0)], steady=True)
    assert only_one.seconds == pytest.approx(2.0)


def test_a_step_is_timed_only_while_all_rows_run() -> None:
    early = timeline(0.0, 1.0, *(3.0 + 0.1 * step for step in range(11)))
    late = timeline(0.0, *(3.0 + 0.1 * step for step in range(31)))
    assert reading.step_ms([early, late]) == pytest.approx(100)
    first, second = timeline(0.0, 1.0, 1.1, 1.2, 1.3), timeline(0.0, 2.0, 2.1, 2.2, 2.3)
    assert reading.step_ms([first, second]) is None
    assert reading.step_ms([first, timeline(0.0, 1.0, 1.1, 1.2, error="gone")]) is None


def test_a_load_of_which_nothing_came_is_a_reading_too() -> None:
    it = reading.read([timeline(0.0, error="too long"), timeline(0.0, error="too long")])
    assert (it.tokens, it.failed, it.rate, it.ttft.count) == (0, 2, 0.0, 0)


def test_a_newcomer_is_blamed_for_the_gaps_it_overlaps_alone() -> None:
    streams = [timeline(0.0, 1.0, 1.1, 1.9, 2.0, 2.1), timeline(0.0, 1.0, 1.05, 1.5, 2.05)]
    arrivals = Arrivals(streams, [timeline(1.2, 1.95)])
    assert reading.pauses(arrivals) == pytest.approx([0.8, 0.55])
    assert sorted(reading.quiet_gaps(arrivals)) == pytest.approx([0.05, 0.1, 0.1])
    assert reading.pauses(Arrivals(streams, [timeline(1.2, error="no slot")])) == []


# Loads


@given(st.integers(1, 50), st.integers(20, 3000), st.integers(0, 5))
def test_ragged_requests_fit_the_context_and_come_again_with_their_seed(
    count: int, context: int, seed: int
) -> None:
    asks = load.ragged(count, context, seed)
    assert asks == load.ragged(count, context, seed)
    assert len(asks) == count
    for ask in asks:
        assert ask.prompt >= 1
        assert ask.answer >= 1
        assert ask.prompt + ask.answer < context
        assert ask.at == 0


def test_poisson_arrivals_come_at_their_rate() -> None:
    asks = load.ragged(4000, 2000, 1, rate=10.0)
    assert all(one.at < two.at for one, two in pairwise(asks))
    assert asks[-1].at == pytest.approx(400, rel=0.1)
    assert sum(ask.answer for ask in asks) / 4000 == pytest.approx(226, rel=0.1)


def test_a_rows_mean_context_weighs_long_answers() -> None:
    assert reading.mean_context([Ask(128, 256)]) == 256
    mixed = reading.mean_context([Ask(100, 10), Ask(100, 30)])
    assert mixed == pytest.approx((10 * 105 + 30 * 115) / 40)


def words(seed: int = 1) -> Prompts:
    return Prompts(shapes.tokenizer(VOCABULARY), VOCABULARY, "tiny", seed)


def test_prompts_have_the_given_number_of_tokens_and_differ() -> None:
    prompts = words()
    texts = [prompts.text(tokens) for tokens in (1, 2, 17, 128, 128)]
    assert [len(prompts.ids(text)) for text in texts] == [1, 2, 17, 128, 128]
    assert texts[-1] != texts[-2]
    assert words().text(20) == words().text(20) != words(2).text(20)


def test_a_bos_counts_as_the_engine_counts_it() -> None:
    tokenizer = shapes.tokenizer(VOCABULARY)
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", VOCABULARY)])
    tokenizer._tokenizer.post_processor = begin
    prompts = Prompts(tokenizer, VOCABULARY, "tiny")
    ids = prompts.ids(prompts.text(12))
    assert (len(ids), ids[0]) == (12, VOCABULARY)
    with pytest.raises(NoPrompt):
        prompts.text(1)  # the <bos> alone is one, and a word is another


class Counting(EchoEngine):
    """Counts how many run at once; refuses the first jobs if told to."""

    def __init__(self, refuse: int = 0) -> None:
        super().__init__(model="m", slots=99, token_delay=0.001)
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


async def test_a_load_keeps_to_its_concurrency_and_gets_every_token() -> None:
    engine = Counting()
    timelines = await load.run_load(engine, words(), load.uniform(7, 5, 6), 3)
    assert engine.most == 3
    assert [it.tokens for it in timelines] == [6] * 7
    assert all(it.sent <= it.times[0] and not it.error for it in timelines)


async def test_a_request_that_is_refused_costs_only_itself() -> None:
    timelines = await load.run_load(Counting(refuse=2), words(), load.uniform(5, 4, 3), 2)
    assert [it.error for it in timelines].count("the prompt is too long") == 2
    assert sum(it.tokens for it in timelines) == 9


async def test_a_late_request_waits_within_its_ttft() -> None:
    asks = [Ask(4, 20, at=0.001), Ask(4, 20, at=0.002)]
    first, second = await load.run_load(Counting(), words(), asks, 1)
    assert second.sent < first.times[-1] < second.times[0]


async def test_newcomers_come_one_at_a_time_while_all_streams_run() -> None:
    engine = Counting()
    arrivals = await load.run_arrivals(engine, words(), Ask(4, 55), 3, Ask(6, 4), 2, 1)
    assert (len(arrivals.newcomers), engine.open, engine.most) == (2, 0, 4)
    assert all(it.tokens for it in arrivals.newcomers)
    assert len(arrivals.streams) >= 3
    assert reading.pauses(arrivals)


# The memory's limit, and the shapes


@pytest.mark.parametrize(
    ("shape", "millions", "layers", "bytes_per_token"),
    [
        ("llama-3-8b", 8030, 32, 131072),
        ("llama-3.2-1b", 1236, 16, 32768),
        ("qwen2.5-7b", 7616, 28, 57344),
        ("qwen3-8b", 8191, 36, 147456),
        ("gemma-3-4b", 3880, 34, 139264),
        ("gemma-3-270m", 268, 18, 18432),
    ],
)
def test_shapes_have_their_published_sizes(
    shape: str, millions: int, layers: int, bytes_per_token: int
) -> None:
    import torch

    model = shapes.build(shapes.config(shape), "meta", torch.bfloat16)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.005)
    reads = limit.step_reads(model)
    assert (len(reads.layers), reads.bytes_per_token) == (layers, bytes_per_token)


def test_a_window_bounds_what_a_layer_reads() -> None:
    reads = limit.StepReads(0, limit.layers(shapes.config("gemma-3-270m"), 2))
    assert [layer.window for layer in reads.layers].count(512) == 15
    assert reads.kv(2, 1512) == 2 * (512 * 15 + 1512 * 3) * 1024


def test_nothing_that_an_engine_did_to_the_model_is_left_for_the_next_one() -> None:
    import torch

    subject = random_weights("tiny", "cpu", 2, 64)
    model, block = subject.model, subject.model.model.layers[0]
    ids = torch.arange(5)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    model.set_attn_implementation("eager")
    block._compiled_call_impl = block.forward  # what `block.compile()` sets
    block.self_attn.key_cache = torch.ones(3)
    block.self_attn.q_proj = torch.nn.Identity()
    block.mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(64, 32))
    subject.clean_up()
    assert model.config._attn_implementation == "sdpa"
    assert block._compiled_call_impl is None
    assert not hasattr(block.self_attn, "key_cache")
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, logits)


def result(kind: str, contender: str, concurrency: int, rate: float, step: float = 0) -> LoadResult:
    spread = Spread.of([1.0])
    it = Reading(1, 0, 10, 1.0, rate, step or None, spread, spread, 1.0)
    return LoadResult(kind, contender, concurrency, it)


def test_ratios_are_of_the_same_load_and_generates_of_its_only_one() -> None:
    results = [
        result("uniform", "engine", 1, 50),
        result("uniform", "engine", 8, 400, step=20.0),
        result("ragged", "engine", 8, 200),
        result("uniform", "generate", 1, 10),
        result("uniform", "static", 8, 80),
    ]
    bound = Limit("uniform", 8, 256, weights=8e9, kv=2e9, bandwidth=1e12)
    assert (bound.step_ms, bound.rate) == (pytest.approx(10), pytest.approx(800))
    rows = tables.ratio_table(results, [bound]).rows
    assert [row["/ generate"] for row in rows] == [5, 40, 20]
    assert [row["/ static"] for row in rows] == [None, 5, None]
    assert [row["of the limit"] for row in rows] == [None, 0.5, None]
    assert rows[1]["step, of the limit"] == pytest.approx(0.5)


# The whole system


def test_the_system_is_set_beside_its_engine_and_several_gpus_beside_one() -> None:
    one = {8: Cell(result("", "", 8, 1000).reading, {"api": 0.1})}
    two = {8: Cell(result("", "", 8, 1900).reading, {"api": 0.2, "n2": 0.5})}
    rates, cores = system.tables({1: one, 2: two}, {8: result("", "", 8, 1250).reading})
    assert [row["/ engine"] for row in rates.rows] == [0.8, None]
    assert [row["/ one node"] for row in rates.rows] == [None, 1.9]
    assert cores.rows == [
        {"process": "api", "1 x 8": 0.1, "2 x 8": 0.2},
        {"process": "n2", "1 x 8": None, "2 x 8": 0.5},
    ]


def test_events_are_read_as_they_came_whatever_their_borders() -> None:
    def event(text: str = "") -> bytes:
        return b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n"

    first, second = event("w1"), event(" w2 w3")
    end = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n'
    pieces = [(1.0, event()), (2.0, first + second[:9]), (3.0, second[9:]), (4.0, end)]
    it = system.read_events(Timeline(0.5), pieces)
    assert (it.times, it.counts, it.error) == ([2.0, 3.0], [1, 2], "")


def test_a_stream_that_fails_says_so() -> None:
    error = b'data: {"error": {"message": "no node"}}\n\n'
    assert system.read_events(Timeline(), [(1.0, error)]).error == "no node"
    cut_short = system.read_events(Timeline(), [(1.0, b"data: [DONE]\n\n")])
    assert "without its count" in cut_short.error


async def test_a_node_makes_a_shape_of_its_own() -> None:
    engine = engines.create(
        "bench.engine.node_engine",
        model="tiny",
        model_path=None,
        device="cpu",
        slots=2,
        token_delay=0.0,
    )
    await engine.start()
    try:
        chunks = [chunk async for chunk in engine.run(words().job(8, 5))]
        assert chunks[0].prompt_tokens == 8
        assert sum(chunk.tokens for chunk in chunks) == 5
    finally:
        await engine.stop()


# The whole command


def run(*options: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["--device", "cpu", *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


SMALL = [
    "--prompt",
    "8",
    "--answer",
    "6",
    "--concurrency",
    "1",
    "--concurrency",
    "3",
    "--context",
    "64",
    "--seed",
    "3",
]


def test_an_engine_of_any_kind_is_measured_under_every_load(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    options = ("--engine", __name__, "--only", "engine", "--newcomers", "1", "--json", str(file))
    code, output = run("--random-weights", "tiny", *SMALL, *options)
    assert code == 0, output
    facts = json.loads(file.read_text())["facts"]
    assert [(it["load"], it["concurrency"]) for it in facts["results"]] == [
        ("uniform", 1),
        ("uniform", 3),
        ("ragged", 1),
        ("ragged", 3),
    ]
    readings = [it["reading"] for it in facts["results"]]
    assert all(it["failed"] == 0 and it["tokens"] for it in readings)
    # of three slots one is the newcomer's; prompts of 64 tokens do not fit
    assert [it["streams"] for it in facts["arrivals"]] == [1, 2]


def test_the_real_engine_beside_its_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = tmp_path / "models" / "tiny"
    shapes.build(shapes.config("tiny"), "cpu", torch.float32).save_pretrained(folder)
    shapes.tokenizer(VOCABULARY).save_pretrained(folder)
    monkeypatch.setenv("CANOPY_HOME", str(tmp_path))
    monkeypatch.setitem(limit._COPY_BYTES, "cpu", 1 << 20)
    file = tmp_path / "engine.json"
    code, output = run("--model", "tiny", *SMALL, "--rows", "uniform", "--json", str(file))
    assert code == 0, output
    record = json.loads(file.read_text())
    tokens = {
        (it["contender"], it["concurrency"]): it["reading"]["tokens"]
        for it in record["facts"]["results"]
    }
    assert tokens == {
        ("engine", 1): 6,
        ("engine", 3): 18,
        ("generate", 1): 6,
        ("static", 3): 18,
        ("continuous", 1): 6,
        ("continuous", 3): 18,
    }, record["notes"]
    ratios = record["tables"]["the engine beside the others, by tok/s"]
    assert all(row["/ generate"] and row["of the limit"] for row in ratios)


def test_a_model_that_processes_divide_is_measured_alone(tmp_path: Path) -> None:
    write.write("tiny", tmp_path / "written", "cpu")
    file = tmp_path / "engine.json"
    options = ["--tensor-parallel", "2", "--rows", "uniform", "--json", str(file)]
    small = ["--prompt", "8", "--answer", "6", "--concurrency", "2"]
    code, output = run("--model", str(tmp_path / "written"), *small, *options)
    assert code == 0, output
    record = json.loads(file.read_text())
    (it,) = record["facts"]["results"]
    assert (it["reading"]["tokens"], it["reading"]["failed"]) == (12, 0), record["notes"]
    assert record["facts"]["limits"] == []
    assert record["facts"]["start"]["context"] == 2048


def test_continuous_batching_is_cut_short_and_keeps_what_it_made() -> None:
    subject = random_weights("tiny", "cpu", 2, 2000)
    prompts = subject.prompts(1)
    ids = [prompts.ids(prompts.text(6)) for _ in range(2)]
    timelines = baselines.continuous(subject.model, [Ask(6, 1900)] * 2, ids, 2, 1.0)
    assert all(0 < it.tokens < 1900 for it in timelines)
    assert all(it.times == sorted(it.times) and it.sent < it.times[0] for it in timelines)


def test_what_fails_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    options = ("--only", "engine,limit", "--engine", "no.such.engine", "--rows", "uniform")
    code, _ = run("--random-weights", "tiny", *SMALL, *options, "--json", str(file))
    assert code == 0
    record = json.loads(file.read_text())
    assert any("no.such.engine" in note for note in record["notes"])
    assert len(record["facts"]["limits"]) == 2


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--random-weights tiny --model tiny",
        "--random-weights no-such-shape",
        "--random-weights tiny --rows square",
        "--random-weights tiny --concurrency 4 --slots 2",
        "--random-weights tiny --prompt 100 --context 64",
        "--random-weights tiny --tensor-parallel 2",
        "--random-weights tiny --device cuda:0,cuda:1",
        "--model tiny --tensor-parallel 2 --context 64",
    ],
)
def test_what_cannot_be_measured_is_refused(options: str) -> None:
    assert run(*options.split())[0] == 2


def test_the_benchmark_alone_needs_nothing_of_the_service() -> None:
    script = (
        "import sys, bench.engine.__main__\n"
        "import worker.engines.transformers.engine\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "bad = {'api', 'django', 'pika', 'celery', 'uvicorn'} & roots\n"
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
