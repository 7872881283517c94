"""Models that the runner cannot compute exactly, by the library's own attention: slower.

transformers' continuous batching (`generate_batch`, 5.23) does not replace this. Tried with small
models of eleven such architectures, it refuses state spaces and chunked attention (mamba, zamba2,
llama4), raises for falcon, doge and the compressed keys of deepseek_v3, and for diffllama, gpt_neo
and mpt it silently generates other tokens than `generate`; only bloom and gpt_oss come out right.
Its sampler takes temperature, top-k and top-p per request, but no seed, bias, penalties or
logprobs.
"""
