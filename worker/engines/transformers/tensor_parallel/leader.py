"""A model larger than one device, divided among processes (`--tensor-parallel`): this one schedules
and holds the first shard, followers hold the others.

    decoder thread, rank 0                            follower, rank 1 ...
    TensorParallelRunner.decode(slots, ...) - Decode -> LocalModelRunner.decode(slots, ...)
      LocalModelRunner.decode  <---- sums over all ranks, in each layer ---->
    Sampler samples
    TensorParallelRunner.feed(tokens) ------- Feed ---> broadcast, LocalModelRunner.feed(tokens)

All ranks make the same calls in the same order, so each holds its part of the keys and values of
the same slots. Only rank 0 samples. A rank that fails, or is gone, leaves the others waiting in the
middle of a step: then all processes are ended, the jobs go elsewhere, and the engine is started
again.
"""

import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed

from worker.engines.base import EngineFailed, EngineUnavailable
from worker.engines.transformers.model import float8_cache, gpu_precision
from worker.engines.transformers.model.checkpoint_format import packed_bits
from worker.engines.transformers.model.loaded import LoadedModel
from worker.engines.transformers.model.loader import (
    check_folder,
    eos_token_ids,
    load_config,
    load_tokenizer,
)
from worker.engines.transformers.model.placement import find_device
from worker.engines.transformers.model.prefill_speed import (
    measure_step_seconds,
    prefill_tokens,
)
from worker.engines.transformers.model.room import check_room
from worker.engines.transformers.model.runner import LocalModelRunner
from worker.engines.transformers.model.step import (
    NO_ROWS,
    BlockRange,
    DecodeRows,
    PrefillChunk,
    SharedPrefix,
)
from worker.engines.transformers.tensor_parallel import sharding
from worker.engines.transformers.tensor_parallel.followers import (
    END_SECONDS,
    NOTICE_SECONDS,
    Followers,
)
from worker.engines.transformers.tensor_parallel.protocol import (
    Call,
    CaptureGraphs,
    CopyPrefix,
    CreateRunner,
    Decode,
    DropGraphs,
    Feed,
    LoadShard,
    Prefill,
    SetBlocks,
    SharePrefixes,
)
from worker.errors import one_line

log = structlog.get_logger(__name__)

STEP_SECONDS = 120.0  # one rank waits so long for another; they differ by little
_START_SECONDS = 120.0  # for a process to start: it imports torch
_LOAD_SECONDS = 1800.0  # for the others to have loaded, once rank 0 has


class TensorParallelRunner:
    """A ModelRunner over all ranks: whatever it computes here, the followers compute too."""

    def __init__(self, runner: LocalModelRunner, followers: Followers) -> None:
        self._runner = runner
        self._followers = followers
        self.device: torch.device = runner.device
        self.slots, self.context, self.blocks = runner.slots, runner.context, runner.blocks
        self.windows = runner.windows
        self.prefix_tile_rows = runner.prefix_tile_rows
        self.rope_limit = runner.rope_limit

    @property
    def asynchronous(self) -> bool:
        """See ModelRunner."""
        return self._runner.asynchronous

    @property
    def cache_bytes(self) -> int:
        """See ModelRunner."""
        return self._runner.cache_bytes

    def copy_prefix(self, source: int, slot: int, tokens: int) -> None:
        """See ModelRunner."""
        with self._on_all_ranks(CopyPrefix(source, slot, tokens)):
            self._runner.copy_prefix(source, slot, tokens)

    def set_blocks(self, ranges: list[BlockRange]) -> None:
        """See ModelRunner."""
        with self._on_all_ranks(SetBlocks(ranges)):
            self._runner.set_blocks(ranges)

    def share_prefixes(self, prefixes: list[SharedPrefix]) -> None:
        """See ModelRunner."""
        with self._on_all_ranks(SharePrefixes(prefixes)):
            self._runner.share_prefixes(prefixes)

    def feed(self, tokens: torch.Tensor) -> None:
        """See ModelRunner. The tokens go from device to device, without waiting for the host."""
        with self._on_all_ranks(Feed(len(tokens))):
            torch.distributed.broadcast(tokens, src=0)
            self._runner.feed(tokens)

    def prefill(
        self,
        chunks: list[PrefillChunk],
        tokens: list[list[int]],
        ends_prompt: list[bool],
        rows: DecodeRows = NO_ROWS,
        *,
        batch_invariant: bool = False,
        every_token: bool = False,
        hidden: bool = False,
    ) -> torch.Tensor:
        """See ModelRunner."""
        call = Prefill(
            chunks,
            tokens,
            ends_prompt,
            list(rows.slots),
            list(rows.positions),
            batch_invariant,
            every_token,
            hidden,
        )
        with self._on_all_ranks(call):
            return self._runner.prefill(
                chunks,
                tokens,
                ends_prompt,
                rows,
                batch_invariant=batch_invariant,
                every_token=every_token,
                hidden=hidden,
            )

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], *, batch_invariant: bool = False
    ) -> torch.Tensor:
        """See ModelRunner."""
        with self._on_all_ranks(Decode(list(slots), list(positions), batch_invariant)):
            return self._runner.decode(slots, positions, batch_invariant=batch_invariant)

    def drop_graphs(self) -> None:
        """NCCL does not release a group while graphs with its sums exist."""
        self._runner.drop_graphs()

    def check(self) -> None:
        """Raises EngineFailed if a follower is lost: what was computed since is not right."""
        self._followers.check()

    @contextmanager
    def _on_all_ranks(self, call: Call) -> Iterator[None]:
        """A failure here leaves the others in the middle of a step, so it ends all of them."""
        self._followers.send(call)
        try:
            yield
        except Exception as error:
            if self._followers.wait_for_loss(NOTICE_SECONDS):
                raise EngineFailed(self._followers.reason) from error
            self._followers.give_up(f"rank 0 of the model failed in a step: {one_line(error)}")
            raise


