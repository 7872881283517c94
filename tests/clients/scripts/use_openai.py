"""OpenAI's library for Python: chat completions, responses, completions, embeddings, models."""

import facts
from facts import ASK_WEATHER, EMBEDDER, LONG, MODEL, QUESTION
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI()
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Person(BaseModel):
    name: str
    age: int


def question(text=QUESTION):
    return [{"role": "user", "content": text}]


def chat():
    return (
        client.chat.completions.create(model=MODEL, messages=question()).choices[0].message.content
    )


def stream():
    chunks = client.chat.completions.create(model=MODEL, messages=question(), stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]


def tools():
    """The loop that everybody writes: call, result, answer."""
    messages = question(ASK_WEATHER)
    offered = [{"type": "function", "function": WEATHER}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=offered)
    message = answer.choices[0].message
    call = message.tool_calls[0]
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    final = client.chat.completions.create(model=MODEL, messages=messages, tools=offered)
    return {
        "name": call.function.name,
        "arguments": call.function.arguments,
        "reason": answer.choices[0].finish_reason,
        "text": final.choices[0].message.content,
    }


def forced_tool():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=question(ASK_WEATHER),
        tools=[{"type": "function", "function": WEATHER}],
        tool_choice="required",
    )
    function = answer.choices[0].message.tool_calls[0].function
    return {"name": function.name, "arguments": function.arguments}


def streamed_tool():
    """Arguments in pieces, put together by the library's own accumulator."""
    offered = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    with client.chat.completions.stream(
        model=MODEL, messages=question(ASK_WEATHER), tools=offered, tool_choice="required"
    ) as events:
        pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
        function = events.get_final_completion().choices[0].message.tool_calls[0].function
    return {"name": function.name, "arguments": function.arguments, "pieces": len(pieces)}


def structured():
    answer = client.chat.completions.parse(
        model=MODEL, messages=question("Ada is 36."), response_format=Person
    )
    return answer.choices[0].message.parsed.model_dump()


def json_mode():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=question("Ada is 36. Answer with a JSON object."),
        response_format={"type": "json_object"},
        max_tokens=300,
    )
    return {"text": answer.choices[0].message.content, "reason": answer.choices[0].finish_reason}


def responses():
    first = client.responses.create(model=MODEL, input=QUESTION)
    second = client.responses.create(model=MODEL, input="again", previous_response_id=first.id)
    return {"text": first.output_text, "status": second.status}


def responses_stream():
    with client.responses.stream(model=MODEL, input=QUESTION) as events:
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    return {"pieces": pieces, "text": final.output_text}


def responses_structured():
    answer = client.responses.parse(model=MODEL, input="Ada is 36.", text_format=Person)
    return answer.output_parsed.model_dump()


def completions():
    return client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=6).choices[0].text


def embeddings():
    answer = client.embeddings.create(model=EMBEDDER, input=["a tree", "a forest"])
    return [len(item.embedding) for item in answer.data]


def models():
    return [model.id for model in client.models.list()]


def wrong_key():
    stranger = OpenAI(api_key=facts.WRONG_KEY)
    return facts.refusal(stranger.models.list)


def unknown_model():
    return facts.refusal(
        lambda: client.chat.completions.create(model=facts.UNKNOWN_MODEL, messages=question())
    )


def cancel():
    with client.chat.completions.create(
        model=MODEL, messages=question(), stream=True, max_tokens=LONG
    ) as chunks:
        facts.first(chunk.choices[0].delta.content for chunk in chunks)
    return facts.seconds_until_idle()


if __name__ == "__main__":
    facts.main(globals())
