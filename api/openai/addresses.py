"""Addresses below /v1/, and those that clients with another base URL ask for."""

BASE = "/v1"
SERVED = ("chat/completions", "completions", "models")
OPENAI_SEGMENTS = frozenset(
    {
        *("assistants", "audio", "batches", "chat", "completions", "containers", "conversations"),
        *("edits", "embeddings", "engines", "evals", "files", "fine_tuning", "images", "models"),
        *("moderations", "realtime", "responses", "threads", "uploads", "vector_stores", "videos"),
        *("messages", "rerank", "score", "v1"),
    }
)


def expects_openai_errors(path: str) -> bool:
    """True if whoever asks for `path` expects errors in OpenAI's shape."""
    segments = _segments(path)
    if "v1" in segments or segments[-2:] == ["chat", "completions"]:
        return True
    return bool(segments) and segments[0] in OPENAI_SEGMENTS


def suggestion(path: str) -> str:
    """What to ask for in place of `path`, which nothing is at but `expects_openai_errors`."""
    name = "/".join(_below_base(_segments(path)))
    served = next((each for each in SERVED if name == each or name.endswith(f"/{each}")), None)
    if served is None and name.startswith("models/"):
        served = name
    if served is not None:
        return f"use {BASE}/{served}: this API's base URL ends in {BASE}, without a slash behind it"
    return "this API has " + ", ".join(f"{BASE}/{each}" for each in SERVED)


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _below_base(segments: list[str]) -> list[str]:
    """What follows the last `v1`."""
    while "v1" in segments:
        segments = segments[segments.index("v1") + 1 :]
    return segments
