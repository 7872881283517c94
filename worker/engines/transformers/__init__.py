"""The transformers engine: scheduler, model runner, sampler, text, tensor parallelism, fallback."""
