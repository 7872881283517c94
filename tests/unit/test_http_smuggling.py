"""No byte of a body is taken for a request, and no request is answered twice."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.unit.raw_http import Echo, Response, Site, exchange, serving

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"  # what must never be executed
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
H2C = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nUpgrade: h2c\r\n"
)
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[tuple[Site, Echo]]:
    echo = Echo()
    async with serving(echo) as server:
        yield server, echo


def post(headers: bytes, path: bytes = b"/a") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, headers)


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def statuses(responses: list[Response]) -> list[int]:
    return [response.status for response in responses]


@pytest.mark.parametrize(
    "upgrade", [H2C, WEBSOCKET, b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n"]
)
@pytest.mark.parametrize("framing", ["sized", "chunked"])
@pytest.mark.parametrize("cut", [0, 1, 20, 10_000])
async def test_an_upgrade_is_ignored_and_its_body_belongs_to_it(
    site: tuple[Site, Echo], upgrade: bytes, framing: str, cut: int
) -> None:
    """`cut`: how many bytes of the body come in the packet of the head."""
    server, echo = site
    if framing == "sized":
        head, body = post(upgrade + sized(HIDDEN)), HIDDEN
    else:
        head, body = post(upgrade + b"Transfer-Encoding: chunked\r\n"), chunked(HIDDEN)
    answers = await exchange(server, head + body[:cut], body[cut:] + LAST)
    assert statuses(answers) == [200, 200]
    assert answers[0].body == b"POST /a " + HIDDEN
    assert [path for _, path, _ in echo.requests] == ["/a", "/last"]


async def test_upgrades_follow_each_other_on_one_connection(site: tuple[Site, Echo]) -> None:
    server, echo = site
    request = post(H2C + sized(b"one")) + b"one"
    head = b"GET /g HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n"
    answers = await exchange(server, request + head + request, b"\r\n" + request + LAST)
    assert statuses(answers) == [200] * 5
    assert [body for _, _, body in echo.requests] == [b"one", b"", b"one", b"one", b""]


async def test_a_head_in_single_bytes_is_the_same_request(site: tuple[Site, Echo]) -> None:
    server, echo = site
    head = post(H2C + b"Connection: close\r\n" + sized(b"body"))
    packets = [head[i : i + 40] for i in range(0, len(head), 40)]
    answers = await exchange(server, *packets, b"body")
    assert statuses(answers) == [200]
    assert echo.requests == [("POST", "/a", b"body")]


AMBIGUOUS = {
    "CL and TE": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "TE and CL": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two CL": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "two equal CL": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "CL list": b"Content-Length: 5, 5\r\n",
    "CL plus": b"Content-Length: +5\r\n",
    "CL minus": b"Content-Length: -5\r\n",
    "CL inner space": b"Content-Length: 5 0\r\n",
    "CL hex": b"Content-Length: 0x5\r\n",
    "CL underscore": b"Content-Length: 1_0\r\n",
    "CL empty": b"Content-Length:\r\n",
    "CL huge": b"Content-Length: 99999999999999999999999999\r\n",
    "CL vertical tab": b"Content-Length: \x0b5\r\n",
    "CL space before colon": b"Content-Length : 5\r\n",
    "TE space before colon": b"Transfer-Encoding : chunked\r\n",
    "TE identity": b"Transfer-Encoding: identity\r\n",
    "TE chunked, identity": b"Transfer-Encoding: chunked, identity\r\n",
    "TE identity, chunked": b"Transfer-Encoding: identity, chunked\r\n",
    "TE gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "TE chunked, chunked": b"Transfer-Encoding: chunked, chunked\r\n",
    "TE twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "TE identity and chunked": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    "TE chunked and identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "TE xchunked": b"Transfer-Encoding: xchunked\r\n",
    "TE quoted": b'Transfer-Encoding: "chunked"\r\n',
    "TE parameter": b"Transfer-Encoding: chunked;q=1\r\n",
    "TE vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "TE empty": b"Transfer-Encoding:\r\n",
    "TE comma": b"Transfer-Encoding: chunked,\r\n",
    "TE folded": b"Transfer-Encoding:\r\n chunked\r\n",
    "obs-fold": b"X: a\r\n b\r\n",
    "bare LF": b"X: a\nContent-Length: 5\r\n",
    "bare CR": b"X: a\rContent-Length: 5\r\n",
    "NUL": b"X: a\0b\r\n",
    "no name": b": a\r\n",
    "two hosts": b"Host: y\r\n",
}


@pytest.mark.parametrize("upgrade", [b"", H2C], ids=["plain", "h2c"])
@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_ambiguous_framing_is_refused_once_and_ends_the_connection(
    site: tuple[Site, Echo], headers: bytes, upgrade: bytes
) -> None:
    server, echo = site
    answers = await exchange(server, post(upgrade + headers) + chunked(HIDDEN) + HIDDEN, HIDDEN)
    assert statuses(answers) in ([400], [501])
    assert answers[0].headers["connection"] == "close"
    assert answers[0].headers["content-type"] == "application/json"
    assert echo.requests == []


BAD_CHUNKS = {
    "size plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "size hex prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size space": b"5 \r\nhello\r\n0\r\n\r\n",
    "size empty": b"\r\nhello\r\n0\r\n\r\n",
    "size huge": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "bare LF in extension": b"5;a\nhello\r\n0\r\n\r\n",
    "CL in trailer": b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("upgrade", [b"", H2C], ids=["plain", "h2c"])
@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_bad_chunks_are_refused_once(
    site: tuple[Site, Echo], body: bytes, upgrade: bytes
) -> None:
    server, echo = site
    head = post(upgrade + b"Transfer-Encoding: chunked\r\n")
    answers = await exchange(server, head + body + HIDDEN, HIDDEN)
    assert statuses(answers) == [400]
    assert echo.requests == []


async def test_chunk_extensions_and_trailers_change_nothing(site: tuple[Site, Echo]) -> None:
    server, echo = site
    head = post(b"Transfer-Encoding: Chunked\r\n")
    body = b'5;a=b;c="d"\r\nhello\r\n0\r\nX-Forwarded-Proto: https\r\nHost: y\r\n\r\n'
    assert statuses(await exchange(server, head + body + LAST)) == [200, 200]
    assert echo.requests == [("POST", "/a", b"hello"), ("GET", "/last", b"")]


async def test_trailers_do_not_become_headers() -> None:
    seen = []

    async def application(scope: object, receive: object, send: object) -> None:
        await Echo()(scope, receive, send)
        seen.extend(scope["headers"])  # type: ignore[index]

    async with serving(application) as server:
        head = post(b"Transfer-Encoding: chunked\r\nConnection: close\r\n")
        await exchange(server, head, b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    assert b"authorization" not in [name for name, _ in seen]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"CONNECT x:80 HTTP/1.1", 405),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.9", 400),
        (b"PRI * HTTP/2.0", 400),
        (b"NONSENSE / HTTP/1.1", 400),
        (b"GET /\xff HTTP/1.1", 400),
    ],
)
async def test_what_is_no_request_here_is_refused(
    site: tuple[Site, Echo], request_line: bytes, status: int
) -> None:
    server, echo = site
    assert statuses(await exchange(server, request_line + b"\r\nHost: x\r\n\r\n" + HIDDEN)) == [
        status
    ]
    assert echo.requests == []


async def test_a_host_is_needed_with_1_1_alone(site: tuple[Site, Echo]) -> None:
    server, _ = site
    assert statuses(await exchange(server, b"GET / HTTP/1.1\r\n\r\n")) == [400]
    assert statuses(await exchange(server, b"GET / HTTP/1.0\r\n\r\n")) == [200]


async def test_pipelined_requests_are_answered_in_order(site: tuple[Site, Echo]) -> None:
    server, echo = site
    many = b"".join(post(sized(b"hello"), b"/%d" % number) + b"hello" for number in range(20))
    answers = await exchange(server, many, LAST)
    assert [answer.body.split()[1] for answer in answers] == [b"/%d" % n for n in range(20)] + [
        b"/last"
    ]
    assert len(echo.requests) == 21


async def test_garbage_behind_a_request_leaves_its_answer_whole(site: tuple[Site, Echo]) -> None:
    server, echo = site
    held = b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n"
    echo.hold.set()
    answers = await exchange(server, held + b"garbage\r\n\r\n" + HIDDEN)
    assert [answer.body for answer in answers] == [b"begunended"]
    assert [path for _, path, _ in echo.requests] == ["/hold"]


async def test_a_request_that_turns_out_malformed_in_the_queue_is_not_executed(
    site: tuple[Site, Echo],
) -> None:
    server, echo = site
    first = b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"
    bad = post(b"Transfer-Encoding: chunked\r\n") + b"zz\r\n"
    answers = await exchange(server, first + bad + HIDDEN)
    assert [answer.body for answer in answers] == [b"GET /first "]
    assert [path for _, path, _ in echo.requests] == ["/first"]


async def test_nothing_is_executed_behind_a_close(site: tuple[Site, Echo]) -> None:
    server, echo = site
    assert statuses(await exchange(server, LAST + HIDDEN, HIDDEN)) == [200]
    assert [path for _, path, _ in echo.requests] == ["/last"]


async def test_http_1_0_gets_no_chunks(site: tuple[Site, Echo]) -> None:
    server, echo = site
    echo.hold.set()
    for path, body in ((b"/unsized", b"GET /unsized "), (b"/hold", b"begunended")):
        [answer] = await exchange(server, b"GET %b HTTP/1.0\r\n\r\n" % path)
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body == body
