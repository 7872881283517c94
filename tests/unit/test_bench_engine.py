"""`bench engine`: what arrival times say, the loads, the memory's limit, and the whole command on a tiny model."""

import asyncio
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

from bench.engine import continuous, limit, load, measure, reading, shapes, table, write
from bench.engine.command import command
from bench.engine.prompts import NoPrompt, Prompts
from bench.engine.reading import Ask, Reading, Spread, Track
from bench.engine.subject import random_weights
from bench.engine.table import Bound, Found
from bench.gpu import asking
from broker.wire import Job
from worker import engines
from worker.engines.base import PromptTooLong
from worker.engines.echo import EchoEngine
from worker.engines.transformers.model import loader as loading

VOCABULARY = 256


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> EchoEngine:
    """An engine of known speed; `--engine` finds it by this module's path."""
    return EchoEngine(model=model, slots=slots, token_delay=0.002)


def track(asked: float, *times: float, answer: int = 8, error: str = "") -> Track:
    made = Track(Ask(4, answer), asked, error=error)
    for at in times:
        made.took(at, 1)
    return made


# What follows from arrival times


def test_a_wave_counts_from_the_first_request_to_the_last_token() -> None:
    found = reading.read_wave([track(10.0, 10.5, 10.6, 10.7), track(10.1, 10.6, 10.8, 11.0)])
    assert found.tokens == 6
    assert found.seconds == pytest.approx(1.0)
    assert found.rate == pytest.approx(6.0)
    assert found.ttft is not None
    assert (found.ttft.p50, found.ttft.max) == (pytest.approx(500), pytest.approx(500))
    assert found.gap is not None
    assert found.gap.max == pytest.approx(200)
    assert found.complete


def test_a_step_is_timed_only_while_all_rows_run() -> None:
    slow_start = track(0.0, 1.0, *(3.0 + 0.1 * step for step in range(11)))
    late = track(0.0, *(3.0 + 0.1 * step for step in range(31)))
    assert reading.step_ms([slow_start, late]) == pytest.approx(100)


def test_there_is_no_step_where_rows_never_ran_together_or_one_failed() -> None:
    first, second = track(0.0, 1.0, 1.1, 1.2, 1.3), track(0.0, 2.0, 2.1, 2.2, 2.3)
    assert reading.step_ms([first, second]) is None
    assert reading.step_ms([first, track(0.0, 1.0, 1.1, 1.2, error="gone")]) is None
    assert reading.step_ms([]) is None


def test_a_loop_counts_until_the_last_request_begins() -> None:
    found = reading.read_loop([track(0.0, 1.0, 2.0), track(2.0, 3.0, 4.0), track(4.0, 5.0, 6.0)])
    assert (found.tokens, found.seconds) == (4, pytest.approx(4.0))
    assert reading.read_until_last(
        [track(0.0, 1.0, 2.0), track(2.0, 3.0, 5.0)]
    ).seconds == pytest.approx(5.0)


def test_of_a_load_that_was_cut_short_the_whole_time_counts() -> None:
    first_wave_only = [track(0.0, 1.0, 2.0), track(0.001, 1.5, 4.0)]
    assert measure.read(
        "ragged", "continuous", first_wave_only, steady=False
    ).rate == pytest.approx(1.0)
    assert measure.read("ragged", "static", first_wave_only, steady=True).rate == pytest.approx(1.0)
    refilled = [*first_wave_only, track(2.0, 3.0, 5.0)]
    assert measure.read("ragged", "engine", refilled, steady=True).seconds == pytest.approx(2.0)


def test_a_load_of_which_nothing_came_is_a_reading_too() -> None:
    found = reading.read_wave([track(0.0, error="too long"), track(0.0, error="too long")])
    assert (found.tokens, found.failed, found.rate, found.ttft) == (0, 2, 0.0, None)
    assert not found.complete


