"""Constrained decoding: an answer that keeps a grammar, by masks on the logits (llguidance)."""
