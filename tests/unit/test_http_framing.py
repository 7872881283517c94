"""Random requests in random packets: each is received once, whole and in order."""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from api.server.exchange import LingeringTransport
from tests.unit.raw_http import SECONDS, Echo, Response, read_responses, serving

BAIT = (
    b"POST /hidden HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"  # a body that is a request
)
UPGRADES = (
    b"",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
    b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n",
    b"Connection: keep-alive\r\n",
)


@dataclass(frozen=True)
class Sent:
    """A request: what it looks like on the wire, and what the application shall receive."""

    wire: bytes
    body: bytes


bodies = st.one_of(
    st.just(b""),
    st.just(BAIT),
    st.just(b"0\r\n\r\n" + BAIT),
    st.binary(max_size=300),
    st.just(b"\r\n" * 5),
)


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks of random sizes, with extensions and trailers."""
    wire = b""
    rest = body
    while rest:
        size = draw(st.integers(1, len(rest)))
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b"']))
        wire += b"%x%b\r\n%b\r\n" % (size, extension, rest[:size])
        rest = rest[size:]
    trailer = draw(st.sampled_from([b"", b"X-Trailer: a\r\n"]))
    return wire + b"0\r\n" + trailer + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """One well-formed request."""
    body = draw(bodies)
    upgrade = draw(st.sampled_from(UPGRADES))
    empty_lines = draw(st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]))
    if draw(st.booleans()):
        framing, payload = b"Transfer-Encoding: chunked\r\n", draw(chunked(body))
    else:
        framing, payload = b"Content-Length: %d\r\n" % len(body), body
    order = draw(st.permutations([b"Host: x\r\n", upgrade, framing]))
    head = b"POST /seen HTTP/1.1\r\n" + b"".join(order) + b"\r\n"
    return Sent(empty_lines + head + payload, body)


@st.composite
def packets(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    """The bytes, cut at random places."""
    cuts = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    edges = [0, *cuts, len(wire)]
    return [wire[begin:end] for begin, end in itertools.pairwise(edges)]


async def talk(sent: list[bytes]) -> tuple[Echo, list[Response]]:
    """Sends the packets one by one, then the end; returns what was received on both sides."""
    echo = Echo()
    async with serving(echo) as site, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*site.address)
        answers = asyncio.create_task(read_responses(reader))
        for packet in sent:
            writer.write(packet)
            await asyncio.sleep(0.001)  # its own packet for the server
        responses = await answers
        writer.close()
    return echo, responses


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_request_is_received_once_and_whole(data: st.DataObject) -> None:
    sent = data.draw(st.lists(requests(), min_size=1, max_size=6))
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    wire = b"".join(request.wire for request in sent) + last
    echo, responses = asyncio.run(talk(data.draw(packets(wire))))
    assert echo.requests == [
        *(("POST", "/seen", request.body) for request in sent),
        ("GET", "/last", b""),
    ]
    assert [response.status for response in responses] == [200] * (len(sent) + 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_request_is_the_last_one(data: st.DataObject) -> None:
    """One byte is changed: after a refusal nothing more is executed."""
    sent = data.draw(st.lists(requests(), min_size=1, max_size=4))
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    wire = bytearray(b"".join(request.wire for request in sent) + last)
    place = data.draw(st.integers(0, len(wire) - 1))
    wire[place] = data.draw(st.integers(0, 255))
    # An end that closes whatever the damage left open, without being a request itself.
    echo, responses = asyncio.run(
        talk([*data.draw(packets(bytes(wire))), b"\r\n\r\n\0\r\n\r\n" * 700])
    )
    refused = [response.status for response in responses if response.status != 200]
    assert len(refused) <= 1
    assert [response.status for response in responses][-len(refused) :] == refused or not refused
    assert len(responses) <= len(sent) + 2
    assert len(echo.requests) >= len(responses) - len(refused)


class Wire:
    """A transport that remembers what was written, write by write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False


def lingering(wire: Any) -> LingeringTransport:
    return LingeringTransport(wire, lambda: wire.written.append(b"closed"))


async def test_head_and_body_leave_together() -> None:
    wire = Wire()
    transport = lingering(wire)
    for part in (b"head ", b"body", b"more"):
        transport.write(part)
    assert wire.written == [b"head body", b"more"]


async def test_a_head_without_a_body_leaves_in_the_next_turn_of_the_loop() -> None:
    wire = Wire()
    transport = lingering(wire)
    transport.write(b"head")
    await asyncio.sleep(0)
    transport.write(b"body")
    assert wire.written == [b"head", b"body"]


async def test_a_held_head_leaves_before_the_connection_closes() -> None:
    wire = Wire()
    transport = lingering(wire)
    transport.write(b"head")
    transport.close()
    assert wire.written == [b"head", b"closed"]
