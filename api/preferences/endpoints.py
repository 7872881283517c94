"""Reading and setting how answers are wanted."""

from typing import Annotated, Any

from ninja import Router, Schema, Status
from pydantic import Field, StringConstraints

from api.accounts.auth import AuthRequest, Member
from api.chat import store as conversations
from api.chat.schemas import RowId
from api.errors import ApiError
from api.http.documentation import error_statuses
from api.http.parsing import Body, Integer, StorableText
from api.preferences import store
from api.preferences.models import Preset
from api.preferences.style import Style, of_row

router = Router(tags=["preferences"], auth=Member())

Instructions = Annotated[StorableText, StringConstraints(strip_whitespace=True, max_length=8_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[Number, Field(ge=0, le=2)]
TopP = Annotated[Number, Field(gt=0, le=1)]
MaxTokens = Annotated[Integer, Field(ge=1, le=32_768)]
PresetName = Annotated[
    StorableText, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)
]


class NewStyle(Body):
    """Instructions for the model, and sampling; null: the default."""

    instructions: Instructions = ""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: MaxTokens | None = None

    def style(self) -> Style:
        """As it is stored."""
        return Style(self.instructions, self.temperature, self.top_p, self.max_tokens)


class NewPreset(NewStyle):
    """A style with a name."""

    name: PresetName


class StyleOut(Schema):
    """Instructions for the model, and sampling; null: the default."""

    instructions: str
    temperature: float | None
    top_p: float | None
    max_tokens: int | None


class PresetOut(StyleOut):
    """A style with a name."""

    id: int
    name: str


class Application(Body):
    """A preset's number; null for none."""

    preset: RowId | None


class Applied(Schema):
    """The name of the preset that a conversation has; empty for none."""

    preset: str


class Presets(Schema):
    """The user's presets by name."""

    presets: list[PresetOut]


@router.get("/preferences", response=StyleOut)
async def read(request: AuthRequest) -> Style:
    """How I want to be answered, wherever a conversation says nothing else."""
    return await store.of_user(request.auth)


@router.put("/preferences", response=StyleOut)
async def write(request: AuthRequest, body: NewStyle) -> Style:
    """Sets how I want to be answered."""
    await store.set_of_user(request.auth, body.style())
    return body.style()


@router.get("/conversations/{row:number}/preferences", response=StyleOut)
async def read_conversation(request: AuthRequest, number: int) -> Style:
    """How I want to be answered in this conversation."""
    conversation = await conversations.conversation(request.auth, number)
    return await store.of_conversation(request.auth, conversation.pk)


@router.put("/conversations/{row:number}/preferences", response=StyleOut)
async def write_conversation(request: AuthRequest, number: int, body: NewStyle) -> Style:
    """Sets how I want to be answered in this conversation."""
    conversation = await conversations.conversation(request.auth, number)
    await store.set_of_conversation(conversation.pk, body.style())
    return body.style()


@router.put("/conversations/{row:number}/preset", response=Applied)
async def apply_preset(request: AuthRequest, number: int, body: Application) -> Applied:
    """Answers in this conversation are wanted as this preset says; null: as everywhere."""
    conversation = await conversations.conversation(request.auth, number)
    name = await store.apply_preset(request.auth, conversation.pk, body.preset)
    return Applied(preset=name)


@router.get("/presets", response=Presets)
async def presets(request: AuthRequest) -> Presets:
    """My presets."""
    return Presets(presets=[_preset(row) for row in await store.presets(request.auth)])


@router.post("/presets", response={201: PresetOut}, openapi_extra=error_statuses(409))
async def add_preset(request: AuthRequest, body: NewPreset) -> Status[Any]:
    """Stores a preset."""
    row = await store.add_preset(request.auth, body.name, body.style())
    return Status(201, _preset(row))


@router.delete("/presets/{row:number}", response={204: None})
async def remove_preset(request: AuthRequest, number: int) -> Status[Any]:
    """Removes a preset; conversations that took it over keep what it said."""
    if not await store.remove_preset(request.auth, number):
        raise ApiError(404, "there is no such preset", code="not_found")
    return Status(204, None)


def _preset(row: Preset) -> PresetOut:
    style = of_row(row)
    return PresetOut(
        id=row.pk,
        name=row.name,
        instructions=style.instructions,
        temperature=style.temperature,
        top_p=style.top_p,
        max_tokens=style.max_tokens,
    )
