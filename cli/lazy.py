"""Commands that are imported when they run, so that `--help` and `status` stay fast."""

import importlib
from collections.abc import Sequence
from typing import Any

import click


class LazyCommand(click.Command):
    """Stands in for a command until it is invoked: knows its name and its one line of help.

    `target`: "module:name" of the click command.
    """

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._target = target

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """The context of the real command, which click then invokes."""
        return self.load().make_context(*args, **kwargs)

    def load(self) -> click.Command:
        """Imports the command."""
        module, _, name = self._target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


class Group(click.Group):
    """A command with commands, in the given order."""

    def __init__(self, name: str, help_text: str, commands: Sequence[click.Command]) -> None:
        super().__init__(name, commands=commands, help=help_text, no_args_is_help=True)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names as given."""
        return list(self.commands)
