"""vLLM beside the engine, where its package is installed. Its usual settings, and token ids in."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from bench.engine.contender import Contender
from bench.engine.prompts import Prompt
from worker.engines.base import Chunk

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # greedy answers have no use for it
}


class Vllm(Contender):
    name = "vllm"

    def __init__(self, folder: Path, slots: int, context: int, *, dummy: bool) -> None:
        """`dummy`: a folder with a config alone, whose weights are made up."""
        self.context = context
        self._folder = folder
        self._slots = slots
        self._load_format = "dummy" if dummy else "auto"
        self._llm: Any = None
        self._count = 0

    async def start(self) -> str:
        """Compiles, which takes minutes the first time."""
        os.environ.update(_ENVIRONMENT)  # it reads them when imported
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=str(self._folder),
            load_format=self._load_format,
            skip_tokenizer_init=True,
            max_model_len=self.context,
            max_num_seqs=self._slots,
            dtype="bfloat16",
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
        self._llm = AsyncLLM.from_engine_args(arguments)
        return f"{vllm.__version__}, prefix cache on, {self._slots} at once, context {self.context}"

    async def stop(self) -> None:
        self._llm.shutdown()

    async def run(self, prompt: Prompt, answer: int, *, streamed: bool) -> AsyncGenerator[Chunk]:
        """Streaming takes time of its loop, so it only streams where that is measured."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=answer,
            ignore_eos=True,
            detokenize=False,
            output_kind=kind,
        )
        self._count += 1
        tokens = {"prompt_token_ids": list(prompt.ids)}
        outputs = self._llm.generate(tokens, sampling, f"bench-{self._count}")
        async with aclosing(outputs):  # one that is left aborts its request
            async for output in outputs:
                ids = tuple(output.outputs[0].token_ids)
                yield Chunk(tokens=len(ids), ids=ids)
