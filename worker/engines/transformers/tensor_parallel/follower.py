"""`python -m worker.engines.transformers.tensor_parallel.follower`: holds one shard of a model and
makes the calls of rank 0. Started by `leader`.

It ends when its channel closes, and whatever goes wrong here ends it: the leader starts all of them
again.
"""

import argparse
import logging
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

import torch
import torch.distributed
import transformers

from broker import logs
from worker.engines.transformers.model.loader import load_tokenizer
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import DecodeRows
from worker.engines.transformers.tensor_parallel import sharding
from worker.engines.transformers.tensor_parallel.protocol import (
    Call,
    CaptureGraphs,
    Channel,
    ChannelClosed,
    CopyPrefix,
    CreateRunner,
    Decode,
    Done,
    DropGraphs,
    Failed,
    Feed,
    LoadShard,
    Prefill,
    SetBlocks,
    SharePrefixes,
    encode,
)
from worker.errors import one_line

_SEND_TIMEOUT = 10.0  # seconds


class _LoadedShard:
    """This rank's part of the model, once it is loaded."""

    def __init__(self, call: LoadShard) -> None:
        torch.set_num_threads(call.threads)
        transformers.utils.logging.disable_progress_bar()
        device = torch.device(call.device)
        store = torch.distributed.TCPStore(
            sharding.LOOPBACK, call.port, is_master=False, timeout=timedelta(seconds=call.timeout)
        )
        sharding.join_group(store, call.rank, call.ranks, device, call.timeout)
        self._store = store  # the group lives as long as it does
        self._slots, self._ranks = call.slots, call.ranks
        self._tokenizer = load_tokenizer(Path(call.folder))
        self._model: Any = sharding.load_shard(Path(call.folder), device, call.ranks)

    def create_runner(self) -> sharding.Shard:
        """In step with all ranks. Raises EngineUnavailable."""
        return sharding.create_shard(self._model, self._tokenizer, self._slots, self._ranks)


class _Follower:
    """Makes the calls of rank 0."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loaded: _LoadedShard | None = None
        self._shard: sharding.Shard | None = None

    def handle(self, call: Call) -> None:
        """Raises whatever goes wrong."""
        match call:
            case LoadShard():
                self._loaded = _LoadedShard(call)
                self._channel.send(encode(Done()))
            case CreateRunner():
                if self._loaded is None:
                    raise RuntimeError("no shard is loaded")
                self._shard = self._loaded.create_runner()
                self._channel.send(encode(Done()))
            case CaptureGraphs():
                error = sharding.capture_graphs(self._ready_shard, compiled=call.compiled)
                self._channel.send(encode(Done(error)))
            case DropGraphs():
                sharding.drop_graphs(self._ready_shard)
            case _:
                self._run(self._ready_shard.runner, call)

    @property
    def _ready_shard(self) -> sharding.Shard:
        if self._shard is None:
            raise RuntimeError("the shard has no runner")
        return self._shard

    def _run(self, runner: LocalModelRunner, call: Call) -> None:
        with torch.inference_mode():
            match call:
                case Prefill():
                    runner.prefill(
                        call.chunks,
                        call.tokens,
                        call.ends_prompt,
                        DecodeRows(call.slots, call.positions),
                        batch_invariant=call.batch_invariant,
                        every_token=call.every_token,
                        hidden=call.hidden,
                    )
                case Decode():
                    runner.decode(call.slots, call.positions, batch_invariant=call.batch_invariant)
                case Feed():
                    tokens = torch.empty(call.count, dtype=torch.long, device=runner.device)
                    torch.distributed.broadcast(tokens, src=0)
                    runner.feed(tokens)
                case CopyPrefix():
                    runner.copy_prefix(call.source, call.slot, call.tokens)
                case SetBlocks():
                    runner.set_blocks(call.ranges)
                case SharePrefixes():
                    runner.share_prefixes(call.prefixes)


def _exit_with_leader(channel: Channel) -> None:
    """Waits for the leader's end to close, then ends the process, even in the middle of a step that
    waits for a rank which is gone.
    """
    hangup = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
    watch = select.poll()
    watch.register(channel.fileno(), hangup)
    watch.poll()
    os._exit(0)


def main(arguments: list[str]) -> int:
    """Exit code: 1 if something went wrong here; 0 when the leader closed the channel."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.engines.transformers.tensor_parallel.follower", description=__doc__
    )
    parser.add_argument(
        "--channel", type=int, required=True, help="file descriptor of the socket to the leader"
    )
    descriptor = parser.parse_args(arguments).channel
    channel = Channel(socket.socket(fileno=descriptor), _SEND_TIMEOUT)
    # Sent to the whole process group: the leader decides when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = logs.read(os.environ)
    # rank 0 logs for all
    logs.configure_node(settings._replace(level=logging.WARNING), "follower")
    threading.Thread(
        target=_exit_with_leader, args=(channel,), name="leader watch", daemon=True
    ).start()
    with suppress(ChannelClosed):
        return _serve(channel)
    return 0


def _serve(channel: Channel) -> int:
    """Handles calls until one fails. Raises ChannelClosed."""
    follower = _Follower(channel)
    channel.send(encode(Done()))
    while True:
        call = channel.receive_call()
        try:
            follower.handle(call)
        except ChannelClosed:
            raise
        except Exception as error:  # whatever a model or a device raises; the leader ends all ranks
            channel.send(encode(Failed(one_line(error))))
            return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing here is worth the seconds that the libraries take to shut down
