"""`python -m worker.engines.transformers.tensor_parallel.follower`: holds one shard of a model and computes what rank 0
says. Started by `leader`.

It ends with the line to its parent, and whatever goes wrong here ends it: the parent starts all of them again.
"""

import argparse
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed
import transformers

from worker.engines.transformers.model.attention import Piece
from worker.engines.transformers.model.runner import SlotModel
from worker.engines.transformers.tensor_parallel import sharding
from worker.engines.transformers.tensor_parallel.protocol import (
    Begin,
    Capture,
    Copy,
    Decode,
    Done,
    Failed,
    Feed,
    Fit,
    Line,
    LineClosed,
    Order,
    Plain,
    Prefill,
    packed_message,
)
from worker.errors import one_line

_SEND_SECONDS = 10.0


class _Shard:
    """What this process holds, and what it does with it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._begin: Begin | None = None
        self._store: Any = None
        self._model: Any = None
        self._over: SlotModel | None = None

    def obey(self, order: Order) -> None:
        """Raises whatever goes wrong."""
        match order:
            case Begin():
                self._load(order)
                self._line.send(packed_message(Done()))
            case Fit():
                if self._begin is None:
                    raise RuntimeError("nothing is loaded")
                self._over = sharding.fit_shard(self._model, self._begin.slots, self._begin.ranks)
                self._line.send(packed_message(Done()))
            case Capture():
                self._line.send(packed_message(Done(sharding.capture(self._fitted()))))
            case Plain():
                self._fitted().forget_graphs()
            case _:
                self._compute(self._fitted(), order)

    def _load(self, begin: Begin) -> None:
        self._begin = begin
        torch.set_num_threads(begin.threads)
        transformers.utils.logging.disable_progress_bar()
        place = torch.device(begin.device)
        self._store = torch.distributed.TCPStore(
            sharding.LOOPBACK, begin.port, is_master=False, timeout=timedelta(seconds=begin.seconds)
        )
        sharding.join_group(self._store, begin.rank, begin.ranks, place, begin.seconds)
        self._model = sharding.load_shard(Path(begin.folder), place, begin.ranks)

    def _fitted(self) -> SlotModel:
        if self._over is None:
            raise RuntimeError("the model is not over slots")
        return self._over

    def _compute(self, over: SlotModel, order: Order) -> None:
        with torch.inference_mode():
            match order:
                case Prefill():
                    pieces = [Piece(*piece) for piece in order.pieces]
                    over.prefill(pieces, order.tokens, order.ends, fixed=order.fixed)
                case Decode():
                    over.decode(order.slots, order.positions, fixed=order.fixed)
                case Feed():
                    tokens = torch.empty(order.count, dtype=torch.long, device=over.device)
                    torch.distributed.broadcast(tokens, src=0)
                    over.feed(tokens)
                case Copy():
                    over.copy(order.source, order.slot, order.tokens)


def _end_with(line: Line) -> None:
    """Waits for the parent's end to close, then ends the process, even in the middle of a step that waits for a rank
    which is gone.
    """
    watch = select.poll()
    watch.register(line.fileno(), select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0))
    watch.poll()
    os._exit(0)


def main(arguments: list[str]) -> int:
    """Exit code: 1 if something went wrong here; 0 when the parent closed the line."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.engines.transformers.tensor_parallel.follower", description=__doc__
    )
    parser.add_argument(
        "--line", type=int, required=True, help="the socket to the parent, an open file's number"
    )
    line = Line(socket.socket(fileno=parser.parse_args(arguments).line), _SEND_SECONDS)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # meant for the whole group: the parent says when it is over
        signal.signal(number, signal.SIG_IGN)
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(30),  # rank 0 says what all of them do
    )
    threading.Thread(target=_end_with, args=(line,), name="parent", daemon=True).start()
    shard = _Shard(line)
    with suppress(LineClosed):
        line.send(packed_message(Done()))
        while True:
            order = line.order()
            try:
                shard.obey(order)
            except LineClosed:
                raise
            except (
                Exception
            ) as error:  # whatever a model or a device raises; the parent hears it and ends us all
                line.send(packed_message(Failed(one_line(error))))
                return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing here is worth the seconds that the libraries take for their end
