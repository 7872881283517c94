"""`bench engine`: readings, loads, the memory's limit, and the whole command on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import Gemma3TextConfig

from bench.engine import (
    lengths,
    llama_peer,
    load,
    measure,
    peers,
    reading,
    shapes,
    system,
    vllm_peer,
    yardsticks,
)
from bench.engine.command import command
from bench.engine.contender import CanopyEngine
from bench.engine.load import Lengths, Trial
from bench.engine.measure import Record, Settings
from bench.engine.prompts import Prompt, Prompts, Request
from bench.engine.reading import Reading, Result
from bench.errors import BenchError, NotStarted
from bench.stats import Timeline
from broker.wire import Job
from worker import engines
from worker.engines.base import Chunk, PromptTooLong
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


def test_answers_that_came_as_a_whole_have_a_rate_and_no_delays() -> None:
    whole = Timeline(0.0, times=[4.0], counts=[8])
    it = reading.read([whole, whole])
    assert it.rate == pytest.approx(4.0)
    assert (it.ttft.count, it.step_ms, it.prompt_rate) == (0, None, None)


def test_the_host_s_share_is_that_of_the_time_in_which_all_rows_run() -> None:
    rows = [timeline(0.0, 1.0, 2.0, 3.0), timeline(0.0, 1.0, 2.0, 3.0)]
    samples = [(0.0, 0.0), (1.0, 0.9), (2.0, 1.2), (3.0, 1.7), (4.0, 2.7)]
    assert reading.read(rows, host=samples).host == pytest.approx(40)
    assert reading.read(rows, host=samples[:1]).host is None


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
    return Prompts(shapes.tokenizer(VOCABULARY))


def test_prompts_have_the_given_number_of_tokens_and_differ() -> None:
    prompts = words()
    requests = [Request(tokens, 1) for tokens in (1, 2, 17, 128, 128)]
    batch = prompts.make(requests)
    assert [len(prompt.ids) for prompt in batch] == [1, 2, 17, 128, 128]
    assert [list(prompt.ids) for prompt in batch] == [prompts.ids(prompt.text) for prompt in batch]
    assert batch[-1] != batch[-2]


def test_the_prompts_of_a_load_share_their_prefix_and_nothing_with_the_next() -> None:
    prompts = words()
    requests = [Request(20, 4, shared=16)] * 2
    one, two = prompts.make(requests)
    assert one.ids[:16] == two.ids[:16]
    assert one.ids[16:] != two.ids[16:]
    assert prompts.make(requests, again=True)[0].ids[:16] == one.ids[:16]
    assert prompts.make(requests)[0].ids[:16] != one.ids[:16]


def test_a_bos_counts_as_the_engine_counts_it() -> None:
    tokenizer = shapes.tokenizer(VOCABULARY)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", VOCABULARY)])
    tokenizer._tokenizer.post_processor = begin
    prompts = Prompts(tokenizer)
    (prompt,) = prompts.make([Request(12, 1)])
    assert (len(prompt.ids), prompt.ids[0]) == (12, VOCABULARY)
    assert list(prompt.ids) == prompts.ids(prompt.text)
    with pytest.raises(BenchError):
        prompts.make([Request(1, 1)])


def test_a_turn_goes_on_from_the_answer_in_text_and_in_tokens() -> None:
    prompts = words()
    (prompt,) = prompts.make([Request(6, 2)])
    following = prompts.next_turn(prompt, " w7 w8", [7, 8], 3)
    assert following.ids[:8] == (*prompt.ids, 7, 8)
    assert list(following.ids) == prompts.ids(following.text)
    assert len(following.ids) == 11


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


SMALL_LENGTHS = Lengths().times(0.01)
NEWCOMER = load.LOADS["arrivals"].longest(SMALL_LENGTHS)


async def trial(engine: Counting, size: int) -> Trial:
    contender = CanopyEngine(engine)
    await contender.start()
    return Trial(contender, words(), size, SMALL_LENGTHS)


async def test_a_request_that_is_refused_costs_only_itself() -> None:
    timelines = await (await trial(Counting(refuse=2), 5)).at_once([Request(4, 3)] * 5)
    assert [it.error for it in timelines].count("the prompt is too long") == 2
    assert sum(it.tokens for it in timelines) == 9


async def test_newcomers_come_one_after_the_other_while_all_streams_run() -> None:
    engine = Counting()
    (row,) = (await load.LOADS["arrivals"].run(await trial(engine, 3), NEWCOMER)).values()
    assert (engine.open, engine.most) == (0, 4)
    assert row.ttft.count == load._NEWCOMERS
    assert not row.failed


async def test_streams_that_end_before_the_newcomers_are_no_measurement() -> None:
    it = await trial(Counting(), 2)
    it.contender.context = SMALL_LENGTHS.prompt + 3  # type: ignore[misc]
    with pytest.raises(BenchError, match="streams ended"):
        await load.LOADS["arrivals"].run(it, NEWCOMER)


def settings(*concurrency: int, loads: tuple[str, ...] = tuple(load.LOADS)) -> Settings:
    return Settings(None, "tiny", "cpu", concurrency, 200, SMALL_LENGTHS, loads)


def test_every_load_gets_slots_for_all_that_it_has_at_once() -> None:
    assert settings(4).slots == 6  # 4 streams and a burst of 2
    assert settings(4, loads=("uniform",)).slots == 4
    assert settings().slots == 16


async def test_every_load_keeps_to_its_concurrency() -> None:
    record, engine = Record(), Counting()
    await measure.measure(CanopyEngine(engine), words(), settings(1, 3), record)
    names = list(dict.fromkeys(it.load for it in record.results))
    assert names == [
        "uniform", "ragged", "prompts", "prefix, new", "prefix, again", "conversations",
        "arrivals", "burst",
    ]  # fmt: skip
    assert [it.size for it in record.results] == [1, 3] * 3 + [1, 1, 3, 3] + [1, 3] * 3
    assert all(it.reading.failed == 0 for it in record.results), record.notes
    assert engine.most == 4  # with a newcomer


async def test_what_fails_costs_only_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("it broke")

    monkeypatch.setattr(reading, "read_arrivals", fail)
    record, engine = Record(), Counting()
    engine.context_length = 30  # of 10 + 8 turns nothing fits
    await measure.measure(CanopyEngine(engine), words(), settings(2), record)
    assert {it.load for it in record.results} == {
        "uniform", "ragged", "prefix, new", "prefix, again",
    }  # fmt: skip
    notes = "\n".join(record.notes)
    assert "prompts: left out, it needs 45 tokens a request, of 30" in notes
    assert "engine, burst, 2 at once: failed: ValueError: it broke" in notes


# Peers


class FakeLlm:
    """Of vLLM's classes those that are used."""

    aborted = 0

    async def generate(self, prompt: dict[str, list[int]], sampling: object, name: str):  # type: ignore[no-untyped-def]
        try:
            for number in range(sampling.max_tokens):  # type: ignore[attr-defined]
                ids = [prompt["prompt_token_ids"][0] + number]
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])
        finally:
            self.aborted += 1

    def shutdown(self) -> None:
        pass


