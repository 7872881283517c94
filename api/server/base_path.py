"""The path below which a proxy serves Canopy, such as /canopy, in ASGI scopes.

Below `Edge` a scope is as ASGI defines it: `root_path` is the base path, and `path` begins with it.
"""

from typing import Any

Scope = dict[str, Any]


def add_base_path(scope: Scope, base_path: str) -> None:
    """Sets `root_path`, and puts it before a path from which the proxy has taken it off."""
    scope["root_path"] = base_path
    path: str = scope["path"]
    if path != base_path and not path.startswith(f"{base_path}/"):
        scope["path"] = base_path + path


def app_path(scope: Scope) -> str:
    """The path as urls.py has it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def lacks_slash(scope: Scope) -> bool:
    """Whether this is the base path itself, whose page has a slash at the end."""
    return scope["path"] == scope.get("root_path") != ""