def test_a_newcomer_is_blamed_for_the_gaps_it_overlaps_alone() -> None:
    running = [track(0.0, 1.0, 1.1, 1.9, 2.0, 2.1), track(0.0, 1.0, 1.05, 1.5, 2.05)]
    newcomer = track(1.2, 1.95)
    assert reading.pauses(running, [newcomer]) == pytest.approx([800, 550])
    assert sorted(reading.quiet_gaps(running, [newcomer])) == pytest.approx([50, 100, 100])
    assert reading.pauses(running, [track(1.2, error="no slot")]) == []


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=20), st.floats(0, 10))
def test_every_token_lies_on_one_side_of_any_moment(
    arrivals: list[tuple[float, int]], moment: float
) -> None:
    made = Track(Ask(1, 1))
    for at, tokens in sorted(arrivals):
        made.took(at, tokens)
    assert (
        made.within(-1, moment) + made.within(moment, 11)
        == made.tokens
        == sum(tokens for _, tokens in arrivals)
    )


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_spread_is_ordered(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread is not None
    assert min(values) <= spread.p50 <= spread.p99 <= spread.max == max(values)


# Loads


@given(st.integers(1, 50), st.integers(20, 3000), st.integers(0, 5))
def test_ragged_requests_fit_the_context_and_come_again_with_their_seed(
    many: int, context: int, seed: int
) -> None:
    asks = load.ragged(many, context, seed)
    assert asks == load.ragged(many, context, seed)
    assert len(asks) == many
    assert all(
        ask.prompt + ask.answer < context and ask.prompt >= 1 and ask.answer >= 1 for ask in asks
    )
    assert all(ask.at == 0 for ask in asks)


def test_poisson_arrivals_come_at_their_rate() -> None:
    asks = load.ragged(4000, 2000, 1, rate=10.0)
    assert all(one.at < two.at for one, two in pairwise(asks))
    assert asks[-1].at == pytest.approx(400, rel=0.1)
    plain = load.ragged(4000, 2000, 2)
    assert sum(ask.answer for ask in plain) / 4000 == pytest.approx(226, rel=0.1)


def test_a_rows_mean_context_weighs_long_answers() -> None:
    assert reading.mean_context([Ask(128, 256)]) == 256
    assert reading.mean_context([Ask(100, 10), Ask(100, 30)]) == pytest.approx(
        (10 * 105 + 30 * 115) / 40
    )


def words(seed: int = 1) -> Prompts:
    return Prompts(shapes.tokenizer(VOCABULARY), VOCABULARY, "tiny", seed)


def test_prompts_have_the_wanted_number_of_tokens_and_differ() -> None:
    made = words()
    texts = [made.text(tokens) for tokens in (1, 2, 17, 128, 128)]
    assert [len(made.ids(text)) for text in texts] == [1, 2, 17, 128, 128]
    assert texts[-1] != texts[-2]
    assert words().text(20) == words().text(20) != words(2).text(20)


def test_a_bos_counts_as_the_engine_counts_it() -> None:
    tokenizer = shapes.tokenizer(VOCABULARY)
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", VOCABULARY)])
    tokenizer._tokenizer.post_processor = begin
    made = Prompts(tokenizer, VOCABULARY, "tiny")
    ids = made.ids(made.text(12))
    assert (len(ids), ids[0]) == (12, VOCABULARY)
    with pytest.raises(NoPrompt):
        made.text(1)  # the <bos> alone is one, and a word is another


class Counting(EchoEngine):
    """Says how many ran at once; refuses the jobs it is told to."""

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


async def test_a_load_keeps_to_its_number_at_once_and_gets_every_token() -> None:
    engine = Counting()
    tracks = await load.run_load(engine, words(), load.uniform(7, 5, 6), 3, 0.0)
    assert engine.most == 3
    assert [each.tokens for each in tracks] == [6] * 7
    assert all(each.prompt_tokens == 5 and not each.error for each in tracks)
    assert all(each.asked <= each.times[0] for each in tracks)


async def test_a_request_that_is_refused_costs_only_itself() -> None:
    tracks = await load.run_load(Counting(refuse=2), words(), load.uniform(5, 4, 3), 2, 0.0)
    assert [each.error for each in tracks].count("the prompt is too long") == 2
    assert sum(each.tokens for each in tracks) == 9


async def test_a_late_request_waits_within_its_ttft() -> None:
    asks = [Ask(4, 20, at=0.001), Ask(4, 20, at=0.002)]
    first, second = await load.run_load(Counting(), words(), asks, 1, 0.0)
    assert second.asked < first.times[-1] < second.times[0]


async def test_newcomers_come_one_at_a_time_while_all_streams_run() -> None:
    engine = Counting()
    came = await load.run_arrivals(
        engine,
        words(),
        streams=3,
        prompt=4,
        arriving=6,
        newcomers=2,
        context=60,
        seed=1,
        temperature=0.0,
    )
    assert (len(came.newcomers), engine.open, engine.most) == (2, 0, 4)
    assert all(each.tokens and each.prompt_tokens == 6 for each in came.newcomers)
    assert len(came.running) >= 3
    assert reading.pauses(came.running, came.newcomers)


async def test_streams_that_fail_end_the_arrivals_at_once() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(ExceptionGroup, match="unhandled"):
            await load.run_arrivals(
                Counting(refuse=1), words(), streams=2, prompt=4, arriving=4, newcomers=1, context=60, seed=1,
                temperature=0.0,
            )  # fmt: skip


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
        ("mistral-7b", 7248, 32, 131072),
        ("gpt2", 124, 12, 36864),
    ],
)
def test_shapes_have_their_published_sizes(
    shape: str, millions: int, layers: int, bytes_per_token: int
) -> None:
    import torch

    model = shapes.build(shapes.config(shape), "meta", torch.bfloat16)
    assert sum(each.numel() for each in model.parameters()) / 1e6 == pytest.approx(
        millions, rel=0.005
    )
    found = limit.reads(model)
    assert len(found.layers) == layers
    assert found.bytes_per_token == bytes_per_token


