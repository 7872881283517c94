"""`bench chaos`: random faults under load, and the proof that nobody was forgotten."""
