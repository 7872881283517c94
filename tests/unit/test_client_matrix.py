"""The table of clients: how results get into it, and that it tells the locked versions."""

from pathlib import Path

from tests.clients import matrix
from tests.clients.registry import NODE, PYTHON

PAGE = f"""# Clients

| client | version | {" | ".join(matrix.COLUMNS)} |
| --- | --- | --- | --- |
| a | 1.0 | chat | tools |
| b | 2.0 | chat |  |

The end.
"""


def test_results_replace_their_cells_and_leave_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "clients.md"
    page.write_text(PAGE)
    matrix.update([("a", "1.0", "echo", "chat, stream"), ("A c", "3", "echo", "chat")], page)
    assert page.read_text() == PAGE.replace(
        "| a | 1.0 | chat |", "| a | 1.0 | chat, stream |"
    ).replace("| b |", "| A c | 3 | chat |  |\n| b |")


def test_another_version_has_shown_nothing_yet(tmp_path: Path) -> None:
    page = tmp_path / "clients.md"
    page.write_text(PAGE)
    matrix.update([("a", "1.1", "smollm2-135m-instruct", "chat")], page)
    assert "| a | 1.1 |  | chat |" in page.read_text()


def test_what_failed_is_seen() -> None:
    assert matrix.cell({"chat": "", "tools": "404"}) == "chat, **not tools**"


def test_checks_are_told_by_the_way_that_they_took() -> None:
    problems = {"openai_chat": "", "hosted_vllm_tools": "404", "openai_stream": "", "cancel": ""}
    assert matrix.cell(problems) == "cancel; openai: chat, stream; hosted_vllm: **not tools**"


def test_the_page_has_every_client_in_its_locked_version_and_all_of_it_works() -> None:
    rows = {row.client: row for row in matrix.read()}
    assert {client.name: client.version for client in (*PYTHON, *NODE)}.items() <= {
        row.client: row.version for row in rows.values()
    }.items()
    assert not [row.client for row in rows.values() if "**not" in str(row)]
