"""A model larger than one device, divided among processes: this one schedules and holds the first shard, followers hold
the others (`--tensor-parallel`).

    decoder thread, rank 0                          follower, rank 1 ...
    Leader.decode(slots, positions) -- Decode ----> SlotModel.decode(slots, positions)
          SlotModel.decode  <---- sums over all ranks, in each layer ---->
    Sampler chooses
    Leader.feed(tokens) ----------- Feed ---------> broadcast, SlotModel.feed(tokens)

All ranks make the same calls in the same order, so each holds its part of the keys and values of the same slots. Only
rank 0 chooses tokens. A rank that fails, or is gone, leaves the others waiting in the middle of a step: then everything
is ended, the jobs go elsewhere, and the engine is started again.
"""

import atexit
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed
import transformers

from worker.engines.base import EngineFailed, EngineUnavailable
from worker.engines.transformers.model.attention import Piece
from worker.engines.transformers.model.loaded import Loaded
from worker.engines.transformers.model.loader import check_folder, end_tokens, find_device
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
    Report,
    packed_message,
)
from worker.errors import one_line

log = structlog.get_logger(__name__)

STEP_SECONDS = (
    120.0  # one rank waits so long for another; they all compute the same, so they differ by little
)
_BEGIN_SECONDS = 120.0  # for a process to be there: it imports torch
_LOAD_SECONDS = 1800.0  # for the others to have loaded, once rank 0 has
_SEND_SECONDS = 10.0  # a follower that reads nothing for so long is stopped or lost
_NOTICE_SECONDS = 2.0  # a failed step waits so long for the news that a follower is gone
_END_SECONDS = 5.0
_KEPT = (
    "CANOPY_HOME",
    "CANOPY_GPU_NODES",
)  # of our settings, which have passwords among them, what a follower needs


class Followers:
    """The processes of ranks 1 and up. Threads of their own listen to them; everything else is the caller's thread."""

    def __init__(self, count: int) -> None:
        """Starts them."""
        self.reason = ""  # why there is no going on
        self._lost = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reports: list[queue.SimpleQueue[Report | None]] = []  # one for each of a few orders
        self._threads: list[threading.Thread] = []
        for rank in range(1, count + 1):
            self._start(rank)

    @property
    def pids(self) -> list[int]:
        """Of their processes, by rank."""
        return [process.pid for process in self._processes]

    def tell(self, order: Order) -> None:
        """All of them. Raises EngineError if one is gone or does not listen."""
        self.check()
        packed = packed_message(order)
        for rank in range(1, len(self._lines) + 1):
            self._send(rank, packed)

    def tell_each(self, orders: list[Order]) -> None:
        """One each. Raises EngineError as `tell` does."""
        self.check()
        for rank, order in enumerate(orders, 1):
            self._send(rank, packed_message(order))

    def hear(self, seconds: float) -> list[str]:
        """Waits until all have answered; what troubles each, if anything. Raises EngineUnavailable."""
        until = time.monotonic() + seconds
        troubles = []
        for rank, reports in enumerate(self._reports, 1):
            try:
                report = reports.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise EngineUnavailable(
                    f"rank {rank} of the model says nothing for {seconds:.0f} s"
                ) from None
            if not isinstance(report, Done):
                raise EngineUnavailable(self.reason or f"rank {rank} of the model has ended")
            troubles.append(report.trouble)
        return troubles

    def check(self) -> None:
        """Raises EngineError if one of them is gone: nothing computed since is right."""
        if self._lost.is_set():
            raise EngineFailed(self.reason)

    def gone(self, seconds: float) -> bool:
        """Whether one is, or is found to be within `seconds`."""
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
        for line in self._lines:
            line.close()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _start(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "worker.engines.transformers.tensor_parallel.follower",
                    "--line",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a node's own lines go to standard error, too
                cwd=Path(__file__).parents[4],
                env={name: value for name, value in os.environ.items() if _is_theirs(name)},
                pass_fds=[theirs.fileno()],
            )
        line, reports = Line(ours, _SEND_SECONDS), queue.SimpleQueue[Report | None]()
        listening = threading.Thread(
            target=self._listen, args=(rank, line, process, reports), name=f"rank {rank}"
        )
        listening.daemon = True
        self._processes.append(process)
        self._lines.append(line)
        self._reports.append(reports)
        self._threads.append(listening)
        listening.start()

    def _send(self, rank: int, packed: bytes) -> None:
        try:
            self._lines[rank - 1].send(packed)
        except (LineClosed, TimeoutError) as error:
            if isinstance(error, TimeoutError) or not self._lost.wait(_NOTICE_SECONDS):
                self._lose(f"rank {rank} of the model does not listen")
            self.check()

    def _listen(
        self,
        rank: int,
        line: Line,
        process: "subprocess.Popen[bytes]",
        reports: "queue.SimpleQueue[Report | None]",
    ) -> None:
        try:
            while True:
                report = line.report()
                if isinstance(report, Failed):
                    self._lose(f"rank {rank} of the model: {report.reason}")
                reports.put(report)
        except LineClosed:
            self._lose(f"rank {rank} of the model has ended{_how(process)}")
        finally:
            reports.put(None)

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._closing or self._lost.is_set():
                return
            self.reason = reason
            self._lost.set()
        log.error("the model's processes are no longer together", reason=reason)
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
            sharding.leave_group(_END_SECONDS)  # a GPU would wait for ever; gloo notices by itself

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:  # in a system call that does not end; it dies with it
                log.error("a follower does not end", pid=process.pid)


