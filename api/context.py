"""The application context: what lives as long as the process serves, and who needs what of it.

`server/asgi.py` builds one at start-up, makes it current, and closes it at the end. Rooms get their
collaborators as arguments; endpoints, which Django calls with a request alone, use `app()`. This
holder is the only global state of the API.
"""

from dataclasses import dataclass

from api.accounts.keys import KeyCache
from api.answers.takeover import Takeover
from api.answers.writer import AnswerWriters
from api.catalog import Catalog
from api.chat.models import Message
from api.environment import Environment
from api.errors import NotRunning
from api.health.readiness import Readiness
from api.idempotency.models import KeptRequest
from api.requests.accounting import TokenAccounting
from api.requests.active import ActiveRequests
from api.requests.admission import Backlog
from api.requests.submit import Submitter
from api.requests.waiting_jobs import WaitingJobs
from api.tree.watch import TreeWatch
from broker.client import Client

STORED = (Message, KeptRequest)  # the answers that outlive this process


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """See the module; each field's class has the details."""

    client: Client
    keys: KeyCache
    catalog: Catalog
    readiness: Readiness
    tree: TreeWatch
    accounting: TokenAccounting
    waiting_jobs: WaitingJobs
    backlog: Backlog
    active: ActiveRequests
    submitter: Submitter
    writers: AnswerWriters
    takeover: Takeover


def build(client: Client, env: Environment) -> AppContext:
    """A fresh context around a broker client. Nothing runs yet."""
    catalog = Catalog(client, env)
    accounting = TokenAccounting()
    waiting_jobs = WaitingJobs()
    backlog = Backlog(client, waiting_jobs, env)
    active = ActiveRequests(client)
    submitter = Submitter(
        client=client,
        catalog=catalog,
        backlog=backlog,
        waiting_jobs=waiting_jobs,
        accounting=accounting,
        active=active,
        job_seconds=env.job_seconds,
    )
    writers = AnswerWriters()
    return AppContext(
        client=client,
        keys=KeyCache(),
        catalog=catalog,
        readiness=Readiness(client),
        tree=TreeWatch(client),
        accounting=accounting,
        waiting_jobs=waiting_jobs,
        backlog=backlog,
        active=active,
        submitter=submitter,
        writers=writers,
        takeover=Takeover(STORED, client, catalog, submitter, writers),
    )


_current: AppContext | None = None


def app() -> AppContext:
    """The current context. Raises NotRunning outside the application's life."""
    if _current is None:
        raise NotRunning
    return _current


def set_current(context: AppContext | None) -> None:
    """Makes `context` the one that `app()` returns; None at the application's end."""
    global _current  # noqa: PLW0603 - the one global of the API
    _current = context
