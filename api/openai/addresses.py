"""Paths below /v1/, and those that clients with a wrong base URL request."""

from typing import Literal

Family = Literal["canopy", "openai", "anthropic"]  # whose clients request a path

BASE = "/v1"
SERVED = (
    "chat/completions",
    "completions",
    "embeddings",
    "files",
    "messages",
    "models",
    "rerank",
    "responses",
    "score",
    "tokenize",
    "detokenize",
)
# Served, too; other interfaces have paths that end so (/v1/messages/batches, /v1/fine_tuning/jobs).
_SERVED_ALONE = ("batches", "jobs")
OPENAI_SEGMENTS = frozenset(
    [
        "assistants",
        "audio",
        "batches",
        "chat",
        "completions",
        "containers",
        "detokenize",
        "conversations",
        "edits",
        "embeddings",
        "engines",
        "evals",
        "files",
        "fine_tuning",
        "images",
        "messages",
        "models",
        "moderations",
        "realtime",
        "rerank",
        "responses",
        "score",
        "threads",
        "tokenize",
        "uploads",
        "v1",
        "vector_stores",
        "videos",
    ]
)


def family(path: str) -> Family:
    """Whose errors the clients of `path` expect."""
    segments = _segments(path)
    if "v1" in segments and _below_base(segments)[:1] == ["messages"]:
        return "anthropic"
    return "openai" if _is_openai(segments) else "canopy"


def _is_openai(segments: list[str]) -> bool:
    if "v1" in segments or segments[-2:] == ["chat", "completions"]:
        return True
    return bool(segments) and segments[0] in OPENAI_SEGMENTS


def suggestion(path: str) -> str:
    """What to request instead of `path`, which does not exist but `expects_openai_errors`."""
    name = "/".join(_below_base(_segments(path)))
    endpoint = _endpoint(name)
    if endpoint is not None:
        return f"use {BASE}/{endpoint}: this API's base URL ends in {BASE}, without a final slash"
    return "this API has " + ", ".join(f"{BASE}/{endpoint}" for endpoint in SERVED + _SERVED_ALONE)


def _endpoint(name: str) -> str | None:
    for endpoint in SERVED:
        if name == endpoint or name.endswith(f"/{endpoint}"):
            return endpoint
    if name in _SERVED_ALONE or name.startswith(("files/", "models/")):
        return name
    return None


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _below_base(segments: list[str]) -> list[str]:
    """What follows the last `v1`."""
    while "v1" in segments:
        segments = segments[segments.index("v1") + 1 :]
    return segments
