"""The HTTP server: connections and their limits, the socket hand-over, the ASGI application's outermost layers."""
