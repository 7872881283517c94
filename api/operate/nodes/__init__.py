"""Acting on nodes: drain, resume, restart, move, remove; what each would do, and whether it did."""
