"""The follower processes of a leader."""

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog
import torch
import torch.distributed

from worker.engines.base import EngineFailed, EngineUnavailable
from worker.engines.transformers.tensor_parallel import sharding
from worker.engines.transformers.tensor_parallel.peer_memory import PeerMemory
from worker.engines.transformers.tensor_parallel.protocol import (
    Call,
    Channel,
    ChannelClosed,
    ChannelError,
    ChannelStalled,
    Done,
    Failed,
    Reply,
    encode,
)

log = structlog.get_logger(__name__)

NOTICE_SECONDS = 2.0  # a failed step waits so long to learn that a follower is gone
END_SECONDS = 5.0
_SEND_TIMEOUT = 10.0  # seconds: a follower that reads nothing for so long is stopped or lost
_REPOSITORY = Path(__file__).parents[4]
# Of our own variables, which include passwords, what a follower needs.
_PASSED_VARIABLES = (
    "CANOPY_HOME",
    "CANOPY_GPU_NODES",
    "CANOPY_MEMORY_FRACTION",
    "CANOPY_PRECISION",
    "CANOPY_KV_CACHE_DTYPE",
    "CANOPY_LOG_FORMAT",
)


class _Follower:
    """One process, and the channel to it."""

    def __init__(self, rank: int) -> None:
        """Starts it."""
        self.rank = rank
        self.replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()  # None: no more come
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "worker.engines.transformers.tensor_parallel.follower",
                    "--channel",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard error, as a node's own lines
                cwd=_REPOSITORY,
                env=_follower_environment(),
                pass_fds=[theirs.fileno()],
            )
        self.channel = Channel(ours, _SEND_TIMEOUT)

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        """After `kill`."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # in a system call that does not return
            log.error("a follower does not end", pid=self.process.pid)

    def exit_status(self) -> str:
        """In words, if it is known by now."""
        try:
            status = self.process.wait(NOTICE_SECONDS / 2)
        except subprocess.TimeoutExpired:
            return ""
        return f" (signal {-status})" if status < 0 else f" (status {status})"


class Followers:
    """The processes of ranks 1 and up. A thread each listens to them; all other methods are called
    by the leader's thread.
    """

    def __init__(self, count: int) -> None:
        """Starts them."""
        self.reason = ""  # why they are lost
        self.memory: PeerMemory | None = None  # shared with them, once there is a shard
        self._lost = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._followers: list[_Follower] = []
        self._threads: list[threading.Thread] = []
        for rank in range(1, count + 1):
            follower = _Follower(rank)
            thread = threading.Thread(
                target=self._listen, args=(follower,), name=f"rank {rank}", daemon=True
            )
            self._followers.append(follower)
            self._threads.append(thread)
            thread.start()

    @property
    def pids(self) -> list[int]:
        """Of their processes, by rank."""
        return [follower.process.pid for follower in self._followers]

    def send(self, call: Call) -> None:
        """To all of them. Raises EngineFailed if one is gone or does not read."""
        self.check()
        encoded = encode(call)
        for follower in self._followers:
            self._send(follower, encoded)

    def send_each(self, calls: list[Call]) -> None:
        """One to each, by rank. Raises EngineFailed as `send` does."""
        self.check()
        for follower, call in zip(self._followers, calls, strict=True):
            self._send(follower, encode(call))

    def wait_until_done(self, seconds: float) -> list[str]:
        """Waits for the answers of all. Returns their errors, "" for none. Raises
        EngineUnavailable.
        """
        until = time.monotonic() + seconds
        errors = []
        for follower in self._followers:
            try:
                reply = follower.replies.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise EngineUnavailable(
                    f"rank {follower.rank} of the model has not answered for {seconds:.0f} s"
                ) from None
            if not isinstance(reply, Done):
                raise EngineUnavailable(
                    self.reason or f"rank {follower.rank} of the model has ended"
                )
            errors.append(reply.error)
        return errors

    def check(self) -> None:
        """Raises EngineFailed if one of them is lost: nothing computed since is right."""
        if self._lost.is_set():
            raise EngineFailed(self.reason)

    def wait_for_loss(self, seconds: float) -> bool:
        """Whether one of them is lost, now or within `seconds`."""
        return self._lost.wait(seconds)

    def give_up(self, reason: str) -> None:
        """They are out of step with rank 0: nothing can be computed any more."""
        self._lose(reason)
        self._kill()

    def close(self) -> None:
        """Ends them, whatever they do, and waits for their end."""
        with self._lock:
            self._closing = True
            self.reason = self.reason or "the model's processes are ended"
            self._lost.set()  # a step that waits for one of them fails now
        self._kill()
        for follower in self._followers:
            follower.channel.close()
        for thread in self._threads:
            thread.join(END_SECONDS)

    def _send(self, follower: _Follower, encoded: bytes) -> None:
        try:
            follower.channel.send(encoded)
        except ChannelError as error:
            # The listening thread knows better why a channel is closed, in a moment.
            stalled = isinstance(error, ChannelStalled)
            if stalled or not self._lost.wait(NOTICE_SECONDS):
                self._lose(f"rank {follower.rank} of the model does not read its calls")
            self.check()

    def _listen(self, follower: _Follower) -> None:
        try:
            while True:
                reply = follower.channel.receive_reply()
                if isinstance(reply, Failed):
                    self._lose(f"rank {follower.rank} of the model: {reply.reason}")
                follower.replies.put(reply)
        except ChannelClosed:
            status = follower.exit_status()
            self._lose(f"rank {follower.rank} of the model has ended{status}")
        finally:
            follower.replies.put(None)

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._closing or self._lost.is_set():
                return
            self.reason = reason
            self._lost.set()
        log.error("the model's processes are no longer together", reason=reason)
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
            # a GPU would wait for ever; gloo notices by itself
            sharding.leave_group(END_SECONDS, self.memory)

    def _kill(self) -> None:
        for follower in self._followers:
            follower.kill()
        for follower in self._followers:
            follower.wait()


def _follower_environment() -> dict[str, str]:
    variables = {}
    for name, value in os.environ.items():
        if name in _PASSED_VARIABLES or not name.startswith("CANOPY_"):
            variables[name] = value
    return variables
