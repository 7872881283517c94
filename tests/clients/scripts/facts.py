"""Runs a client's checks and prints what each gave: a line of JSON, for the test that started it.

Runs in the client's environment, so it needs the standard library alone.
"""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any

QUESTION = "what goes up must come down"
ASK_WEATHER = 'call weather {"city": "Oslo"}'  # echo does as it is told; a model may
MODEL = os.environ.get("MODEL", "")
EMBEDDER = os.environ.get("EMBEDDER", "")
WRONG_KEY = "canopy_wrong_key"
UNKNOWN_MODEL = "no-such-model"
LONG = 5000  # words: nearly a minute, so a stream that ends sooner was cancelled
_STOP_SECONDS = 30.0  # on a busy machine, and well before that stream would end


def main(checks: Mapping[str, Any]) -> None:
    """Runs the functions among `checks` that the command line names."""
    for name in sys.argv[1:]:
        line: dict[str, Any] = {"check": name}
        try:
            line["fact"] = checks[name]()
        except Exception as error:  # fate: told to the test, which expects it or fails
            line["error"] = describe(error)
        print(json.dumps(line), flush=True)


def refusal(act: Callable[[], Any]) -> dict[str, Any]:
    """How a call that must fail did fail."""
    try:
        act()
    except Exception as error:  # fate: returned, as it is what was asked for
        return describe(error)
    raise AssertionError("this call should have failed")


def describe(error: Exception) -> dict[str, Any]:
    """An error's class, HTTP status and text."""
    status = getattr(error, "status_code", None) or getattr(error, "status", None)
    return {"kind": type(error).__name__, "status": status, "message": str(error)[:2000]}


def seconds_until_idle() -> float:
    """How long the service takes to free all slots after a client went away."""
    began = time.monotonic()
    while time.monotonic() - began < _STOP_SECONDS:
        if sum(node["running"] for node in _tree()["nodes"]) == 0:
            return time.monotonic() - began
        time.sleep(0.02)  # the tree is asked, as a page does that cannot listen
    raise AssertionError(f"a slot was still taken after {_STOP_SECONDS:g} s")


def _tree() -> Any:
    request = urllib.request.Request(
        os.environ["CANOPY_URL"] + "/api/tree",
        headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
    )
    with urllib.request.urlopen(request, timeout=_STOP_SECONDS) as answer:
        return json.load(answer)


def first(pieces: Iterable[Any]) -> Any:
    """The first piece that has text."""
    for piece in pieces:
        if piece:
            return piece
    raise AssertionError("the stream ended without text")
