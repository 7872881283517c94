"""Which addresses may be sent to.

Browsers name the endpoint, so anybody with an account could make this server send requests to
addresses of their choice. Only the browser vendors' push services are allowed.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

_HOSTS = ("fcm.googleapis.com", "updates.push.services.mozilla.com", "web.push.apple.com")
_DOMAINS = (".push.services.mozilla.com", ".push.apple.com", ".notify.windows.com")


def is_allowed(endpoint: str, more: Sequence[str] = ()) -> bool:
    """Whether the address belongs to a push service; `more`: further origins."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return False
    if "@" in parts.netloc:
        return False
    if f"{parts.scheme}://{parts.netloc}" in more:
        return True
    host = parts.hostname or ""
    is_service = host in _HOSTS or host.endswith(_DOMAINS)
    return parts.scheme == "https" and port in (None, 443) and is_service
