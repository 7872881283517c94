"""A job's failure, or the refusal to take it, as the ApiError that its client gets."""

from collections.abc import Collection, Iterable

from api.errors import ApiError
from api.http.parsing import MAX_ECHOED
from broker.wire import Failed, Job, Task

_STATUS = {
    "invalid": 400,
    "too_long": 400,
    "expired": 504,
    "no_node": 503,
    "engine": 500,
    "given_up": 500,
    "internal": 500,
    "user_limit": 429,  # of the user's plan, counted at the root
    "cancelled": 403,  # by an operator; no status that clients try again by themselves
}  # by the wire's failure code
_CODES = {
    "too_long": "context_length_exceeded",
    "invalid": "invalid_request",
    "expired": "deadline_exceeded",
    "user_limit": "jobs_limit",
}  # OpenAI's names; the others keep the wire's
_NAMED = ("tools", "tool_choice", "logit_bias")  # fields that a node's refusal begins with


def job_failure(frame: Failed, prompt_field: str) -> ApiError:
    """A failed job's error. `prompt_field`: the request field to name if the prompt is too long."""
    status = _STATUS[frame.code]
    if frame.retryable and frame.code != "expired":
        status = 503
    field = None
    message = frame.message
    if frame.code == "too_long":
        field = prompt_field
        message = f"{field}: {message}"
    elif frame.code == "invalid" and message.partition(":")[0] in _NAMED:
        field = message.partition(":")[0]
    return ApiError(
        status,
        message,
        field=field,
        code=_CODES.get(frame.code, frame.code),
        request_id=frame.request_id,
    )


def no_such_model(model: str, models: Iterable[str]) -> ApiError:
    """404, with the models that there are."""
    names = ", ".join(models) or "none"
    return ApiError(
        404,
        f"model: there is no model {model[:MAX_ECHOED]!r} here; there are: {names}",
        field="model",
        code="model_not_found",
        params={"model": model[:MAX_ECHOED]},
    )


_DOES: tuple[tuple[Task, str], ...] = (
    ("generate", "writes answers: send it to /v1/chat/completions"),
    ("embed", "makes vectors of texts: send it to /v1/embeddings"),
    ("score", "scores documents: send it to /v1/rerank or /v1/score"),
)  # what a model is for, and where


def check_task(job: Job, tasks: Collection[Task]) -> None:
    """Raises ApiError 400 if no node of the job's model does what it asks for. `tasks`: what they
    do; empty where none is known, so that the job waits for one. Any may tokenize, or refuse it.
    """
    if not tasks or job.task in tasks or job.task not in dict(_DOES):
        return
    for task, purpose in _DOES:
        if task in tasks:
            raise ApiError(
                400,
                f"model: {job.model!r} does not {job.task}; it {purpose}",
                field="model",
                code="wrong_task",
                params={"model": job.model},
            )


def tree_down(model: str) -> ApiError:
    """503: the model is known, but no root takes its jobs."""
    message = f"the tree of model {model!r} is not up"
    return ApiError(503, message, field="model", code="no_tree", params={"model": model})


def broker_unavailable(reason: Exception) -> ApiError:
    """503: the broker takes no jobs now."""
    message = (
        f"the service cannot take requests now: {reason}; see ./canopy doctor or docs/operations.md"
    )
    return ApiError(503, message, code="unavailable")
