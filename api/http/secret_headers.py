"""Headers of a response whose address is a secret."""

# Nothing keeps what is behind it, no request that follows names it, and no search engine lists it.
SECRET_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex, nofollow",
}