class Leader:
    """The model over slots as its scheduler sees it: what it computes, the followers compute, too."""

    def __init__(self, over: SlotModel, followers: Followers) -> None:
        self._over = over
        self._followers = followers
        self.device: torch.device = over.device
        self.slots, self.context = over.slots, over.context
        self.limit = over.limit

    @property
    def device_ahead(self) -> bool:
        """See SlotModel."""
        return self._over.device_ahead

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """See SlotModel, as for the others."""
        with self._together(Copy(source, slot, tokens)):
            self._over.copy(source, slot, tokens)

    def feed(self, tokens: torch.Tensor) -> None:
        """The tokens may still be on their way to the host: they go from device to device."""
        with self._together(Feed(len(tokens))):
            torch.distributed.broadcast(tokens, src=0)
            self._over.feed(tokens)

    def prefill(
        self, pieces: list[Piece], tokens: list[list[int]], ends: list[bool], *, fixed: bool = False
    ) -> torch.Tensor:
        """Logits [wanted, vocabulary]."""
        told = [(piece.slot, piece.start, piece.length, piece.whole) for piece in pieces]
        with self._together(Prefill(told, tokens, ends, fixed)):
            return self._over.prefill(pieces, tokens, ends, fixed=fixed)

    def decode(
        self, slots: list[int], positions: list[int], *, fixed: bool = False
    ) -> torch.Tensor:
        """Logits [rows, vocabulary]."""
        with self._together(Decode(slots, positions, fixed)):
            return self._over.decode(slots, positions, fixed=fixed)

    def forget_graphs(self) -> None:
        """nccl does not let go of a group while there are recorded steps with its sums in them."""
        self._over.forget_graphs()

    def check(self) -> None:
        """Raises EngineError if a follower is gone: what the device has computed since is not right."""
        self._followers.check()

    @contextmanager
    def _together(self, order: Order) -> Iterator[None]:
        """Whatever fails here leaves the others in the middle of a step, so it is the end for all."""
        self._followers.tell(order)
        try:
            yield
        except Exception as error:
            if self._followers.gone(_NOTICE_SECONDS):
                raise EngineFailed(self._followers.reason) from error
            self._followers.give_up(f"rank 0 of the model failed in a step: {one_line(error)}")
            raise


def load(folder: Path, device: str, slots: int | None, ranks: int) -> Loaded:
    """The model in `folder` over `ranks` processes, on the CPU or on so many GPUs from `device` on. Blocks; raises
    EngineUnavailable. `slots`: see `loading.size_of`.
    """
    base = find_device(device)
    check_folder(folder)
    places = [sharding.place_of(base, rank, ranks) for rank in range(ranks)]
    transformers.utils.logging.disable_progress_bar()
    try:
        sharding.check_plan(folder, ranks)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {one_line(error)}") from error
    followers = Followers(ranks - 1)
    leader: Leader | None = None

    def close() -> bool:
        atexit.unregister(close)
        followers.close()
        if leader is not None:
            leader.forget_graphs()
        return sharding.leave_group(_END_SECONDS)

    atexit.register(close)  # a process that ends while its engine starts never comes to stop it
    try:
        model, leader = _assemble(followers, folder.resolve(), places, slots)
    except EngineUnavailable:
        close()
        raise
    except (
        Exception
    ) as error:  # a failed collective has many names; the process that caused it says why
        reason = followers.reason if followers.gone(_NOTICE_SECONDS) else one_line(error)
        close()
        raise EngineUnavailable(f"cannot load the model in {folder}: {reason}") from error
    except BaseException:
        close()
        raise
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        eos_token_ids=end_tokens(model, tokenizer),
        slots=leader.slots,
        context=leader.context,
        vocabulary=model.config.get_text_config().vocab_size,
        prefill_tokens=256 if base.type == "cpu" else 2048,
        over=leader,
        close=close,
    )


def _assemble(
    followers: Followers, folder: Path, places: list[torch.device], slots: int | None
) -> tuple[Any, Leader]:
    """All ranks load at the same time, and go on together only when all have loaded."""
    ranks, threads = len(places), sharding.threads_of(len(places))
    torch.set_num_threads(threads)
    followers.hear(_BEGIN_SECONDS)
    store, port = sharding.open_store(STEP_SECONDS)
    followers.tell_each([
        Begin(rank, ranks, port, str(folder), str(places[rank]), slots, threads, STEP_SECONDS)
        for rank in range(1, ranks)
    ])  # fmt: skip
    sharding.join_group(store, 0, ranks, places[0], STEP_SECONDS)
    model = sharding.load_shard(folder, places[0], ranks)
    followers.hear(_LOAD_SECONDS)
    followers.tell(Fit())
    over = sharding.fit_shard(model, slots, ranks)
    followers.hear(STEP_SECONDS)
    if over.device_ahead:
        followers.tell(Capture())
        troubles = [sharding.capture(over), *followers.hear(_LOAD_SECONDS)]
        if any(troubles):
            followers.tell(Plain())
            over.forget_graphs()
            log.warning("decoding steps are not recorded", reason=next(filter(None, troubles)))
    log.info(
        "computed together",
        processes=ranks,
        devices=", ".join(map(str, places)),
        pids=followers.pids,
    )
    return model, Leader(over, followers)


def _is_theirs(variable: str) -> bool:
    return variable in _KEPT or not variable.startswith("CANOPY_")


def _how(process: "subprocess.Popen[bytes]") -> str:
    """How it has ended, if that is known by now."""
    try:
        status = process.wait(_NOTICE_SECONDS / 2)
    except subprocess.TimeoutExpired:
        return ""
    return f" (signal {-status})" if status < 0 else f" (status {status})"
