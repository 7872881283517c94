"""POST /tokenize and /detokenize, with and without /v1, in vLLM's shape."""

from typing import Annotated, Any

from django.http import JsonResponse
from ninja import Router
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from api.accounts.auth import AuthRequest, Key
from api.context import app
from api.http.documentation import error_statuses
from api.http.parsing import Body, Integer
from api.openai.logprobs import token_name
from api.openai.schemas import Messages
from api.openai.template_fields import TemplateFields
from api.requests.build import chat_job, prompt_job
from api.requests.deadline import seconds_left
from api.requests.tokenize import detokenize, tokenize
from broker.wire import Job, Sampling

MOST_TOKENS = 1_000_000  # a body has room for half as many
TokenId = Annotated[Integer, Field(ge=0, lt=2**32)]

router = Router(tags=["OpenAI-compatible"], auth=Key())
bare = Router(auth=Key())  # where clients of vLLM look: without /v1
_STATUSES = error_statuses(403, 404, 504)


class Tokenize(TemplateFields):
    """What to tokenize: a prompt, or a dialogue as the model's template writes it."""

    model: str = Field(min_length=1)
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="as <bos>; default: true for a prompt, false for messages"
    )
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "Tokenize":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "give either prompt or messages")
        return self


class Detokenize(Body):
    """Whose text to tell."""

    model: str = Field(min_length=1)
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS)]


@bare.post("/tokenize", include_in_schema=False)
@router.post("/tokenize", openapi_extra=_STATUSES)
async def tokens_of_text(request: AuthRequest, body: Tokenize) -> JsonResponse:
    """The tokens of a prompt or a dialogue, as a node that serves the model counts them."""
    spelled = bool(body.return_token_strs)
    tokens = await tokenize(request, _job(request, body), spelled=spelled)
    answer: dict[str, Any] = {
        "count": tokens.count,
        "max_model_len": app().catalog.context_lengths().get(body.model),
        "tokens": tokens.ids,
        "token_strs": None,
    }
    if spelled:
        answer["token_strs"] = [token_name(entry.token) for entry in tokens.spelled]
    return JsonResponse(answer, headers={"X-Request-Id": tokens.request_id})


@bare.post("/detokenize", include_in_schema=False)
@router.post("/detokenize", openapi_extra=_STATUSES)
async def text_of_tokens(request: AuthRequest, body: Detokenize) -> JsonResponse:
    """The text of tokens, control tokens included."""
    job = prompt_job(
        body.model,
        tuple(body.tokens),
        Sampling(),
        request.auth,
        seconds_left=seconds_left(request),
    )
    tokens = await detokenize(request, job)
    return JsonResponse({"prompt": tokens.text}, headers={"X-Request-Id": tokens.request_id})


def _job(request: AuthRequest, body: Tokenize) -> Job:
    seconds = seconds_left(request)
    special = body.add_special_tokens
    if body.messages is None:
        prompt = body.prompt or ""
        return prompt_job(
            body.model,
            prompt,
            Sampling(),
            request.auth,
            seconds_left=seconds,
            add_special_tokens=special,
        )
    job = chat_job(
        body.model,
        [message.to_wire() for message in body.messages],
        Sampling(),
        request.auth,
        seconds_left=seconds,
        add_special_tokens=special,
    )
    return body.in_template(job, prefill=bool(body.continue_final_message))
