"""The map: every address of the service."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.urls import path, register_converter

from api import errors
from api.accounts.endpoints import login_by_token
from api.accounts.endpoints import router as accounts
from api.arranca.endpoints import router as arranca
from api.chat.endpoints import router as chat
from api.health.endpoints import healthz, readyz
from api.http import pages
from api.http.documentation import DocumentedAPI
from api.http.parsing import RowIdConverter, StrictParser
from api.jobs.endpoints import router as jobs
from api.openai.endpoints import router as openai
from api.tree.endpoints import router as tree

register_converter(RowIdConverter, "row")

endpoints = DocumentedAPI(
    title="Canopy",
    version="1",
    urls_namespace="endpoints",
    parser=StrictParser(),
    docs_url="/api/docs",
    openapi_url="/api/openapi.json",
    docs_decorator=login_required,
)
# Programs' endpoints first: paths are tried in order, and these get thousands of requests a second.
endpoints.add_router("/v1", openai)
endpoints.add_router("/arranca", arranca)
endpoints.add_router("/api", accounts)
endpoints.add_router("/api", chat)
endpoints.add_router("/api/tree", tree)
endpoints.add_router("/api/jobs", jobs)
errors.register(endpoints)

urlpatterns = [
    path("", pages.app),
    path("", endpoints.urls),
    path("c/<str:conversation>", pages.app),
    path("tree/", pages.app),
    path("login", login_by_token),
    path("healthz", healthz),
    path("health", healthz),  # the name that most servers of this interface have
    path("readyz", readyz),
    path("admin/", admin.site.urls),
]

handler400 = "api.errors.bad_request"
handler404 = "api.errors.not_found"
handler500 = "api.errors.server_error"
