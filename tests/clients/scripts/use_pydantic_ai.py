"""Pydantic AI with its `openai:` models, which speak to /v1/responses, and `openai-chat:`."""

import facts
from facts import ASK_WEATHER, EMBEDDER, MODEL, QUESTION
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder

DEFAULT = f"openai:{MODEL}"
CHAT = f"openai-chat:{MODEL}"


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def responses():
    result = Agent(DEFAULT).run_sync(QUESTION)
    second = Agent(DEFAULT).run_sync(QUESTION, message_history=result.all_messages())
    return {"text": second.output, "status": "completed"}


def stream():
    with_stream = Agent(DEFAULT).run_stream_sync(QUESTION)
    return list(with_stream.stream_text(delta=True, debounce_by=None))


def tools():
    return _loop(DEFAULT)


def _loop(model):
    agent = Agent(model)
    called = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "rain"

    answer = agent.run_sync(ASK_WEATHER).output
    return {"name": "weather", "arguments": {"city": called[0]}, "text": answer}


def structured():
    return _person(DEFAULT)


def _person(model):
    return Agent(model, output_type=Person).run_sync("Ada is 36.").output.model_dump()


def embeddings():
    result = Embedder(f"openai:{EMBEDDER}").embed_documents_sync(["a tree", "a forest"])
    return [len(vector) for vector in result.embeddings]


def unknown_model():
    return facts.refusal(lambda: Agent(f"openai:{facts.UNKNOWN_MODEL}").run_sync(QUESTION))


WITH_CHAT = {
    "openai-chat_chat": lambda: Agent(CHAT).run_sync(QUESTION).output,
    "openai-chat_tools": lambda: _loop(CHAT),
    "openai-chat_structured": lambda: _person(CHAT),
}

if __name__ == "__main__":
    facts.main({**globals(), **WITH_CHAT})
