"""The frontend's single page, whose own router decides what it shows, and its service worker."""

from collections.abc import Mapping

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from api.http.secret_headers import SECRET_HEADERS

_MISSING = "The pages are not built yet: run ./canopy up, which builds them.\n"
# Both name the assets of one build, which are cached for ever.
_REVALIDATE = {"Cache-Control": "no-cache"}
_BASE = b'<meta name="base-path" content="%s" />'  # in index.html
# The page that asks whether another server answers. Only there may a script reach other servers.
_CONNECT_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src http: https:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)


def address(path: str) -> str:
    """The path of one of our addresses as browsers request it, below CANOPY_URL's."""
    return f"{settings.ENV.base_path}{path}"


async def app(request: HttpRequest, conversation: str = "", section: str = "") -> HttpResponse:
    """The frontend's index.html.

    `conversation` and `section` are for the page's router; the API checks who may have the data
    when the page requests it.
    """
    return _built("index.html", "text/html; charset=utf-8")


def notice(status: int, headers: Mapping[str, str], plain: str) -> HttpResponse:
    """The same page where it says why nothing else is here; its router knows from the address.

    `plain`: a page without design, for before the first build.
    """
    response = _built("index.html", "text/html; charset=utf-8")
    if response.status_code == 503:
        response = HttpResponse(plain)
    response.status_code = status
    for name, value in headers.items():
        response[name] = value
    return response


def is_visit(request: HttpRequest) -> bool:
    """Whether a person's browser opens this address, rather than a program."""
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", "")


async def connect(request: HttpRequest) -> HttpResponse:
    """The same page where the reader chooses a server."""
    response = _built("index.html", "text/html; charset=utf-8")
    response["Content-Security-Policy"] = _CONNECT_POLICY
    return response


async def service_worker(request: HttpRequest) -> HttpResponse:
    """The service worker; at the root, because a worker's scope is the folder of its address."""
    return _built("sw.js", "text/javascript; charset=utf-8")


def _built(name: str, content_type: str) -> HttpResponse:
    """A file of the build: a few kilobytes, in the page cache. 503 before the first build."""
    try:
        content = (settings.FRONTEND_DIST / name).read_bytes()
    except FileNotFoundError:
        return HttpResponse(_MISSING, content_type="text/plain; charset=utf-8", status=503)
    if name.endswith(".html"):
        content = below(settings.ENV.base_path, content)
    return HttpResponse(content, content_type=content_type, headers=_REVALIDATE)


def below(base_path: str, page: bytes) -> bytes:
    """The built page as it is served below a base path, which its scripts read there, too."""
    if not base_path:
        return page
    base = base_path.encode()
    page = page.replace(b'="/static/', b'="%s/static/' % base)
    return page.replace(_BASE % b"", _BASE % base)


async def shared(request: HttpRequest, token: str) -> HttpResponse:
    """The same page for a shared link, whose address is a secret (api/sharing/)."""
    response = await app(request)
    for name, value in SECRET_HEADERS.items():
        response.headers[name] = value
    return response
