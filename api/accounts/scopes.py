"""What an API key may do: which models it may name, and which families of endpoints it may call.

Pure, but for `current`, the key of the request that is being answered.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from api.errors import ApiError

Family = Literal["chat", "completions", "embeddings", "batches", "jobs", "pages"]
FAMILIES: tuple[Family, ...] = get_args(Family)

# The first prefix that fits counts. Every key may read the models, and count tokens.
_FAMILY_OF: tuple[tuple[str, Family | None], ...] = (
    ("/v1/models", None),
    ("/v1/tokenize", None),
    ("/v1/detokenize", None),
    ("/tokenize", None),
    ("/detokenize", None),
    ("/v1/chat/", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/messages", "chat"),
    ("/arranca/", "chat"),
    ("/v1/completions", "completions"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/rerank", "embeddings"),
    ("/v1/score", "embeddings"),
    ("/v2/rerank", "embeddings"),
    ("/rerank", "embeddings"),
    ("/score", "embeddings"),
    ("/v1/files", "batches"),
    ("/v1/batches", "batches"),
    ("/v1/jobs", "jobs"),
    ("/", "pages"),
)
_LATER: tuple[Family, ...] = ("batches", "jobs")  # whose requests run without the key


@dataclass(frozen=True, slots=True)
class KeyScope:
    """A key as its requests carry it. `name`: its public part; an empty set allows everything."""

    name: str = ""
    models: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()

    def check_path(self, path: str) -> None:
        """Raises ApiError 403 if the key may not call this address."""
        if not self.models and not self.endpoints:
            return
        family = family_of(path)
        if family is None:
            return
        if self.endpoints and family not in self.endpoints:
            allowed = ", ".join(sorted(self.endpoints))
            raise _refused(f"this API key may not call {path[:80]}, only: {allowed}")
        if self.models and family in _LATER:
            raise _refused("a key for some models cannot start batches or jobs: use another one")

    def check_model(self, model: str) -> None:
        """Raises ApiError 403 if the key may not use this model."""
        if self.models and model not in self.models:
            allowed = ", ".join(sorted(self.models))
            raise _refused(f"model: this API key is only for {allowed}", field="model")


NO_KEY = KeyScope()  # a session, or work of this process
current: ContextVar[KeyScope] = ContextVar("key", default=NO_KEY)


def family_of(path: str) -> Family | None:
    """The family of an address; None for what every key may call."""
    for prefix, family in _FAMILY_OF:
        if path.startswith(prefix):
            return family
    return "pages"


def _refused(message: str, field: str | None = None) -> ApiError:
    return ApiError(403, message, field=field, code="key_scope")
