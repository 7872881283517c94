"""OpenAI's Agents SDK, which speaks to /v1/responses."""

import asyncio

import facts
from agents import Agent, Runner, function_tool
from facts import ASK_WEATHER, MODEL, QUESTION
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return "rain"


def agent(**more):
    return Agent(name="helper", model=MODEL, instructions="Be brief.", **more)


def responses():
    result = Runner.run_sync(agent(), QUESTION)
    return {"text": result.final_output, "status": "completed"}


def stream():
    # the loop of run_sync, to which the library's connections belong
    return asyncio.get_event_loop_policy().get_event_loop().run_until_complete(_stream())


async def _stream():
    result = Runner.run_streamed(agent(), QUESTION)
    events = [event async for event in result.stream_events() if event.type == "raw_response_event"]
    kind = "response.output_text.delta"
    return [event.data.delta for event in events if event.data.type == kind]


def tools():
    result = Runner.run_sync(agent(tools=[weather]), ASK_WEATHER)
    calls = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    return {
        "name": calls[0].name,
        "arguments": calls[0].arguments,
        "text": result.final_output,
    }


def structured():
    return Runner.run_sync(agent(output_type=Person), "Ada is 36.").final_output.model_dump()


def handoff():
    """The other agent's first turn comes by a call of a tool that the library makes up."""
    second = Agent(name="second", model=MODEL, handoff_description="answers about weather")
    return Runner.run_sync(agent(handoffs=[second]), QUESTION).last_agent.name


def unknown_model():
    stranger = Agent(name="helper", model=facts.UNKNOWN_MODEL)
    return facts.refusal(lambda: Runner.run_sync(stranger, QUESTION))


if __name__ == "__main__":
    facts.main(globals())
