"""The map: every address of the service."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.urls import path, register_converter

from api import errors
from api.accounts.endpoints import login_by_token
from api.accounts.endpoints import router as accounts
from api.anthropic.endpoints import router as anthropic
from api.arranca.endpoints import router as arranca
from api.batches.endpoints import router as batches
from api.chat.endpoints import router as chat
from api.chat.list_endpoints import router as chat_list
from api.events.endpoints import router as events
from api.feedback.endpoints import router as feedback
from api.files.endpoints import router as files
from api.health.endpoints import healthz, readyz
from api.http import pages
from api.http.documentation import DocumentedAPI
from api.http.parsing import RowIdConverter, StrictParser
from api.identities import endpoints as identities
from api.jobs.endpoints import router as jobs
from api.jobs.stored_endpoints import router as stored_jobs
from api.metrics.endpoints import metrics
from api.openai.endpoints import router as openai
from api.openai.tokenization import bare as bare_tokenization
from api.openai.tokenization import router as tokenization
from api.operate.audit.endpoints import router as audit
from api.operate.dead.endpoints import router as dead
from api.operate.drills.endpoints import router as drills
from api.operate.history.endpoints import router as history
from api.operate.hosts.endpoints import router as hosts
from api.operate.line.endpoints import router as line
from api.operate.logs.endpoints import router as logs
from api.operate.models.endpoints import router as operated_models
from api.operate.nodes.endpoints import router as nodes
from api.operate.queues.endpoints import router as queues
from api.operate.usage.endpoints import router as usage
from api.plans.endpoints import router as plans
from api.pooling.endpoints import bare as bare_pooling
from api.pooling.endpoints import router as pooling
from api.preferences.endpoints import router as preferences
from api.profile.endpoints import router as profile
from api.push.endpoints import router as push
from api.responses.endpoints import router as responses
from api.search.endpoints import router as search
from api.sharing.endpoints import router as sharing
from api.transfer.endpoints import router as transfer
from api.tree.endpoints import router as tree

register_converter(RowIdConverter, "row")

endpoints = DocumentedAPI(
    title="Canopy",
    version="1",
    urls_namespace="endpoints",
    parser=StrictParser(),
    docs_url=None,  # a page of ours: below
    openapi_url="/api/openapi.json",
    docs_decorator=login_required,
)
# Programs' endpoints first: paths are tried in order, and these get thousands of requests a second.
endpoints.add_router("/v1", openai)
endpoints.add_router("/v1", tokenization)
endpoints.add_router("", bare_tokenization)
endpoints.add_router("/v1", pooling)
endpoints.add_router("", bare_pooling)
endpoints.add_router("/v1", files)
endpoints.add_router("/v1", batches)
endpoints.add_router("/v1", stored_jobs)
endpoints.add_router("/v1", responses)
endpoints.add_router("/v1", anthropic)
endpoints.add_router("/arranca", arranca)
endpoints.add_router("/api", accounts)
endpoints.add_router("/api", chat)
for router in (chat_list, search, transfer, sharing, events):
    endpoints.add_router("/api", router)
endpoints.add_router("/api/tree", tree)
endpoints.add_router("/api/operate/audit", audit)
endpoints.add_router("/api/operate/dead", dead)
endpoints.add_router("/api/operate/drills", drills)
endpoints.add_router("/api/operate/history", history)
endpoints.add_router("/api/operate/logs", logs)
endpoints.add_router("/api/operate/line", line)
endpoints.add_router("/api/operate/nodes", nodes)
endpoints.add_router("/api/operate/hosts", hosts)
endpoints.add_router("/api/operate/models", operated_models)
endpoints.add_router("/api/operate/queues", queues)
endpoints.add_router("/api/operate/plans", plans)
endpoints.add_router("/api/operate/usage", usage)
endpoints.add_router("/api/jobs", jobs)
endpoints.add_router("/api/push", push)
endpoints.add_router("/api/account", profile)
endpoints.add_router("/api", preferences)
endpoints.add_router("/api", feedback)
errors.register(endpoints)

urlpatterns = [
    path("", pages.app, name="page"),
    path("api/docs", pages.app),
    path("", endpoints.urls),
    path("c/<str:conversation>", pages.app),
    path("s/<str:token>", pages.shared),
    path("tree/", pages.app),
    path("tree/<slug:section>", pages.app),
    path("share", pages.app),
    path("settings", pages.app),
    path("welcome", pages.app),
    path("connect", pages.connect),
    path("sw.js", pages.service_worker),
    path("login", login_by_token),
    path("oidc/login", identities.begin, name="oidc-login"),
    path("oidc/callback", identities.callback, name="oidc-callback"),
    path("oidc/logout", identities.logout, name="oidc-logout"),
    path("healthz", healthz),
    path("health", healthz),  # the name that most servers of this interface have
    path("readyz", readyz),
    path("metrics", metrics),
    path("admin/", admin.site.urls),
]

handler400 = "api.errors.bad_request"
handler404 = "api.errors.not_found"
handler500 = "api.errors.server_error"
