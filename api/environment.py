"""What the launcher tells this process: the only reader of environment variables in the API.

Parsed once, when Django reads its settings (`settings.ENV`); what cannot be used is refused.
"""

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from api import database_url, model_aliases, public_url
from api.files.limits import MOST_DAYS, FileLimits
from api.identities import settings as identities
from api.identities.settings import IdentitySettings
from api.public_url import bracketed, origin_of
from api.server.limits import Limits, Network
from broker import logs
from broker.logs import LogSettings
from broker.tracing import Tracer, make_tracer
from topology.names import BadName
from topology.prefix import with_prefix

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST_JOB = 86_400.0  # seconds
# Room for two of the largest prompts, so that such a prompt is not refused for ever.
LEAST_BACKLOG_BYTES = 10_000_000
LOOPBACK = "127.0.0.0/8 ::1/128"
ANY_ORIGIN = "*"
_LONGEST_CONTACT = 200  # characters
_LEAST_SECRET = 32  # characters
_LEAST_TOKEN = 16  # characters


class BadEnvironment(ValueError):
    """An environment variable that cannot be used; the text names it. The operator's to mend."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The settings of this process. `models`: what `up` serves; the first one is the default."""

    home: Path
    amqp_url: str
    management_url: str
    secret_file: Path
    database_url: str
    models: tuple[str, ...]
    hosts: tuple[str, ...]  # further names under which users reach the service
    port: int | None
    queue_type: str
    backlog: int  # jobs of one model that may wait before users are limited (requests/quota.py)
    backlog_bytes: int  # the same for all prompts that wait in this process
    job_seconds: float  # the deadline of a job whose client names none
    public_url: str | None = None  # scheme, host and port under which users reach the service
    base_path: str = ""  # below which it lies there, such as /canopy; "" at the root
    proxies: tuple[Network, ...] = ()  # whose X-Forwarded-Proto is believed
    cors_origins: tuple[str, ...] = ()  # pages that may use /v1/; ANY_ORIGIN: all
    push_contact: str | None = None  # mailto: or https:, for push services; None: no notifications
    push_services: tuple[str, ...] = ()  # origins that may be sent to beside the browser vendors'
    model_aliases: tuple[tuple[str, str], ...] = ()  # see model_aliases.py
    process: str = "api"  # this process's name among those of its instance
    metrics_token: str | None = None  # who sends it may read /metrics
    operators_see_prompts: bool | None = None  # None: administrators decide on the page
    limits: Limits = field(default_factory=Limits)
    files: FileLimits = field(default_factory=FileLimits)
    tunnel: bool = False  # nodes may reach the broker through this process
    webhook_hosts: frozenset[str] = frozenset()  # that may be in a private network
    identities: IdentitySettings = field(default_factory=IdentitySettings)

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none."""
        return self.models[0] if self.models else None

    @property
    def public_hosts(self) -> tuple[str, ...]:
        """The host of `public_url` as a Host header names it, without its port."""
        if self.public_url is None:
            return ()
        return (bracketed(urlsplit(self.public_url).hostname or ""),)

    @property
    def address(self) -> str | None:
        """The whole CANOPY_URL, without a slash at its end."""
        return None if self.public_url is None else self.public_url + self.base_path

    def secret_key(self) -> str:
        """Django's secret key, created on first use and readable by the owner alone."""
        self.secret_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.secret_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return _existing_key(self.secret_file)
        with os.fdopen(handle, "w") as file:
            key = secrets.token_urlsafe(48)
            file.write(key)
        return key


def use_settings(port: int | None = None) -> None:
    """Names Django's settings, and the port where the launcher has not. Before Django is used."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
    if port is not None:
        os.environ.setdefault("CANOPY_PORT", str(port))


def log_settings() -> tuple[LogSettings, str]:
    """How this process writes its log, and its name there. Raises BadEnvironment."""
    try:
        return logs.read(os.environ), _process(os.environ)
    except ValueError as error:
        raise BadEnvironment(str(error)) from error


def _process(environ: Mapping[str, str]) -> str:
    return environ.get("CANOPY_PROCESS", "")[:_LONGEST_CONTACT] or "api"


def tracer(process: str) -> Tracer:
    """The tracer that OpenTelemetry's own variables ask for. `process`: this one's name."""
    return make_tracer("canopy-api", process, os.environ)


def current() -> Environment:
    """This process's environment. Raises BadEnvironment."""
    return read(os.environ)


