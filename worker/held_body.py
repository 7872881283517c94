"""Keeps the content of large waiting jobs once, as the bytes that came.

Decoded, a text takes one, two or four bytes a character, beside the message it was decoded from: thousands of long
prompts may wait at a root. So a large job waits without its content, which is decoded again when it goes.
"""

import msgspec

from broker.session import Delivery
from broker.wire import Job, decode

LARGE_BYTES = 16 * 1024  # of a message; decoding a smaller one again would cost more than it saves


def without_content(job: Job, delivery: Delivery) -> Job:
    """What to keep of a job that waits. Either its content or the delivery's body is given up."""
    if len(delivery.body) < LARGE_BYTES:
        delivery.body = b""
        return job
    return msgspec.structs.replace(job, messages=None, prompt=None, delivered="", delivered_ids=())


def with_content(job: Job, delivery: Delivery) -> Job:
    """The whole job again; `restarted` is all that changes while one waits."""
    if not delivery.body:
        return job
    return msgspec.structs.replace(decode(delivery.body, Job), restarted=job.restarted)
