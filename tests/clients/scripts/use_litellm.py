"""LiteLLM through the routes of six providers."""

import os
from functools import partial

import facts
import litellm
from facts import ASK_WEATHER, EMBEDDER, MODEL, QUESTION
from pydantic import BaseModel

BASE, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
SERVER = {"api_base": BASE, "api_key": KEY}
CHAT_ROUTES = ("openai", "hosted_vllm", "lm_studio", "litellm_proxy", "anthropic")
TEXT_ROUTE = "text-completion-openai"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def server(route):
    """Anthropic's address is without /v1, and its limit of tokens must be told."""
    if route == "anthropic":
        return {**SERVER, "api_base": BASE.removesuffix("/v1"), "max_tokens": 64}
    return SERVER


def question(text=QUESTION):
    return [{"role": "user", "content": text}]


def ask(route, text=QUESTION, **more):
    return litellm.completion(f"{route}/{MODEL}", question(text), **server(route), **more)


def chat(route):
    return _text(ask(route))


def stream(route):
    return [chunk.choices[0].delta.content or "" for chunk in ask(route, stream=True)]


def tools(route):
    messages = question(ASK_WEATHER)
    options = {**server(route), "tools": [WEATHER]}
    answer = litellm.completion(f"{route}/{MODEL}", messages, **options)
    message = answer.choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    final = litellm.completion(f"{route}/{MODEL}", [*messages, message, result], **options)
    return {
        "name": call.function.name,
        "arguments": call.function.arguments,
        "text": _text(final),
    }


def structured(route):
    answer = ask(route, "Ada is 36.", response_format=Person)
    return Person.model_validate_json(_text(answer)).model_dump()


def completions():
    answer = litellm.text_completion(QUESTION, f"{TEXT_ROUTE}/{MODEL}", max_tokens=6, **SERVER)
    return answer.choices[0].text


def responses():
    answer = litellm.responses(model=f"openai/{MODEL}", input=QUESTION, **SERVER)
    return {"text": answer.output[0].content[0].text, "status": answer.status}


def embeddings():
    answer = litellm.embedding(f"openai/{EMBEDDER}", ["a tree", "a forest"], **SERVER)
    return [len(item["embedding"]) for item in answer.data]


def wrong_key():
    return facts.refusal(
        lambda: litellm.completion(
            f"openai/{MODEL}", question(), api_base=BASE, api_key=facts.WRONG_KEY
        )
    )


def unknown_model():
    return facts.refusal(
        lambda: litellm.completion(f"openai/{facts.UNKNOWN_MODEL}", question(), **SERVER)
    )


def cancel():
    chunks = ask("openai", stream=True, max_tokens=facts.LONG)
    facts.first(chunk.choices[0].delta.content for chunk in chunks)
    chunks.completion_stream.close()
    return facts.seconds_until_idle()


def _text(answer):
    return answer.choices[0].message.content


def by_route():
    """Each of these checks once a route, as `openai_chat`."""
    checks = {}
    for route in (*CHAT_ROUTES, TEXT_ROUTE):
        for check in (chat, stream, tools, structured):
            checks[f"{route}_{check.__name__}"] = partial(check, route)
    return checks


if __name__ == "__main__":
    facts.main({**globals(), **by_route()})