def test_the_table_of_embeddings_is_read_only_where_it_is_the_output_too() -> None:
    import torch

    apart = shapes.build(shapes.config("llama-3-8b"), "meta", torch.bfloat16)
    assert limit.reads(apart).weights == 2 * (
        sum(each.numel() for each in apart.parameters()) - 128256 * 4096
    )
    tied = shapes.build(shapes.config("tiny"), "cpu", torch.float32)
    assert limit.reads(tied).weights == 4 * sum(each.numel() for each in tied.parameters())


def test_a_window_bounds_what_a_layer_reads() -> None:
    config = shapes.config("gemma-3-270m")
    found = limit.Reads(0, limit.layers(config, 2))
    assert [layer.window for layer in found.layers].count(512) == 15
    assert found.kv(1, 512) == 512 * found.bytes_per_token
    assert found.kv(2, 1512) == 2 * (512 * 15 + 1512 * 3) * 1024


def test_random_weights_come_again_with_their_seed_and_are_spread_as_told() -> None:
    import torch

    one, two = (shapes.build(shapes.config("tiny"), "cpu", torch.float32) for _ in range(2))
    weight = one.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, two.model.layers[0].mlp.up_proj.weight)
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(one.model.norm.weight, torch.ones(32))
    other = shapes.build(shapes.config("tiny"), "cpu", torch.float32, seed=2)
    assert not torch.equal(weight, other.model.layers[0].mlp.up_proj.weight)


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


def test_a_copy_has_a_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limit._COPY_BYTES, "cpu", 1 << 20)
    assert limit.bandwidth("cpu") > 0


def made(rate: float, step: float | None = None) -> Reading:
    return Reading(1, 0, 10, 1.0, rate, step, None, None, 1.0)


def test_ratios_are_of_the_same_load_and_generates_of_its_only_one() -> None:
    found = [
        Found("uniform", "engine", 1, made(50)), Found("uniform", "engine", 8, made(400, step=20.0)),
        Found("ragged", "engine", 8, made(200)), Found("uniform", "generate", 1, made(10)),
        Found("uniform", "static", 8, made(80)),
    ]  # fmt: skip
    bound = Bound("uniform", 8, 256, weights=8e9, kv=2e9, bandwidth=1e12)
    assert (bound.step_ms, bound.rate) == (pytest.approx(10), pytest.approx(800))
    rows = table.ratios(found, [bound]).as_records()
    assert [row["/ generate"] for row in rows] == [5, 40, 20]
    assert [row["/ static"] for row in rows] == [None, 5, None]
    assert [row["of the limit"] for row in rows] == [None, 0.5, None]
    assert rows[1]["its step, of the limit"] == pytest.approx(0.5)


