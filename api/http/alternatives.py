"""Validation errors of a value that may be one of several things, as one error.

pydantic tells the errors of every alternative, at places that name it: `tool_choice.str`.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Error = dict[str, Any]  # pydantic's
_ALTERNATIVE = re.compile(r"str|int|float|bool|(?:list|dict|tuple)\[.*\]|[A-Z]\w*")
_KINDS = {
    "string_type": "a text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


def first_error(errors: Sequence[Error]) -> Error:
    """The first of them; of a value with alternatives, that of the one which fits best.

    Its place does not name the alternative, as no field is called so.
    """
    first = errors[0]
    for at, name in enumerate(first["loc"]):
        alike: defaultdict[str, list[Error]] = defaultdict(list)
        for error in errors:
            if error["loc"][:at] == first["loc"][:at] and len(error["loc"]) > at:
                alike[str(error["loc"][at])].append(error)
        if str(name) in alike and len(alike) > 1 and all(map(_ALTERNATIVE.fullmatch, alike)):
            return _fitting(list(alike.values()), at)
    return first


def _fitting(alternatives: list[list[Error]], at: int) -> Error:
    """`at`: where the places of their errors name them."""
    entered = [errors for errors in alternatives if len(errors[0]["loc"]) > at + 1]
    if not entered:
        kinds = [_KINDS.get(errors[0]["type"], "") for errors in alternatives]
        known = list(dict.fromkeys(filter(None, kinds)))
        error = alternatives[0][0]
        message = f"must be {' or '.join(known)}" if known else error["msg"]
        return {**error, "loc": error["loc"][:at], "msg": message}
    best = min(entered, key=len)[0]
    return {**best, "loc": (*best["loc"][:at], *best["loc"][at + 1 :])}
