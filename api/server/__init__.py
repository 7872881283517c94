"""The HTTP server and the ASGI application: connections, limits, responses, reload."""