# Streams over HTTP


def test_events_are_read_as_they_came_whatever_their_borders() -> None:
    def event(text: str = "", **more: object) -> bytes:
        return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"

    first, second = event("w1"), event(" w2 w3")
    end = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n'
    pieces = [(1.0, event()), (2.0, first + second[:9]), (3.0, second[9:]), (4.0, end)]
    read = asking.read(Track(Ask(1, 3), 0.5), pieces)
    assert (read.times, read.counts, read.error) == ([2.0, 3.0], [1, 2], "")


def test_a_stream_that_fails_says_so() -> None:
    error = b'data: {"error": {"message": "no node"}}\n\n'
    assert asking.read(Track(Ask(1, 3)), [(1.0, error)]).error == "no node"
    assert "without its count" in asking.read(Track(Ask(1, 3)), [(1.0, b"data: [DONE]\n\n")]).error


async def test_a_node_makes_a_shape_of_its_own() -> None:
    engine = engines.create(
        "bench.gpu.engine", model="tiny", model_path=None, device="cpu", slots=2, token_delay=0.0
    )
    await engine.start()
    try:
        assert (engine.model, engine.slots) == ("tiny", 2)
        job = Prompts(
            shapes.tokenizer(shapes.config("tiny").vocab_size),
            shapes.config("tiny").vocab_size,
            "tiny",
            1,
        ).job(8, 5)
        chunks = [chunk async for chunk in engine.run(job)]
        assert chunks[0].prompt_tokens == 8
        assert sum(chunk.tokens for chunk in chunks) == 5
    finally:
        await engine.stop()


# The whole command


