"""The application context: what lives as long as the process serves, and who needs what of it.

`server/asgi.py` builds one at start-up, makes it current, and closes it at the end. Rooms get their
collaborators as arguments; endpoints, which Django calls with a request alone, use `app()`. This
holder is the only global state of the API.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from api.accounts.guesses import Guesses
from api.accounts.key_cache import SETTING as KEYS
from api.accounts.key_cache import KeyCache
from api.accounts.password_check import PasswordTurns
from api.answers.record import StoredAnswer
from api.answers.takeover import Takeover
from api.answers.writer import AnswerWriters
from api.batches.manager import BatchManager
from api.batches.pacing import Pacer
from api.catalog import Catalog
from api.chat.announce import answer_ended
from api.chat.models import Message
from api.chat.titles import Titles
from api.environment import Environment
from api.errors import NotRunning
from api.events.hub import Hub
from api.files.disk import ContentStore
from api.health.readiness import Readiness
from api.idempotency.models import KeptRequest
from api.identities.oidc import OidcProvider
from api.jobs.runner import JobRunner
from api.jobs.webhooks import Webhooks
from api.metrics.depths import Depths
from api.metrics.instruments import Instruments
from api.operate.dead.overview import DeadWatch
from api.operate.dead.replays import Replays
from api.operate.drills.conductor import Conductor
from api.operate.history.log import HistoryLog
from api.operate.hosts.hosts import Hosts
from api.operate.line.intake import Intake
from api.operate.line.watch import LineWatch
from api.operate.models.autoscaler import Autoscaler
from api.operate.models.store import Cards
from api.operate.models.trees import ModelTrees
from api.operate.nodes.actions import NodeActions
from api.operate.recorder.recorder import Recorder
from api.operate.usage.log import UsageLog
from api.plans.plans import Plans
from api.plans.streams import AnswerStreams
from api.push.message import Sender
from api.push.notifier import Notifier
from api.requests.accounting import TokenAccounting
from api.requests.active import ActiveRequests
from api.requests.admission import Backlog
from api.requests.open_jobs import OpenJobs
from api.requests.submit import Submitter
from api.requests.waiting_jobs import WaitingJobs
from api.responses.models import StoredResponse
from api.storage.inserts import RowInserts
from api.tree.orphans import OrphanFinder
from api.tree.watch import TreeWatch
from api.webhooks.sender import WebhookSender
from broker.client import Client
from broker.dead_letters import DeadLetters
from broker.tracing import Tracer

STORED = (Message, KeptRequest, StoredResponse)  # the answers that outlive this process


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """See the module; each field's class has the details."""

    client: Client
    keys: KeyCache
    plans: Plans
    answer_streams: AnswerStreams
    guesses: Guesses
    password_turns: PasswordTurns
    oidc: OidcProvider | None  # None: nobody logs in elsewhere
    catalog: Catalog
    readiness: Readiness
    tree: TreeWatch
    node_actions: NodeActions
    hosts: Hosts
    cards: Cards
    model_trees: ModelTrees
    autoscaler: Autoscaler
    drills: Conductor
    recorder: Recorder
    accounting: TokenAccounting
    waiting_jobs: WaitingJobs
    intake: Intake
    line: LineWatch
    backlog: Backlog
    active: ActiveRequests
    submitter: Submitter
    writers: AnswerWriters
    response_inserts: RowInserts[StoredResponse]
    takeover: Takeover
    hub: Hub
    dead_letters: DeadLetters
    dead_watch: DeadWatch
    replays: Replays
    history: HistoryLog
    usage: UsageLog
    titles: Titles
    contents: ContentStore
    batches: BatchManager
    jobs: JobRunner
    webhooks: Webhooks
    instruments: Instruments
    depths: Depths
    notifier: Notifier | None  # None: nothing is configured to send with


def build(client: Client, env: Environment, instruments: Instruments, tracer: Tracer) -> AppContext:
    """A fresh context around a broker client. Nothing runs yet."""
    catalog = Catalog(client, env)
    accounting = TokenAccounting()
    waiting_jobs = WaitingJobs()
    intake = Intake(client.announcements)
    cards = Cards(client.announcements)
    backlog = Backlog(client, waiting_jobs, env)
    active = ActiveRequests(client)
    history = HistoryLog(client.process)
    usage = UsageLog()
    plans = Plans(client.announcements)
    guesses = Guesses()
    keys = KeyCache(guesses)
    client.announcements.listen(KEYS, keys.clear)
    submitter = Submitter(
        client=client,
        catalog=catalog,
        intake=intake,
        cards=cards,
        backlog=backlog,
        waiting_jobs=waiting_jobs,
        open_jobs=OpenJobs(),
        plans=plans,
        accounting=accounting,
        active=active,
        instruments=instruments.jobs,
        history=history,
        usage=usage,
        tracer=tracer,
        job_seconds=env.job_seconds,
    )
    hub = Hub(client.conversations)
    dead_letters = DeadLetters(client.open_session)
    notifier = _notifier(env)
    titles = Titles(client, submitter, hub)
    recorder = Recorder(client.reports, env.management_url)
    recorder.add("orphans", OrphanFinder(client).look)
    tree = TreeWatch(client)
    node_actions, hosts = NodeActions(client, tree), Hosts(client, tree)
    autoscaler = Autoscaler(tree, hosts, node_actions)
    recorder.add("autoscaler", autoscaler.look)
    on_answer = partial(_answer_ended, hub, notifier, titles)
    writers = AnswerWriters(on_answer)
    contents, pacer = ContentStore(env.home), Pacer(client)
    return AppContext(
        client=client,
        keys=keys,
        plans=plans,
        answer_streams=AnswerStreams(),
        guesses=guesses,
        password_turns=PasswordTurns(),
        oidc=OidcProvider(env.identities.oidc) if env.identities.oidc else None,
        catalog=catalog,
        readiness=Readiness(client),
        tree=tree,
        node_actions=node_actions,
        hosts=hosts,
        cards=cards,
        model_trees=ModelTrees(tree, hosts, node_actions, env.default_model),
        autoscaler=autoscaler,
        drills=Conductor(client, tree, hosts),
        recorder=recorder,
        accounting=accounting,
        waiting_jobs=waiting_jobs,
        intake=intake,
        line=LineWatch(client, intake),
        backlog=backlog,
        active=active,
        submitter=submitter,
        writers=writers,
        response_inserts=RowInserts(StoredResponse),
        takeover=Takeover(STORED, client, catalog, submitter, writers),
        hub=hub,
        dead_letters=dead_letters,
        dead_watch=DeadWatch(client),
        replays=Replays(dead_letters, submitter, STORED, on_answer),
        history=history,
        usage=usage,
        contents=contents,
        batches=BatchManager(client, contents, pacer, timedelta(days=env.files.days)),
        jobs=JobRunner(client, active, writers, pacer),
        webhooks=Webhooks(WebhookSender(env.webhook_hosts)),
        instruments=instruments,
        depths=Depths(client),
        notifier=notifier,
        titles=titles,
    )


def _notifier(env: Environment) -> Notifier | None:
    if env.push_contact is None:
        return None
    return Notifier(Sender(env.home / "push.key", env.push_contact), env.push_services)


async def _answer_ended(
    hub: Hub, notifier: Notifier | None, titles: Titles, answer: StoredAnswer
) -> None:
    await answer_ended(hub, answer)
    titles.answer_ended(answer)
    if notifier is not None:
        notifier.answer_ended(answer)


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
