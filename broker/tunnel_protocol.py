"""What both ends of a tunnel agree on: AMQP in the binary messages of a WebSocket."""

PATH = "/broker/tunnel"
SUBPROTOCOL = "amqp"
READ_BYTES = 64 * 1024  # at once, from either side
LARGEST_MESSAGE = 1 << 20
# A cut link is noticed within the sum of these: proxies between the machines hide it from kernels.
PING_SECONDS = 2.0
PONG_SECONDS = 6.0


def is_tunnel(path: str) -> bool:
    """Whether tunnels are at that path. A proxy may have put the pages below another one."""
    return path.endswith(PATH)
