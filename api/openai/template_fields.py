"""The fields of chat completions that say how the model's template writes the dialogue."""

from typing import Any

import msgspec
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from api.http.parsing import Body
from broker.wire import MAX_TEMPLATE_ARGUMENTS, Job

MAX_ARGUMENTS = 32


class TemplateFields(Body):
    """See the module."""

    continue_final_message: bool | None = Field(
        default=False, description="the last turn, an assistant's, is the beginning of the answer"
    )
    add_generation_prompt: bool | None = Field(
        default=True, description="false: nothing says that the assistant's turn comes"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description='for the template, such as {"enable_thinking": false}'
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _is_small(cls, arguments: dict[str, Any] | None) -> dict[str, Any] | None:
        if arguments is None:
            return None
        if len(arguments) > MAX_ARGUMENTS:
            raise PydanticCustomError("arguments", "at most {most}", {"most": MAX_ARGUMENTS})
        if len(msgspec.json.encode(arguments)) > MAX_TEMPLATE_ARGUMENTS:
            context = {"most": MAX_TEMPLATE_ARGUMENTS}
            raise PydanticCustomError("arguments", "at most {most} bytes of JSON", context)
        return arguments

    def in_template(self, job: Job, *, prefill: bool) -> Job:
        """The job with what the template is told; `prefill`: its last turn is to be continued."""
        arguments = ""
        if self.chat_template_kwargs:
            arguments = msgspec.json.encode(self.chat_template_kwargs).decode()
        return msgspec.structs.replace(
            job,
            continue_final_message=prefill,
            add_generation_prompt=self.add_generation_prompt is not False,
            template_arguments=arguments,
        )
