"""Questions over plain sockets: a line of JSON in, lines of JSON out (docs/gateway.md).

A process of its own that asks the API over HTTP. So a socket has the admission, the limits and the
cancellation of every other client by construction, and no socket costs an API process anything.
"""
