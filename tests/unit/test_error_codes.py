"""The kinds of errors: what the API can say, the pages can say in the reader's language."""

import ast
import re
from typing import get_args

from api import errors
from api.plans.refusals import CODES
from broker.wire import FailureCode
from cli.home import REPOSITORY

TEXTS = REPOSITORY / "frontend" / "src" / "locales" / "en" / "errors.ts"
FOR_PROGRAMS = {  # which no page's request can cause
    "deadline_exceeded",
    "file_in_use",
    "idempotency_key_reused",
    "invalid_api_key",
    "invalid_body",
    "invalid_idempotency_key",
    "item_not_found",
    "login_needed",
    "method_not_allowed",
    "not_cancellable",
    "not_with_idempotency_key",
    "previous_response_not_found",
    "storage_full",
    "too_many_batches",
    "too_many_files",
    "too_many_jobs",
    "unsupported_encoding",
    "unsupported_parameter",
}
OF_THE_PAGE = {"status"}


def codes_in_api() -> set[str]:
    """Every constant that is given as the `code` of an error."""
    codes: set[str] = set()
    for path in (REPOSITORY / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                codes |= {word.value.value for word in node.keywords if is_code(word)}
    return codes


def is_code(word: ast.keyword) -> bool:
    constant = isinstance(word.value, ast.Constant) and isinstance(word.value.value, str)
    return word.arg == "code" and constant


def test_pages_know_every_kind_of_error() -> None:
    translated = set(re.findall(r"^  (\w+): ", TEXTS.read_text(), re.MULTILINE))
    said = (
        codes_in_api()
        | {code for code, _ in errors.VALIDATION_CODES.values()}
        | set(get_args(FailureCode))
        | set(CODES.values())
    )
    assert said - FOR_PROGRAMS - translated == set()
    passwords = {text for text in translated if text.startswith(("password_", "name_"))}
    assert translated - said - OF_THE_PAGE - passwords == set()
