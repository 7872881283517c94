"""/api/operate/line: what waits and runs, actions on jobs, intake, and who may see prompts."""

from typing import Annotated

from ninja import Query, Router

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.errors import ApiError
from api.http import sse
from api.http.documentation import error_statuses
from api.operate.audit.record import recorded
from api.operate.line import actions, prompts, schemas
from api.operate.line.models import PausedModel
from api.operate.line.view import LineView, with_pauses
from api.requests.errors import no_such_model
from api.settings import ENV
from broker.job_messages import AnyQuestion, CancelJob, ChangeClass, MoveJob, ShowPrompt

router = Router(tags=["operate"], auth=Staff())

_ASKED = {"number": "", "reply_to": ""}  # the broker's side fills them in
_LONGEST_ID = 255
CONFLICT = error_statuses(409)


@router.get("", response=LineView)
async def read(request: AuthRequest, query: Annotated[schemas.LineQuery, Query()]) -> LineView:
    """What waits and runs now. Every node is asked once; one that is stuck is left out."""
    found = await actions.find(app().client.job_watch, query.request_id, query.user, query.limit)
    return with_pauses(found, app().intake.paused())


@router.get("/stream")
async def stream(request: AuthRequest) -> sse.EventStream:
    """The same as server-sent events: at once, on every change, and every few seconds."""
    return sse.EventStream(app().line.follow(), endless=True)


@router.post("/jobs/{request_id}/cancel", response=schemas.JobOutcome, openapi_extra=CONFLICT)
async def cancel(request: AuthRequest, request_id: str) -> schemas.JobOutcome:
    """Ends a job wherever it is; its reader hears that an operator did it."""
    request_id = request_id[:_LONGEST_ID]
    question = CancelJob(**_ASKED, request_id=request_id)
    return await _act(request, "cancel job", request_id, question)


@router.post("/jobs/{request_id}/move", response=schemas.JobOutcome, openapi_extra=CONFLICT)
async def move(request: AuthRequest, request_id: str, body: schemas.Move) -> schemas.JobOutcome:
    """Has a waiting job served before others."""
    request_id = request_id[:_LONGEST_ID]
    question = MoveJob(**_ASKED, request_id=request_id, before=body.before)
    return await _act(request, "move job up", request_id, question, f"before its {body.before}")


@router.post("/jobs/{request_id}/class", response=schemas.JobOutcome, openapi_extra=CONFLICT)
async def change_class(
    request: AuthRequest, request_id: str, body: schemas.NewClass
) -> schemas.JobOutcome:
    """Has a waiting job served as one of the other class."""
    request_id = request_id[:_LONGEST_ID]
    question = ChangeClass(**_ASKED, request_id=request_id, job_class=body.job_class)
    return await _act(request, "change job class", request_id, question, body.job_class)


@router.post("/jobs/{request_id}/prompt", response=schemas.Prompt, openapi_extra=CONFLICT)
async def show_prompt(request: AuthRequest, request_id: str) -> schemas.Prompt:
    """What a job asks, if operators may see it. Each look is in the audit log, refused or not."""
    request_id = request_id[:_LONGEST_ID]
    async with recorded(request, "look at prompt", request_id):
        await prompts.require()
        question = ShowPrompt(**_ASKED, request_id=request_id)
        answer = await actions.act(app().client.job_watch, question, request_id)
    return schemas.Prompt(
        request_id=request_id,
        node=answer.node,
        text=answer.prompt or "",
        letters=answer.letters,
    )


@router.get("/intake", response=schemas.PausedModels)
async def read_intake(request: AuthRequest) -> schemas.PausedModels:
    """The models that take no new requests."""
    paused = []
    async for row in PausedModel.objects.all():
        paused.append(
            schemas.PausedModel(model=row.model, reason=row.reason, who=row.who, since=row.since)
        )
    return schemas.PausedModels(paused=paused)


@router.put("/intake", response=schemas.PausedModels, openapi_extra=error_statuses(404, 409))
async def change_intake(request: AuthRequest, body: schemas.IntakeChange) -> schemas.PausedModels:
    """Pauses or resumes a model. What waits already goes on."""
    action = "pause model" if body.paused else "resume model"
    async with recorded(request, action, body.model, body.reason):
        if body.paused:
            models = await app().catalog.models()
            if body.model not in models:
                raise no_such_model(body.model, models)
            await app().intake.pause(body.model, body.reason, request.auth.get_username())
        else:
            await app().intake.resume(body.model)
    return await read_intake(request)


@router.get("/prompts", response=schemas.PromptAccess)
async def read_prompt_access(request: AuthRequest) -> schemas.PromptAccess:
    """Whether operators may see prompts."""
    may_change = request.auth.is_superuser and ENV.operators_see_prompts is None
    return schemas.PromptAccess(allowed=await prompts.allowed(), may_change=may_change)


@router.put("/prompts", response=schemas.PromptAccess, openapi_extra=CONFLICT)
async def change_prompt_access(
    request: AuthRequest, body: schemas.PromptDecision
) -> schemas.PromptAccess:
    """An administrator's decision."""
    async with recorded(request, "let operators see prompts", "yes" if body.allowed else "no"):
        if not request.auth.is_superuser:
            message = "only administrators decide who sees prompts"
            raise ApiError(403, message, code="administrators_only")
        await prompts.allow(body.allowed, request.auth.get_username())
    return await read_prompt_access(request)


async def _act(
    request: AuthRequest, action: str, request_id: str, question: AnyQuestion, detail: str = ""
) -> schemas.JobOutcome:
    async with recorded(request, action, request_id, detail) as entry:
        answer = await actions.act(app().client.job_watch, question, request_id)
        entry.result = f"{answer.node}: {answer.note}"
    return schemas.JobOutcome(request_id=request_id, node=answer.node, note=answer.note)
