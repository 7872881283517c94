"""The broker for operators: its queues, the bindings that make the tree, its health."""
