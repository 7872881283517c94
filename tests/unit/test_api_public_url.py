"""CANOPY_URL: which hosts are taken, and how browsers write them."""

import pytest

from api.public_url import origin_of, parse


@pytest.mark.parametrize(
    "host",
    [
        "*",  # any host, to Django
        ".example.org",  # and any below it
        "*.example.org",
        "a b",
        "a,b",
        "a;b",
        "a%20b",
        "<x>",
        'a"b',
        "a..b",
        "-a",
        "a-",
        "x:0",
        "[::1%25eth0]",
        "a" * 254,
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert origin_of(f"https://{host}") is None
    with pytest.raises(ValueError, match=r"must be like https://chat\.example\.org"):
        parse(f"https://{host}/canopy")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Chat.Example.org:443", "https://chat.example.org"),
        ("http://under_score:8080", "http://under_score:8080"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://[0:0::1]:8443", "https://[::1]:8443"),
        ("http://192.0.2.7", "http://192.0.2.7"),
    ],
)
def test_a_host_is_written_as_browsers_do(text: str, origin: str) -> None:
    assert origin_of(text) == origin
    assert parse(f"{text}/canopy/") == (origin, "/canopy")
