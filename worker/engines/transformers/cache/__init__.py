"""Which sequence has which part of the KV cache, and which prompts' beginnings are still in it."""
