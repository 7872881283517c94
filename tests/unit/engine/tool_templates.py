"""Chat templates with tools, shortened from those of models, and calls in their formats."""

QWEN = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n"
    '</tools> <tool_call>{"name": 0, "arguments": 0}</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if loop.first and tools %}{{ tools | tojson }} <|python_tag|> "
    '{"name": 0, "parameters": 0}{% endif %}{% if m.role in ["tool", "ipython"] %}ipython: '
    "{{ m.content | tojson }}{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('only single tool-calls') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}"
    '{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}'
    "{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{% if loop.last and tools %}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}[INST] {{ m.content }} [/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('nine characters') }}{% endif %}{{ c.function | tojson }}{% endfor %}]"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('nine characters') }}{% endif %}[TOOL_RESULTS] {{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
NAMED = MISTRAL.replace("[TOOL_CALLS] [", "[TOOL_CALLS] [ARGS] [")
TEMPLATES = {"hermes": QWEN, "llama3": LLAMA, "mistral": MISTRAL, "mistral-named": NAMED}
SPECIAL = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "mistral-named": ("[TOOL_CALLS]", "[ARGS]"),
}
HARMONY = (
    "{% macro next() %}<|start|>assistant{% endmacro %}"
    "<|start|>system<|message|>You.<|end|>{% if tools %}<|start|>developer<|message|># Tools\n"
    "{% for t in tools %}{{ t.function.description }} type {{ t.function.name }} = (_: "
    "{{ t.function.parameters | tojson }}) => any;{% endfor %}<|end|>{% endif %}"
    "{% set ns = namespace(name=none) %}{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{% if m.content and m.thinking %}"
    "{{ raise_exception('not both') }}{% endif %}{% if m.thinking %}{{ next() }}<|channel|>analysis"
    "<|message|>{{ m.thinking }}<|end|>{% endif %}{% set c = m.tool_calls[0].function %}"
    "{{ next() }} to=functions.{{ c.name }}<|channel|>commentary json<|message|>"
    "{{ c.arguments | tojson }}<|call|>{% set ns.name = c.name %}"
    "{% elif m.role == 'assistant' %}{% if '<|channel|>' in m.content %}"
    "{{ raise_exception('channels in the content') }}{% endif %}"
    "{{ next() }}<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% elif m.role == 'tool' %}{% if not ns.name %}{{ raise_exception('no call') }}{% endif %}"
    "<|start|>functions.{{ ns.name }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ next() }}{% endif %}"
)
DEEPSEEK_V3 = (
    "{% set ns = namespace(first=true, tool=false, system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% endif %}{% endfor %}"
    "{{ ns.system }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>"
    "{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' and m['tool_calls'] %}{% for c in m['tool_calls'] %}"
    "{{ ('<｜Assistant｜><｜tool▁calls▁begin｜>' if loop.first else '\n') + "
    "'<｜tool▁call▁begin｜>' + "
    "c['type'] + '<｜tool▁sep｜>' + c['function']['name'] + '\n```json\n' + "
    "c['function']['arguments'] + '\n```<｜tool▁call▁end｜>' }}{% endfor %}"
    "<｜tool▁calls▁end｜>{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is not none %}<｜Assistant｜>"
    "{{ m['content'] }}"
    "{% elif m['role'] == 'tool' %}<｜tool▁output▁begin｜>{{ m['content'] }}<｜tool▁output▁end｜>"
    "{% endif %}{% endfor %}<｜Assistant｜>"
)
DEEPSEEK_V31 = (
    DEEPSEEK_V3.replace("c['type'] + '<｜tool▁sep｜>' + ", "")
    .replace("'\n```json\n' + ", "'<｜tool▁sep｜>' + ")
    .replace("'\n```<｜tool▁call▁end｜>'", "'<｜tool▁call▁end｜>'")
)
QWEN3_CODER = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}\n<function>\n"
    "{{ t.function.name }}: {{ t.function.description }}{% endfor %}</tools>\n<tool_call>\n"
    "<function=example>\n<parameter=example>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
    "{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    "<function={{ c.function.name }}>\n{% for k, v in c.function.arguments | items %}"
    "<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "<|im_start|>assistant\n"
)
GLM = (
    "{% if tools %}<|system|>\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}</tools>\n"
    "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}"
    "</arg_value>\n</tool_call>{% endif %}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}\n"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>"
    "{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    "{% endfor %}<|assistant|>"
)
GEMMA3 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and not loop.first or "
    "m.role == 'tool' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{# <start_of_image> #}<start_of_turn>model\n"
)
TEMPLATES |= {
    "harmony": HARMONY,
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3.1": DEEPSEEK_V31,
    "qwen3-coder": QWEN3_CODER,
    "glm": GLM,
    "tool-code": GEMMA3,
}
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
SPECIAL |= {
    "harmony": (
        "<|start|>",
        "<|channel|>",
        "<|constrain|>",
        "<|message|>",
        "<|end|>",
        "<|call|>",
    ),
    "deepseek-v3": _DEEPSEEK,
    "deepseek-v3.1": _DEEPSEEK,
    "qwen3-coder": ("<tool_call>", "</tool_call>"),
    "glm": (
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    ),
    "tool-code": (),
}
_XML = "\n<parameter=%s>\n%s\n</parameter>"


def written(name: str, city: str, days: object) -> str:
    """A call of `get_weather` in that format."""
    arguments = f'{{"city": "{city}", "days": {days}}}'
    match name:
        case "hermes":
            return f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
        case "llama3":
            return f'{{"name": "get_weather", "parameters": {arguments}}}'
        case "mistral":
            return f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {arguments}}}]'
        case "mistral-named":
            return f"[TOOL_CALLS]get_weather[ARGS]{arguments}"
        case "harmony":
            head = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
            return head + arguments
        case "deepseek-v3":
            call = f"function<｜tool▁sep｜>get_weather\n```json\n{arguments}\n```"
            return _DEEPSEEK[0] + _DEEPSEEK[1] + call + _DEEPSEEK[3] + _DEEPSEEK[4]
        case "deepseek-v3.1":
            call = f"get_weather<｜tool▁sep｜>{arguments}"
            return _DEEPSEEK[0] + _DEEPSEEK[1] + call + _DEEPSEEK[3] + _DEEPSEEK[4]
        case "qwen3-coder":
            values = _XML % ("city", city) + _XML % ("days", days)
            return f"<tool_call>\n<function=get_weather>{values}\n</function>\n</tool_call>"
        case "glm":
            values = (
                f"<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n"
                f"<arg_key>days</arg_key>\n<arg_value>{days}</arg_value>\n"
            )
            return f"<tool_call>get_weather\n{values}</tool_call>"
        case _:
            return f'```tool_code\nget_weather(city="{city}", days={days})\n```'


def twice(name: str, call: str) -> str:
    """Two calls in one answer."""
    match name:
        case "hermes" | "qwen3-coder" | "glm":
            return f"{call}\n{call}"
        case "llama3":
            return f"{call}; {call}"
        case "mistral":
            return call[:-1] + ", " + call.removeprefix("[TOOL_CALLS] [")
        case "mistral-named":
            return call + call
        case "deepseek-v3" | "deepseek-v3.1":
            one = call.removeprefix(_DEEPSEEK[0]).removesuffix(_DEEPSEEK[4])
            between = "\n" if name == "deepseek-v3" else ""
            return _DEEPSEEK[0] + one + between + one + _DEEPSEEK[4]
        case _:
            one = call.removeprefix("```tool_code\n").removesuffix("\n```")
            return f"```tool_code\n{one}\n{one}\n```"
