"""LangChain's ChatOpenAI and OpenAIEmbeddings, and its agent."""

import facts
from facts import ASK_WEATHER, EMBEDDER, MODEL, QUESTION
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

llm = ChatOpenAI(model=MODEL)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return "rain"


def chat():
    return llm.invoke(QUESTION).content


def stream():
    return [chunk.content for chunk in llm.stream(QUESTION)]


def batch():
    return [answer.content for answer in llm.batch([QUESTION] * 4)]


def tools():
    agent = create_agent(llm, [weather])
    messages = agent.invoke({"messages": [("user", ASK_WEATHER)]})["messages"]
    call = next(call for message in messages for call in getattr(message, "tool_calls", []))
    return {"name": call["name"], "arguments": call["args"], "text": messages[-1].content}


def forced_tool():
    call = llm.bind_tools([weather], tool_choice="any").invoke(ASK_WEATHER).tool_calls[0]
    return {"name": call["name"], "arguments": call["args"]}


def structured():
    return llm.with_structured_output(Person).invoke("Ada is 36.").model_dump()


def responses():
    answer = ChatOpenAI(model=MODEL, use_responses_api=True).invoke(QUESTION)
    return {"text": answer.text, "status": answer.response_metadata["status"]}


def embeddings():
    # the only setting that every server but OpenAI's needs: send texts, not OpenAI's token ids
    client = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False)
    return [len(vector) for vector in client.embed_documents(["a tree", "a forest"])]


def wrong_key():
    return facts.refusal(lambda: ChatOpenAI(model=MODEL, api_key=facts.WRONG_KEY).invoke(QUESTION))


def unknown_model():
    return facts.refusal(lambda: ChatOpenAI(model=facts.UNKNOWN_MODEL).invoke(QUESTION))


def cancel():
    chunks = ChatOpenAI(model=MODEL, max_tokens=facts.LONG).stream(QUESTION)
    facts.first(chunk.content for chunk in chunks)
    chunks.close()
    return facts.seconds_until_idle()


if __name__ == "__main__":
    facts.main(globals())
