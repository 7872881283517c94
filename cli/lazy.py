"""Commands that are imported when they run, so that `--help` and `status` stay fast."""

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(TyperCommand):
    """Stands in for a command until it is invoked: knows its name and its one line of help.

    `function`: "module:name" of the function with typer's annotations. `pass_on`: the options that
    the function does not know reach it in `typer.Context.args`; so does --help unless `own_help`.
    """

    def __init__(
        self,
        name: str,
        function: str,
        summary: str,
        *,
        pass_on: bool = False,
        own_help: bool = True,
    ) -> None:
        super().__init__(name, help=summary)
        self._function = function
        self._settings: dict[str, Any] = {}
        if pass_on:
            self._settings = {"allow_extra_args": True, "ignore_unknown_options": True}
        if not own_help:
            self._settings["help_option_names"] = []

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the real command, which typer then invokes."""
        return self.load().make_context(*args, **kwargs)

    def load(self) -> Any:
        """Imports the function and makes it a command."""
        module, _, name = self._function.partition(":")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        function = getattr(importlib.import_module(module), name)
        app.command(self.name, context_settings=self._settings)(function)
        return typer.main.get_command(app)


def group(name: str, help_text: str, commands: list[TyperCommand | TyperGroup]) -> TyperGroup:
    """A command with commands. Its help is plain text, as rich takes 0.1 s to import."""
    return TyperGroup(
        name=name,
        help=help_text,
        commands=commands,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
