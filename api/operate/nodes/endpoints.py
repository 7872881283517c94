"""What an action on a node would do, and the action itself."""

from dataclasses import asdict
from typing import Annotated, Any

from ninja import Query, Router, Status

from api.accounts.auth import AuthRequest, Staff
from api.context import app
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.operate.audit.record import recorded
from api.operate.nodes.schemas import ActionBody, ActionQuery, EffectAnswer, NodeOutcome
from broker.tree_actions import Action, Effect, sentence

router = Router(tags=["operate"], auth=Staff())

_LONGEST_NAME = 200  # characters


@router.get("/{name}/effect", response=EffectAnswer)
async def preview(
    request: AuthRequest, name: str, query: Annotated[ActionQuery, Query()]
) -> EffectAnswer:
    """What an action would do now; nothing happens."""
    return _answer(await _effect(name, query.action, query.parent, query.whole))


@router.post(
    "/{name}", response={200: NodeOutcome, 202: NodeOutcome}, openapi_extra=error_statuses(404, 504)
)
async def act(request: AuthRequest, name: str, body: ActionBody) -> Status[Any]:
    """Acts on a node; answers when the tree shows it, or with 504 after 10 seconds.

    The restart of a whole subtree goes on in the background (202), from its leaves up; its entry in
    the audit log tells the result.
    """
    effect = await _effect(name, body.action, body.parent, body.whole)
    is_restart = body.action == "restart" and body.whole
    async with recorded(request, body.action, effect.node, sentence(effect)) as entry:
        if is_restart:
            entry.result = "goes on"
            await app().node_actions.restart_subtree(effect, entry)
            return Status(202, NodeOutcome(done=False, seconds=0.0, effect=_answer(effect)))
        seconds = await app().node_actions.act(effect)
    return Status(200, NodeOutcome(done=True, seconds=seconds, effect=_answer(effect)))


async def _effect(name: str, action: Action, parent: str | None, whole: bool) -> Effect:
    if action == "move" and parent is None:
        raise ApiError(400, "parent: say below which node", field="parent", code="missing")
    if action != "move":
        parent = None
    return await app().node_actions.effect(action, name[:_LONGEST_NAME], parent, whole)


def _answer(effect: Effect) -> EffectAnswer:
    return EffectAnswer(**asdict(effect), text=sentence(effect))
