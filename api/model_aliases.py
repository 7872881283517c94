"""Other names under which requests may name the models that are served (CANOPY_MODEL_ALIASES).

Programs with a fixed choice of models run then: Claude Code requests `claude-…`, SDKs' examples
`gpt-…`.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase

Aliases = tuple[tuple[str, str], ...]  # patterns with * and ?, and the model that each stands for


def parse(text: str) -> Aliases:
    """`PATTERN=MODEL`, separated by commas or spaces. Raises ValueError with the wrong one."""
    aliases: list[tuple[str, str]] = []
    for entry in text.replace(",", " ").split():
        pattern, _, model = entry.partition("=")
        if not pattern or not model:
            raise ValueError(entry)
        aliases.append((pattern, model))
    return tuple(aliases)


def resolve(name: str, aliases: Aliases, models: Collection[str]) -> str:
    """The model that `name` stands for. The first pattern counts; names in `models` are their own.

    A name without an alias stays: whether there is such a model is decided where it is submitted.
    """
    if name in models:
        return name
    for pattern, model in aliases:
        if fnmatchcase(name, pattern):
            return model
    return name
