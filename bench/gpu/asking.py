"""Requests to /v1/completions, all at once, and when their tokens came."""

import asyncio
import json
import time
from collections.abc import Sequence

from bench import cpu, web
from bench.engine.reading import Ask, Track
from bench.instance import Instance


async def wave(
    canopy: Instance, texts: Sequence[str], ask: Ask, meter: cpu.Meter
) -> tuple[list[Track], dict[str, float]]:
    """Asks for all answers at once, a connection each, which is open before the clock runs. Also what it cost, as
    `cpu.spending` tells it.
    """
    connections = [await web.Connection.open(canopy.port) for _ in texts]
    try:
        with cpu.spending(meter) as spent:
            asked = [
                _answer(connection, canopy, text, ask)
                for connection, text in zip(connections, texts, strict=True)
            ]
            answers = await asyncio.gather(*asked)
    finally:
        for connection in connections:
            connection.close()
    # Not before all have ended: others' tokens would wait meanwhile, and seem late.
    return [read(track, pieces) for track, pieces in answers], spent


async def _answer(
    connection: web.Connection, canopy: Instance, text: str, ask: Ask
) -> tuple[Track, Sequence[tuple[float, bytes]]]:
    body = {
        "model": canopy.model, "prompt": text, "max_tokens": ask.answer, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    request = web.request(
        "POST", "/v1/completions", canopy.port, canopy.key, json.dumps(body).encode()
    )
    track = Track(ask, time.perf_counter())
    try:
        return track, (await connection.ask(request)).pieces
    except (web.Refused, ConnectionError) as error:
        track.error = str(error)
        return track, ()


def read(track: Track, pieces: Sequence[tuple[float, bytes]]) -> Track:
    """Server-sent events, in pieces as they came, into the track.

    An event may carry several tokens and does not say how many; so the answer's tokens, which its last event counts,
    are dealt out evenly among its events.
    """
    times: list[float] = []
    rest, tokens = b"", 0
    for at, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        for event in events:
            if "error" in event:
                track.error = str(event["error"].get("message"))
            tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
            times += [at] if any(choice.get("text") for choice in event.get("choices", ())) else []
    for number, at in enumerate(times):
        track.took(at, tokens * (number + 1) // len(times) - tokens * number // len(times))
    if not tokens and not track.error:
        track.error = "the answer ended without its count of tokens"
    return track
