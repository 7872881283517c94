"""The account itself: what it calls answered, lost and wrong."""

import json
from pathlib import Path

import pytest

from broker.wire import AnyFrame, Delta, Failed, Finished, Start, Waiting
from tests.faults.account import Answer, Verdict
from tests.faults.table import Row, render, write

pytestmark = pytest.mark.timeout(30)  # nothing here waits

ID = "r"
DONE = Finished(request_id=ID, reason="length", prompt_tokens=3, completion_tokens=3)


def after(*frames: AnyFrame, job: int = 1) -> Answer:
    answer = Answer(job, 3)
    for at, frame in enumerate(frames):
        answer.take(frame, float(at))
    return answer


def said(text: str) -> Delta:
    return Delta(request_id=ID, text=text)


def verdict(*frames: AnyFrame) -> tuple[Verdict, str]:
    answer = after(*frames)
    return answer.verdict(), answer.complaint().partition(": ")[2]


def test_the_exact_text_in_any_parts_is_an_answer() -> None:
    assert verdict(said("1.0 1"), said(".1 1.2"), DONE) == ("answered", "fine")


def test_a_repeated_a_missing_and_a_foreign_word_are_told_apart() -> None:
    assert (
        verdict(said("1.0 1.1 1.1 1.2"), DONE)[1]
        == "text wrong from word 2 on: 1 repeated, 0 missing, 0 foreign"
    )
    assert (
        verdict(said("1.0 1.2"), DONE)[1]
        == "text wrong from word 1 on: 0 repeated, 1 missing, 0 foreign"
    )
    assert (
        verdict(said("1.0 1.1 2.2"), DONE)[1]
        == "text wrong from word 2 on: 0 repeated, 1 missing, 1 foreign"
    )


def test_no_end_is_lost_and_an_end_of_another_kind_is_not_an_answer() -> None:
    assert verdict(said("1.0 1.1 1.2"))[0] == "lost"
    assert verdict(Failed(request_id=ID, code="engine", message=""))[0] == "failed"
    assert verdict(said("1.0 1.1 1.2"), Finished(request_id=ID, reason="stop"))[0] == "wrong"
    assert verdict(said("1.0 1.1 1.2"), DONE, DONE) == ("wrong", "1 frames after its end")


def test_a_failure_that_is_due_is_told_and_an_answer_in_its_place_is_wrong() -> None:
    poison = Answer(1, 3, failing="given_up")
    poison.take(Failed(request_id=ID, code="given_up", message="it killed three nodes"), 0)
    assert poison.verdict() == "told"
    answered = Answer(1, 3, failing="given_up")
    answered.take(said("1.0 1.1 1.2"), 0)
    answered.take(DONE, 1)
    assert answered.verdict() == "wrong"


def test_the_silence_after_a_fault_is_the_longest_one_that_ends_after_it() -> None:
    answer = Answer(1, 4)
    for at in (0.0, 9.0, 9.5, 12.0, 13.0):
        answer.take(said("word "), at)
    assert answer.silence(since=9.2) == 2.5
    assert answer.silence(since=10.5) == 1.5
    assert answer.silence(since=13.0) == 0.0


def test_where_a_job_runs() -> None:
    answer = Answer(1, 3)
    answer.take(Waiting(request_id=ID, node="n1", reason="busy"), 0)
    assert (answer.node, answer.waiting) == ("", "n1")
    answer.take(Start(request_id=ID, node="n2"), 1)
    assert (answer.node, answer.waiting) == ("n2", "")
    answer.take(DONE, 2)
    assert answer.node == ""


def test_the_table_has_a_line_a_fault_and_the_p95_of_many(tmp_path: Path) -> None:
    rows = [
        Row("kill -9", "leaf", 40, 40, 0, 0, 0, tuple(n / 100 for n in range(1, 101))),
        Row("poison", "one of 51", 51, 50, 1, 0, 0),
    ]
    lines = render(rows).splitlines()
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "kill -9",
        "leaf",
        "40",
        "40",
        "0",
        "0",
        "0",
        "1.00 s",
        "0.96 s",
    ]
    write(rows, tmp_path / "table.json")
    poison = json.loads((tmp_path / "table.json").read_text())[1]
    assert (poison["accepted"], poison["answered"], poison["told"], poison["slowest"]) == (
        51,
        50,
        1,
        None,
    )
