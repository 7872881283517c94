"""The transformers engine: scheduler, model runner, sampler, text, tensor parallelism, and a fallback for the rest."""
