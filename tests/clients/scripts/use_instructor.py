"""Instructor in its default mode, which is a call of a tool, and in the modes with schemas."""

import facts
import instructor
from facts import MODEL
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def extract(client):
    question = [{"role": "user", "content": "Ada is 36."}]
    return client.create(model=MODEL, response_model=Person, messages=question).model_dump()


def structured():
    return extract(instructor.from_openai(OpenAI()))


def provider_structured():
    return extract(instructor.from_provider(f"openai/{MODEL}"))


def schema_structured():
    return extract(instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA))


def json_structured():
    return extract(instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON))


def streamed_structured():
    client = instructor.from_openai(OpenAI())
    question = [{"role": "user", "content": "Ada is 36."}]
    partial = client.create_partial(model=MODEL, response_model=Person, messages=question)
    return [person.model_dump() for person in partial][-1]


def wrong_key():
    client = instructor.from_openai(OpenAI(api_key=facts.WRONG_KEY))
    return facts.refusal(lambda: extract(client))


if __name__ == "__main__":
    facts.main(globals())