async def test_vllm_gets_tokens_and_a_stream_that_is_left_is_aborted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = SimpleNamespace(DELTA=1, FINAL_ONLY=2)
    module = SimpleNamespace(SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]
    parameters = SimpleNamespace(RequestOutputKind=kinds)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)  # type: ignore[arg-type]
    peer = vllm_peer.Vllm(Path(), 4, 64, dummy=True)
    peer._llm = llm = FakeLlm()
    chunks = peer.run(Prompt("w5 w6", (5, 6)), 3, streamed=True)
    assert await anext(chunks) == Chunk(tokens=1, ids=(5,))
    await chunks.aclose()
    assert llm.aborted == 1


def test_a_peer_s_results_come_back_from_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys, pathlib, msgspec; from bench.engine import peers, reading\n"
        "settings = msgspec.json.decode(sys.stdin.buffer.read(), type=peers.Settings)\n"
        "row = reading.Result(settings.loads[0], 3, 'peer', reading.Reading(rate=2.0))\n"
        "measured = peers.Measured([row], ['a note'])\n"
        "pathlib.Path(sys.argv[1]).write_bytes(msgspec.json.encode(measured)); sys.exit(4)"
    )
    monkeypatch.setattr(peers, "_command", lambda peer, file: [sys.executable, "-c", script, file])
    record = Record()
    peers.run(peers.VLLM, settings(3), record)
    assert record.results == [Result("uniform", 3, "peer", Reading(rate=2.0))]
    assert record.notes == ["a note", "vllm: ended with status 4; its reason is above"]


def test_a_peer_that_is_not_installed_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "vllm", "no_such_module")
    with pytest.raises(NotStarted, match="--peer vllm needs the Python package no-such-module"):
        peers.check("vllm")
    with pytest.raises(NotStarted, match="--gguf"):
        llama_peer.find_weights(None, None)


async def test_the_decoding_thread_s_time_is_sampled_while_a_load_runs() -> None:
    contender = CanopyEngine(Counting())
    spents = iter([0.1, 0.2, None])
    contender.host_seconds = lambda: next(spents)  # type: ignore[method-assign]
    samples: list[tuple[float, float]] = []
    await load.sample_host(contender, samples)
    assert [spent for _, spent in samples] == [0.1, 0.2]


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
        (prompt,) = words().make([Request(8, 5)])
        contender = CanopyEngine(engine)
        chunks = [chunk async for chunk in contender.run(prompt, 5, streamed=True)]
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
