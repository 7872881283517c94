"""The frontend's single page; its own router decides what it shows."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse

_MISSING = "The pages are not built yet: run ./canopy up, which builds them.\n"


async def app(request: HttpRequest, conversation: str = "") -> HttpResponse:
    """The frontend's index.html, never cached: it names the assets, which are cached for ever.

    `conversation` is for the page's router; the API checks its owner when the page requests it.
    """
    index = settings.FRONTEND_DIST / "index.html"
    try:
        page = index.read_bytes()  # a few kilobytes, in the page cache
    except FileNotFoundError:
        return HttpResponse(_MISSING, content_type="text/plain; charset=utf-8", status=503)
    return HttpResponse(page, headers={"Cache-Control": "no-cache"})
