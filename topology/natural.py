"""Names in the order in which people count."""

import re
from functools import lru_cache

NaturalKey = tuple[tuple[int, int, str], ...]


@lru_cache(maxsize=32_768)  # of large trees, too
def natural_key(name: str) -> NaturalKey:
    """Sort key under which n2 comes before n10: round robin follows the numbers people gave."""
    key = []
    for part in re.findall(r"\d+|\D+", name):
        if part.isdecimal():
            key.append((0, int(part), ""))
        else:
            key.append((1, 0, part))
    return tuple(key)
