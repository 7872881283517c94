"""Django's settings, derived from the environment once (see environment.py)."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import dj_database_url

from api import environment

ENV = environment.current()

BASE_DIR = environment.REPOSITORY
FRONTEND_DIST = BASE_DIR / "frontend" / "dist"

SECRET_KEY = ENV.secret_key()
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", *ENV.hosts, *ENV.public_hosts]
# Behind a proxy that speaks TLS, the browser's origin is https while ours is http.
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in ENV.hosts if host != "*"]
CSRF_TRUSTED_ORIGINS += [ENV.public_url] if ENV.public_url else []
# The proxy's prefix: Django puts it before what it links and redirects to.
FORCE_SCRIPT_NAME = ENV.base_path or None
# server/edge.py makes cookies Secure and sends HSTS for requests that came through TLS.

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "axes",  # wrong passwords; see accounts/lockout.py
    "django.contrib.staticfiles",  # finds the admin's files; asgi.py serves them
    "api.accounts",
    "api.batches",
    "api.chat",
    "api.feedback",
    "api.files",
    "api.idempotency",
    "api.jobs",
    "api.operate.audit",
    "api.operate.dead",
    "api.operate.drills",
    "api.operate.history",
    "api.operate.line",
    "api.operate.models",
    "api.preferences",
    "api.push",
    "api.responses",
]
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
if ENV.identities.ldap:
    AUTHENTICATION_BACKENDS.append("api.identities.ldap_backend.DirectoryBackend")
AXES_HANDLER = "api.accounts.lockout.Handler"
AXES_USERNAME_CALLABLE = "api.accounts.lockout.counted_name"
AXES_CLIENT_IP_CALLABLE = "api.accounts.lockout.client_address"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 1  # the handler says 1 for locked; the bounds are in lockout.py
AXES_COOLOFF_TIME = timedelta(minutes=15)  # lockout.WINDOW
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # or a lock could be made to last for ever
AXES_SENSITIVE_PARAMETERS = ["username", "ip_address", "csrfmiddlewaretoken"]
AXES_VERBOSE = False
SILENCED_SYSTEM_CHECKS = ["axes.W002"]  # lockout.py has the middleware
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# These run on the event loop, without a thread (see http/middleware.py).
MIDDLEWARE = [
    "api.http.middleware.Outermost",
    "api.http.middleware.Sessions",
    "api.http.middleware.Common",
    "api.http.middleware.Csrf",
    "api.http.middleware.Authentication",
    "api.http.middleware.Messages",
    "api.accounts.lockout.Middleware",
]
ROOT_URLCONF = "api.urls"
ASGI_APPLICATION = "api.server.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


APPLICATION_NAME = "canopy"  # of this instance's connections to PostgreSQL


def _database() -> dict[str, Any]:
    """The database, kept open. With its write-ahead log, SQLite's readers never wait."""
    config: dict[str, Any] = dict(
        dj_database_url.parse(ENV.database_url, conn_max_age=None, conn_health_checks=True)
    )
    if config["ENGINE"].endswith("sqlite3"):
        Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        config["OPTIONS"] = {
            "timeout": 10,  # seconds a writer waits for another process
            # Takes the write lock at a transaction's start: upgrading a read lock may fail at once.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        }
    elif config["ENGINE"].endswith("postgresql"):
        # By this name a restore knows of instances that use the database.
        options = {"application_name": APPLICATION_NAME}
        config["OPTIONS"] = {**config.get("OPTIONS", {}), **options}
    return config


DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Browsers share cookies between the ports and paths of a host: each instance has its own names.
_PLACE = ENV.base_path.replace("/", "_")
SESSION_COOKIE_NAME = f"canopy_session_{ENV.port}{_PLACE}" if ENV.port else "canopy_session"
CSRF_COOKIE_NAME = f"csrftoken{_PLACE}"  # frontend/src/lib/address.ts
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{ENV.base_path}/"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "api.errors.csrf_failure"
LOGIN_URL = "admin:login"
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"

# Bytes of a request's body; a little under 1 MiB, so that a full mebibyte is refused.
MAX_BODY = 1_000_000
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY
FILE_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY
FILE_UPLOAD_TEMP_DIR = str(ENV.home / "files" / "incoming")  # a rename away from their place

STATIC_URL = f"{ENV.base_path}/static/"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
USE_I18N = False
LOGGING_CONFIG = None  # see server/logs.py