def read(environ: Mapping[str, str]) -> Environment:
    """Parses the environment. Raises BadEnvironment."""
    home = Path(environ.get("CANOPY_HOME") or REPOSITORY / "var").resolve()
    # CANOPY_PUBLIC_URL: its former name
    origin, base_path = _url(environ.get("CANOPY_URL") or environ.get("CANOPY_PUBLIC_URL", ""))
    return Environment(
        home=home,
        amqp_url=_broker_url(environ, "CANOPY_AMQP_URL", "amqp://127.0.0.1:5672/"),
        management_url=_broker_url(environ, "CANOPY_MANAGEMENT_URL", ""),
        secret_file=Path(environ.get("CANOPY_SECRET_FILE") or home / "secret.key"),
        database_url=_database_url(environ, home),
        models=_models(environ.get("CANOPY_MODELS", "")),
        hosts=tuple(environ.get("CANOPY_HOSTS", "").replace(",", " ").split()),
        port=_port(environ.get("CANOPY_PORT", "")),
        queue_type=environ.get("CANOPY_QUEUE_TYPE") or "classic",
        backlog=_amount(environ, "CANOPY_BACKLOG", "jobs", default=1000, least=1),
        backlog_bytes=_amount(
            environ, "CANOPY_BACKLOG_BYTES", "bytes", default=200_000_000, least=LEAST_BACKLOG_BYTES
        ),
        job_seconds=_job_seconds(environ.get("CANOPY_JOB_SECONDS") or "3600"),
        public_url=origin,
        base_path=base_path,
        proxies=_networks(environ.get("CANOPY_TRUSTED_PROXIES") or LOOPBACK),
        cors_origins=_origins(environ.get("CANOPY_CORS_ORIGINS") or ANY_ORIGIN),
        push_contact=_push_contact(environ.get("CANOPY_PUSH_CONTACT", "")),
        push_services=_push_services(environ.get("CANOPY_PUSH_SERVICES", "")),
        model_aliases=_aliases(environ.get("CANOPY_MODEL_ALIASES", "")),
        process=_process(environ),
        metrics_token=_metrics_token(environ.get("CANOPY_METRICS_TOKEN", "")),
        operators_see_prompts=_yes_or_no(environ, "CANOPY_OPERATORS_SEE_PROMPTS"),
        limits=Limits(
            connections=_count(environ, "CANOPY_CONNECTIONS", Limits.connections),
            peer_connections=_count(environ, "CANOPY_PEER_CONNECTIONS", Limits.peer_connections),
        ),
        files=_file_limits(environ),
        tunnel=environ.get("CANOPY_TUNNEL", "") == "1",
        webhook_hosts=frozenset(
            environ.get("CANOPY_WEBHOOK_HOSTS", "").lower().replace(",", " ").split()
        ),
        identities=_identities(environ),
    )


def _broker_url(environ: Mapping[str, str], variable: str, default: str) -> str:
    try:
        return with_prefix(environ.get(variable, default), environ.get("CANOPY_PREFIX", ""))
    except BadName as error:
        raise BadEnvironment(f"CANOPY_PREFIX: {error}") from error


def _database_url(environ: Mapping[str, str], home: Path) -> str:
    url = environ.get("DATABASE_URL") or database_url.of_file(home / "db.sqlite3")
    try:
        database_url.check(url)
    except ValueError as error:
        raise BadEnvironment(f"DATABASE_URL {error}, or sqlite:///FILE") from None
    return url


def _identities(environ: Mapping[str, str]) -> IdentitySettings:
    try:
        wanted = identities.read(environ)
    except ValueError as error:
        raise BadEnvironment(str(error)) from error
    if wanted.ldap and importlib.util.find_spec("django_auth_ldap") is None:
        raise BadEnvironment(
            "CANOPY_LDAP_URL needs further packages: ./canopy up installs them, "
            "or pip install -r requirements-ldap.txt"
        )
    return wanted


def _file_limits(environ: Mapping[str, str]) -> FileLimits:
    default = FileLimits()
    limits = FileLimits(
        file_bytes=_amount(
            environ, "CANOPY_FILE_BYTES", "bytes", default=default.file_bytes, least=1
        ),
        user_bytes=_amount(
            environ, "CANOPY_USER_FILE_BYTES", "bytes", default=default.user_bytes, least=1
        ),
        user_files=_count(environ, "CANOPY_USER_FILES", default.user_files),
        days=_count(environ, "CANOPY_FILE_DAYS", default.days),
        job_days=_count(environ, "CANOPY_JOB_DAYS", default.job_days),
    )
    if max(limits.days, limits.job_days) > MOST_DAYS:
        message = f"CANOPY_FILE_DAYS and CANOPY_JOB_DAYS must be at most {MOST_DAYS}"
        raise BadEnvironment(message)
    return limits


