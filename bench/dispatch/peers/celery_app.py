"""Celery: the application of worker and driver. BENCH_TUNED=1: as its guide to short tasks advises, and no job lost."""

import os

from celery import Celery  # type: ignore[import-not-found]

TUNED = os.environ["BENCH_TUNED"] == "1"

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"], backend="rpc://")
app.conf.update(
    task_default_queue=os.environ["BENCH_QUEUE"], broker_connection_retry_on_startup=True
)
if TUNED:
    app.conf.update(
        task_acks_late=True,  # as Canopy does: the job of a worker that dies is delivered again
        worker_prefetch_multiplier=128,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_disable_rate_limits=True,
    )


@app.task
def echo(text: str) -> str:
    """Costs nothing."""
    return text
