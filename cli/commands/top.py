"""`top`: the tree in a terminal, live."""

import asyncio
import json
import os
import signal
import sys

import click

from broker.errors import BrokerError
from cli import colours, options, registry
from cli.top import terminal, view
from cli.top.figures import Figures
from cli.top.view import Choice
from cli.top.watch import LocalWatch, Watch, watching

EVERY = 1.0  # second between two lines or frames
_FIRST_SECONDS = 2.0  # for a node to answer
_OTHERS_SECONDS = 0.3  # after that, for the others
_RETRY_SECONDS = 1.0
_PAGE = 10  # lines


@click.command()
@click.option("--once", is_flag=True, help="Print the tree once, after a second of watching.")
@options.as_json
def top(once: bool, as_json: bool) -> None:
    """Watch the tree: states, slots, queues, tokens a second.

    Keys: q quits, s changes the order, r reverses it, the arrows scroll. With --json it prints an
    object a second, until Ctrl-C. All of it comes from the broker (CANOPY_AMQP_URL, or the instance
    that runs here), or from the nodes that joined a tree elsewhere from this machine.
    """
    amqp_url = ""
    if not registry.reads_local_nodes():
        amqp_url, _ = registry.broker_addresses()
    if as_json:
        registry.run(_print_json(amqp_url, once))
    elif once or not sys.stdout.isatty():
        registry.run(_print_once(amqp_url))
    else:
        registry.run(_Top(amqp_url).run())


async def _print_once(amqp_url: str) -> None:
    async with watching(amqp_url) as watch:
        shown = await _second_look(watch)
    coloured = colours.are_shown()
    for line in view.whole(shown, coloured):
        print(line)


async def _print_json(amqp_url: str, once: bool) -> None:
    """One line a second. Raises BrokerError when the session is lost."""
    async with watching(amqp_url) as watch:
        shown = await _second_look(watch)
        while _printed(shown) and not once:
            await asyncio.sleep(EVERY)
            shown = await watch.figures()


def _printed(shown: Figures) -> bool:
    """Prints a line; False if nobody reads any longer, as after `| head -1`."""
    try:
        print(json.dumps(shown), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return False
    return True


async def _second_look(watch: Watch | LocalWatch) -> Figures:
    """The figures after a second, as a rate needs two samples."""
    await _answers(watch)
    await watch.figures()
    await asyncio.sleep(EVERY)
    watch.changed.clear()
    watch.ping()
    await _answers(watch)
    return await watch.figures()


async def _answers(watch: Watch | LocalWatch) -> None:
    """Waits for the nodes' states: for the first one, then a little for the others."""
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            await watch.changed.wait()
    except TimeoutError:
        return  # there may be no node at all
    await asyncio.sleep(_OTHERS_SECONDS)


class _Top:
    """The screen. It stays when the broker goes away, and says so."""

    def __init__(self, amqp_url: str) -> None:
        self._amqp_url = amqp_url
        self._choice = Choice()
        self._note = ""
        self._figures: Figures | None = None
        self._quit = asyncio.Event()
        self._coloured = colours.are_shown()

    async def run(self) -> None:
        """Returns when the reader quits."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.add_signal_handler(number, self._quit.set)
        async with watching(self._amqp_url) as watch:  # without a broker there is no screen
            with terminal.taken(self._on_key, self._draw):
                await self._follow(watch)
                while not self._quit.is_set():
                    await self._reconnect()

    async def _reconnect(self) -> None:
        self._note = "the broker is away; trying again (q quits)"
        self._draw()
        await self._pause(_RETRY_SECONDS)
        try:
            async with watching(self._amqp_url) as watch:
                await self._follow(watch)
        except BrokerError as error:
            self._note = f"{error} (q quits)"

    async def _follow(self, watch: Watch | LocalWatch) -> None:
        """Draws a frame a second until the reader quits or the session is lost."""
        while not self._quit.is_set() and not watch.lost:
            try:
                self._figures = await watch.figures()
            except BrokerError:
                return
            self._note = ""
            self._draw()
            await self._pause(EVERY)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._quit.wait()
        except TimeoutError:
            pass

    def _draw(self) -> None:
        if self._figures is not None:
            width, height = terminal.size()
            lines = view.screen(
                self._figures, self._choice, width, height, self._note, self._coloured
            )
            terminal.draw(lines)

    def _on_key(self, key: str) -> None:
        match key:
            case "q":
                self._quit.set()
            case "s":
                self._choice = self._choice.next_sort()
            case "r":
                self._choice = Choice(self._choice.sort, not self._choice.reverse)
            case "up" | "k":
                self._scroll(-1)
            case "down" | "j":
                self._scroll(1)
            case "page up":
                self._scroll(-_PAGE)
            case "page down":
                self._scroll(_PAGE)
        self._draw()

    def _scroll(self, lines: int) -> None:
        if self._figures is not None:
            _, height = terminal.size()
            last = view.last_first(self._figures, height)
            self._choice = self._choice.scrolled(lines, last)