def _existing_key(file: Path) -> str:
    key = file.read_text().strip()
    if len(key) < _LEAST_SECRET:
        raise BadEnvironment(
            f"the secret key in {file} is shorter than {_LEAST_SECRET} characters: "
            "delete the file to get a new one"
        )
    return key


def _models(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        models = json.loads(text)
    except ValueError as error:
        raise BadEnvironment(f"CANOPY_MODELS is not JSON: {error}") from error
    is_list = isinstance(models, list)
    if not is_list or not all(isinstance(name, str) and name for name in models):
        raise BadEnvironment("CANOPY_MODELS must be a JSON list of model names")
    return tuple(models)


def _aliases(text: str) -> model_aliases.Aliases:
    try:
        return model_aliases.parse(text)
    except ValueError as error:
        raise BadEnvironment(
            f"CANOPY_MODEL_ALIASES must be like claude-*=my-model, not {str(error)[:100]!r}"
        ) from error


def _port(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise BadEnvironment(f"CANOPY_PORT must be a port number, not {text!r}")
    return int(text)


def _amount(environ: Mapping[str, str], name: str, unit: str, *, default: int, least: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise BadEnvironment(
            f"{name} must be a whole number of {unit} from {least} on, not {text[:50]!r}"
        )
    return int(text)


def _job_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_JOB:
        raise BadEnvironment(
            f"CANOPY_JOB_SECONDS must be above 0 and at most {LONGEST_JOB:.0f}, not {text!r}"
        )
    return seconds


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text[:9]) < 10_000_000:
        raise BadEnvironment(f"{name} must be a whole number from 1 on, not {text!r}")
    return int(text)


def _yes_or_no(environ: Mapping[str, str], name: str) -> bool | None:
    text = environ.get(name, "").strip().lower()
    if not text:
        return None
    if text not in ("yes", "no"):
        raise BadEnvironment(f"{name} must be yes or no, not {text[:50]!r}")
    return text == "yes"


def _url(text: str) -> tuple[str | None, str]:
    """The origin and the base path of CANOPY_URL; None and "" where there is none."""
    if not text:
        return None, ""
    try:
        return public_url.parse(text)
    except ValueError as error:
        raise BadEnvironment(f"CANOPY_URL {error}") from error


def _push_contact(text: str) -> str | None:
    if not text:
        return None
    if not text.startswith(("mailto:", "https://")) or len(text) > _LONGEST_CONTACT:
        raise BadEnvironment(
            f"CANOPY_PUSH_CONTACT must be like mailto:admin@example.org, not {text[:50]!r}"
        )
    return text


def _metrics_token(text: str) -> str | None:
    if not text:
        return None
    if len(text) < _LEAST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise BadEnvironment(
            f"CANOPY_METRICS_TOKEN must have at least {_LEAST_TOKEN} ASCII characters and no space"
        )
    return text


def _push_services(text: str) -> tuple[str, ...]:
    names = text.replace(",", " ").split()
    origins = [origin_of(name) for name in names]
    if None in origins:
        raise BadEnvironment(
            f"CANOPY_PUSH_SERVICES must be a list like https://push.example, not {text[:50]!r}"
        )
    return tuple(origin for origin in origins if origin is not None)


def _origins(text: str) -> tuple[str, ...]:
    """The pages of other servers that may use /v1/; `none` for an empty list."""
    names = text.replace(",", " ").split()
    if names == [ANY_ORIGIN]:
        return (ANY_ORIGIN,)
    if names == ["none"]:
        return ()
    origins: list[str] = []
    for name in names:
        origin = origin_of(name)
        if origin is None:
            raise BadEnvironment(
                "CANOPY_CORS_ORIGINS must be *, none, or a list like https://a.example, "
                f"not {text!r}"
            )
        origins.append(origin)
    return tuple(origins)


def _networks(text: str) -> tuple[Network, ...]:
    """Networks or addresses; `none` for an empty list."""
    if text.strip() == "none":
        return ()
    try:
        return tuple(ip_network(name, strict=False) for name in text.replace(",", " ").split())
    except ValueError as error:
        raise BadEnvironment(
            f"CANOPY_TRUSTED_PROXIES must be addresses or networks: {error}"
        ) from error
