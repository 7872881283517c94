"""Anthropic's library for Python: messages, streams, tools, token counts."""

import facts
from anthropic import Anthropic
from facts import ASK_WEATHER, LONG, MODEL, QUESTION

client = Anthropic()
TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


def question(text=QUESTION):
    return [{"role": "user", "content": text}]


def chat():
    answer = client.messages.create(model=MODEL, max_tokens=64, messages=question())
    return answer.content[0].text


def system():
    answer = client.messages.create(
        model=MODEL, max_tokens=64, system="Be brief.", messages=question()
    )
    return {"text": answer.content[0].text, "tokens": answer.usage.input_tokens}


def stream():
    with client.messages.stream(model=MODEL, max_tokens=64, messages=question()) as events:
        pieces = list(events.text_stream)
        assert events.get_final_message().stop_reason in {"end_turn", "max_tokens"}
    return pieces


def tools():
    messages = question(ASK_WEATHER)
    answer = client.messages.create(model=MODEL, max_tokens=200, messages=messages, tools=[TOOL])
    call = next(block for block in answer.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    final = client.messages.create(model=MODEL, max_tokens=200, messages=messages, tools=[TOOL])
    return {
        "name": call.name,
        "arguments": call.input,
        "reason": answer.stop_reason,
        "text": final.content[0].text,
    }


def forced_tool():
    answer = client.messages.create(
        model=MODEL,
        max_tokens=200,
        messages=question(ASK_WEATHER),
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather"},
    )
    call = next(block for block in answer.content if block.type == "tool_use")
    return {"name": call.name, "arguments": call.input}


def streamed_tool():
    with client.messages.stream(
        model=MODEL,
        max_tokens=200,
        messages=question(ASK_WEATHER),
        tools=[TOOL],
        tool_choice={"type": "any"},
    ) as events:
        pieces = [event for event in events if event.type == "input_json"]
        blocks = events.get_final_message().content
    call = next(block for block in blocks if block.type == "tool_use")
    return {"name": call.name, "arguments": call.input, "pieces": len(pieces)}


def count_tokens():
    return client.messages.count_tokens(model=MODEL, messages=question()).input_tokens


def models():
    return [model.id for model in client.models.list()]


def wrong_key():
    stranger = Anthropic(api_key=facts.WRONG_KEY)
    return facts.refusal(
        lambda: stranger.messages.create(model=MODEL, max_tokens=5, messages=question())
    )


def unknown_model():
    return facts.refusal(
        lambda: client.messages.create(model=facts.UNKNOWN_MODEL, max_tokens=5, messages=question())
    )


def cancel():
    with client.messages.stream(model=MODEL, max_tokens=LONG, messages=question()) as events:
        facts.first(events.text_stream)
    return facts.seconds_until_idle()


if __name__ == "__main__":
    facts.main(globals())