def load(folder: Path, device_name: str, slots: int | None, ranks: int) -> LoadedModel:
    """The model in `folder` over `ranks` processes, on the CPU or on that many GPUs from the named
    one on. `slots`: see `memory.cache_size_for`. Blocks; raises EngineUnavailable.
    """
    base = find_device(device_name)
    check_folder(folder)
    devices = [sharding.device_of_rank(base, rank, ranks) for rank in range(ranks)]
    float8_cache.is_requested(base)
    if base.type == "cuda":
        gpu_precision.check(base)
    tokenizer = load_tokenizer(folder)
    try:
        config = load_config(folder, base, divided=True)
        # Before processes are started; each looks at its own device in `load_shard`.
        check_room(folder, devices[:1], ranks=ranks, packed_bits=packed_bits(config))
        sharding.check_plan(folder, ranks)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EngineUnavailable(f"cannot load the model in {folder}: {one_line(error)}") from error
    followers = Followers(ranks - 1)
    runner: TensorParallelRunner | None = None

    def close() -> bool:
        atexit.unregister(close)
        followers.close()
        if runner is not None:
            runner.drop_graphs()
        return sharding.leave_group(END_SECONDS, followers.memory)

    atexit.register(close)  # a process that ends while its engine starts never stops the engine
    try:
        shard = _load_ranks(followers, folder.resolve(), devices, tokenizer, slots)
        runner = TensorParallelRunner(shard.runner, followers)
        step_seconds = measure_step_seconds(runner, base)
    except EngineUnavailable:
        close()
        raise
    except Exception as error:  # a failed collective has many names; the rank at fault says why
        lost = followers.wait_for_loss(NOTICE_SECONDS)
        reason = followers.reason if lost else one_line(error)
        close()
        raise EngineUnavailable(f"cannot load the model in {folder}: {reason}") from error
    except BaseException:
        close()
        raise
    return LoadedModel(
        model=shard.model,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(shard.model, tokenizer),
        slots=runner.slots,
        context=runner.context,
        vocabulary=shard.model.config.get_text_config().vocab_size,
        prefill_tokens=prefill_tokens(runner, base),
        step_seconds=step_seconds,
        runner=runner,
        precision=shard.precision,
        close=close,
    )


def _load_ranks(
    followers: Followers,
    folder: Path,
    devices: list[torch.device],
    tokenizer: Any,
    slots: int | None,
) -> sharding.Shard:
    """All ranks load at the same time, and go on together once all have loaded."""
    ranks = len(devices)
    threads = sharding.threads_per_rank(ranks)
    torch.set_num_threads(threads)
    followers.wait_until_done(_START_SECONDS)
    store, port = sharding.open_store(STEP_SECONDS)
    calls: list[Call] = []
    for rank in range(1, ranks):
        device = str(devices[rank])
        calls.append(
            LoadShard(rank, ranks, port, str(folder), device, slots, threads, STEP_SECONDS)
        )
    followers.send_each(calls)
    sharding.join_group(store, 0, ranks, devices[0], STEP_SECONDS)
    model = sharding.load_shard(folder, devices[0], ranks)
    followers.wait_until_done(_LOAD_SECONDS)
    followers.send(CreateRunner())
    shard = sharding.create_shard(model, tokenizer, slots, ranks)
    followers.memory = shard.memory
    followers.wait_until_done(STEP_SECONDS)
    if shard.runner.asynchronous:
        _capture_graphs(followers, shard)
    log.info(
        "computed together",
        processes=ranks,
        devices=", ".join(map(str, devices)),
        pids=followers.pids,
    )
    return shard


def _capture_graphs(followers: Followers, shard: sharding.Shard) -> None:
    """On all ranks, or on none: with compiled layers, without, or not at all."""
    for compiled in (True, False):
        followers.send(CaptureGraphs(compiled))
        own = sharding.capture_graphs(shard, compiled=compiled)
        reasons = [error for error in (own, *followers.wait_until_done(_LOAD_SECONDS)) if error]
        if not reasons:
            return
        followers.send(DropGraphs())
        sharding.drop_graphs(shard)
        event = "not compiled" if compiled else "decoding steps are not recorded"
        log.warning(event, reason=reasons[0])
