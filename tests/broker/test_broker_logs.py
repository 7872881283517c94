"""The broker's own log is bounded while it runs."""

from pathlib import Path

import pika

from tests.realbroker import Server

BYTES = 4000


def test_the_brokers_log_rotates_by_size(tmp_path: Path) -> None:
    """With the files that rabbitmq.conf allows; only their size is smaller here."""
    server = Server(tmp_path)
    (tmp_path / "broker" / "conf.d" / "95-size.conf").write_text(
        f"log.file.rotation.size = {BYTES}\n"
    )
    try:
        server.launch()
        server.wait_accepting()
        for _ in range(60):  # each leaves some lines
            pika.BlockingConnection(pika.URLParameters(server.address.amqp["node"])).close()
    finally:
        server.close()
    files = list((tmp_path / "logs").glob("canopy@localhost.log*"))
    assert len(files) == 3, files
    assert all(file.stat().st_size < 2 * BYTES for file in files)
