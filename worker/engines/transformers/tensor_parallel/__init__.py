"""One model computed by several processes."""
