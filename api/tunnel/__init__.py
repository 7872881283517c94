"""AMQP through a WebSocket, for nodes on machines that reach only the pages."""