def run(*options: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--device", "cpu", *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


SMALL = ("--prompt", "8", "--answer", "6", "--concurrency", "1", "--concurrency", "3", "--context", "64",
         "--newcomers", "1", "--seed", "3")  # fmt: skip


def test_an_engine_of_any_kind_is_measured_under_every_load(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    code, output = run(
        "--random-weights",
        "tiny",
        *SMALL,
        "--engine",
        __name__,
        "--only",
        "engine",
        "--json",
        str(file),
    )
    assert code == 0, output
    facts = json.loads(file.read_text())["facts"]
    assert [(each["kind"], each["at_once"]) for each in facts["found"]] == [
        ("uniform", 1), ("uniform", 3), ("ragged", 1), ("ragged", 3),
    ]  # fmt: skip
    assert all(
        each["reading"]["failed"] == 0 and each["reading"]["tokens"] for each in facts["found"]
    )
    assert [each["running"] for each in facts["arrivals"]] == [
        1,
        2,
    ]  # of three slots one is the newcomer's
    assert "all at once" in output


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
    options = (
        "--engine",
        "transformers",
        "--rows",
        "uniform",
        "--baseline-concurrency",
        "3",
        "--json",
        str(file),
    )
    code, output = run("--model", "tiny", *SMALL, *options)
    assert code == 0, output
    record = json.loads(file.read_text())
    found = {(each["who"], each["at_once"]): each["reading"] for each in record["facts"]["found"]}
    assert set(found) == {
        ("engine", 1), ("engine", 3), ("generate", 1), ("static", 3), ("continuous", 3),
    }, record["notes"]  # fmt: skip
    assert {each["tokens"] for (_, at_once), each in found.items() if at_once == 3} == {18}
    assert found["generate", 1]["tokens"] == 6
    ratios = record["tables"]["the engine beside the others, by tok/s"]
    assert [bool(row["/ continuous"]) for row in ratios] == [False, True]
    assert all(row["/ generate"] and row["of the limit"] for row in ratios)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write.write("tiny", tmp_path / "written", "cpu")
    return tmp_path / "written"


def test_a_written_model_is_the_one_of_its_shape_and_ends_no_answer(folder: Path) -> None:
    import torch

    loaded = loading.load(folder, "cpu", 2)
    assert loaded.eos_token_ids == frozenset()
    weight = (
        shapes.build(shapes.config("tiny"), "cpu", torch.bfloat16)
        .model.layers[1]
        .mlp.up_proj.weight
    )
    assert torch.equal(loaded.model.model.layers[1].mlp.up_proj.weight, weight.float())
    assert loaded.tokenizer("w3 w255 other")["input_ids"] == [3, 255, 0]


def test_a_model_is_written_into_a_folder_of_its_own(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(write.command)
    (tmp_path / "mine").write_text("")
    for words in (
        ["tiny", str(tmp_path)],
        ["tiny", str(tmp_path / "mine")],
        ["no-such-shape", str(tmp_path / "new")],
    ):
        assert CliRunner().invoke(app, [*words, "--device", "cpu"]).exit_code == 2


def test_a_model_that_processes_divide_is_measured_alone(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    small = (
        "--prompt",
        "8",
        "--answer",
        "6",
        "--concurrency",
        "2",
        "--rows",
        "uniform",
        "--json",
        str(file),
    )
    code, output = run("--model", str(folder), "--tensor-parallel", "2", *small)
    assert code == 0, output
    record = json.loads(file.read_text())
    (found,) = record["facts"]["found"]
    assert (found["who"], found["reading"]["tokens"], found["reading"]["failed"]) == (
        "engine",
        12,
        0,
    ), record["notes"]
    assert record["facts"]["limits"] == []
    assert any("baselines and the limit are left out" in note for note in record["notes"])
    assert record["facts"]["start"][0]["context"] == 2048


def test_continuous_batching_is_cut_short_and_keeps_what_it_made() -> None:
    subject = random_weights("tiny", "cpu", 2, 2000)
    prompts = subject.prompts(1)
    ids = [prompts.ids(prompts.text(6)) for _ in range(2)]
    tracks = continuous.plain(subject.model, [Ask(6, 1900)] * 2, ids, 2, 1.0)
    assert all(0 < each.tokens < 1900 for each in tracks)
    assert all(each.times == sorted(each.times) and each.asked < each.times[0] for each in tracks)


def test_newcomers_beside_continuous_batching() -> None:
    subject = random_weights("tiny", "cpu", 2, 2000)
    prompts = subject.prompts(1)
    ids = [prompts.ids(prompts.text(tokens)) for tokens in (6, 6, 30)]
    came = continuous.arrivals(subject.model, ids[:2], ids[2:], 1900, 1, 20.0)
    assert [each.tokens for each in came.newcomers] == [load.ARRIVAL_ANSWER]
    assert all(each.tokens < 1900 for each in came.running)
    assert reading.pauses(came.running, came.newcomers)


def test_what_fails_costs_only_itself(tmp_path: Path) -> None:
    options = (
        "--only",
        "engine,limit",
        "--engine",
        "no.such.engine",
        "--rows",
        "uniform",
        "--json",
    )
    code, output = run("--random-weights", "tiny", *SMALL, *options, str(tmp_path / "f.json"))
    assert code == 0
    record = json.loads((tmp_path / "f.json").read_text())
    assert any("no.such.engine" in note for note in record["notes"])
    assert len(record["facts"]["limits"]) == 2
    assert "bandwidth" in output


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--random-weights", "tiny", "--model", "tiny"),
        ("--random-weights", "no-such-shape"),
        ("--random-weights", "tiny", "--rows", "square"),
        ("--random-weights", "tiny", "--concurrency", "4", "--slots", "2"),
        ("--random-weights", "tiny", "--prompt", "100", "--context", "64"),
        ("--random-weights", "tiny", "--tensor-parallel", "2"),
        ("--random-weights", "tiny", "--device", "cuda:0,cuda:1"),
        ("--model", "tiny", "--tensor-parallel", "2", "--context", "64"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: tuple[str, ...]) -> None:
    code, _ = run(*options)
    assert code == 2


def test_the_benchmark_alone_needs_nothing_of_the_service() -> None:
    script = (
        "import sys, bench.engine.__main__\n"
        "import worker.engines.transformers.engine\n"
        "bad = {'api', 'django', 'pika', 'celery', 'uvicorn'} & {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(f'imported: {sorted(bad)}' if bad else 0)"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=repository
    )
    assert done.returncode == 0, done.stderr
