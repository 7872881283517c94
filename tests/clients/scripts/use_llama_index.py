"""LlamaIndex with OpenAILike and OpenAILikeEmbedding."""

import asyncio
import os

import facts
from facts import ASK_WEATHER, EMBEDDER, MODEL, QUESTION
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

SERVER = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
llm = OpenAILike(model=MODEL, is_chat_model=True, is_function_calling_model=True, **SERVER)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def weather(city: str) -> str:
    """The weather in a city."""
    return "rain"


def question(text=QUESTION):
    return [ChatMessage(role="user", content=text)]


def chat():
    return llm.chat(question()).message.content


def stream():
    return [chunk.delta for chunk in llm.stream_chat(question())]


def completions():
    return OpenAILike(model=MODEL, max_tokens=6, **SERVER).complete(QUESTION).text


def tools():
    return asyncio.run(_agent())


async def _agent():
    handler = FunctionAgent(tools=[weather], llm=llm).run(ASK_WEATHER)
    calls = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    answer = await handler
    return {"name": calls[0].tool_name, "arguments": calls[0].tool_kwargs, "text": str(answer)}


def structured():
    program = llm.as_structured_llm(Person)
    return program.complete("Ada is 36.").raw.model_dump()


def embeddings():
    client = OpenAILikeEmbedding(model_name=EMBEDDER, **SERVER)
    return [len(vector) for vector in client.get_text_embedding_batch(["a tree", "a forest"])]


def wrong_key():
    stranger = OpenAILike(model=MODEL, is_chat_model=True, **{**SERVER, "api_key": facts.WRONG_KEY})
    return facts.refusal(lambda: stranger.chat(question()))


def unknown_model():
    stranger = OpenAILike(model=facts.UNKNOWN_MODEL, is_chat_model=True, **SERVER)
    return facts.refusal(lambda: stranger.chat(question()))


if __name__ == "__main__":
    facts.main(globals())
