"""What a parent knows of the jobs that it gave to joined nodes.

A joined node may give a job back, and could change whose it is on the way, so that another user's
share pays for it. The parent puts back what it knows: of the latest jobs it remembers it, and of
older ones that still run there it reads what it has signed into the job itself.
"""

import hashlib
import hmac
import secrets
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from broker.wire import Job
from topology.limits import MAX_JOINED_SLOTS

MAX_JOBS = 10_000  # remembered, the latest
# Jobs that one node may give back beyond the remembered ones: as many as it can run, because after
# a restart none is remembered. Bounded, because it can give the same one back again and again.
MAX_UNKNOWN = MAX_JOINED_SLOTS
UNKNOWN_PER_SECOND = 1.0  # more of them are taken back, up to MAX_UNKNOWN

_SIGNATURE_LETTERS = 32  # 128 bits
_ACCOUNTING = (
    "user",
    "key",
    "job_class",
    "work",
    "expected",
    "most_running",
    "most_waiting",
    "share",
)


class GivenJobs:
    """The accounting of jobs by child and request. `clock`: seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._given: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._users: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by child
        self._unknown: dict[str, tuple[float, float]] = {}  # by child: how many were, and when
        self._clock = clock
        self._key = secrets.token_bytes(32)

    def give(self, child: str, job: Job) -> Job:
        """The job goes to that joined node; returns it with the accounting signed into it."""
        self._forget(child, job.request_id)
        accounting = _accounting(job)
        self._given[child, job.request_id] = accounting
        self._users[child][job.user] += 1
        self._change_unknown(child, -1)
        while len(self._given) > MAX_JOBS:
            self._forget(*next(iter(self._given)))
        text = msgspec.json.encode(list(accounting.values())).decode()
        signed = self._signature(child, job.request_id, text) + text
        return msgspec.structs.replace(job, signed_accounting=signed)

    def possible_users(self, child: str, users: Mapping[str, int]) -> dict[str, int]:
        """The jobs by user that the child says it has, as far as it was given them: invented ones
        would keep their users' own jobs waiting.
        """
        given = self._users.get(child, Counter())
        return {user: min(count, given[user]) for user, count in users.items() if given[user]}

    def take_back(self, child: str, job: Job) -> Job | None:
        """The job with the accounting that it had; None if the node cannot have had it.

        What was given before a restart of this node is nobody's then, the cheapest, and last.
        """
        fields = self._forget(child, job.request_id)
        if fields is None:
            if self._unknown_now(child) + 1 > MAX_UNKNOWN:
                return None
            self._change_unknown(child, 1)
            fields = self._signed(child, job) or _NOBODYS
        return msgspec.structs.replace(job, **fields, signed_accounting="")

    def _signed(self, child: str, job: Job) -> dict[str, Any] | None:
        """What this parent has signed into the job when it gave it to that child."""
        signature = job.signed_accounting[:_SIGNATURE_LETTERS]
        text = job.signed_accounting[_SIGNATURE_LETTERS:]
        genuine = self._signature(child, job.request_id, text)
        if not hmac.compare_digest(genuine.encode(), signature.encode(errors="surrogatepass")):
            return None
        return dict(zip(_ACCOUNTING, msgspec.json.decode(text), strict=True))

    def _signature(self, child: str, request_id: str, text: str) -> str:
        message = msgspec.json.encode((child, request_id, text))
        digest = hashlib.blake2b(message, key=self._key, digest_size=_SIGNATURE_LETTERS // 2)
        return digest.hexdigest()

    def _unknown_now(self, child: str) -> float:
        number, at = self._unknown.get(child, (0.0, 0.0))
        return max(0.0, number - (self._clock() - at) * UNKNOWN_PER_SECOND)

    def _change_unknown(self, child: str, change: int) -> None:
        number = self._unknown_now(child) + change
        if number > 0:
            self._unknown[child] = number, self._clock()
        else:
            self._unknown.pop(child, None)

    def _forget(self, child: str, request_id: str) -> dict[str, Any] | None:
        fields = self._given.pop((child, request_id), None)
        if fields is not None:
            users = self._users[child]
            users[fields["user"]] -= 1
            if not users[fields["user"]]:
                del users[fields["user"]]
            if not users:
                del self._users[child]
        return fields


def _accounting(job: Job) -> dict[str, Any]:
    return {field: getattr(job, field) for field in _ACCOUNTING}


_NOBODYS = _accounting(Job(request_id="", model="", reply_to="", created=0, job_class="batch"))
