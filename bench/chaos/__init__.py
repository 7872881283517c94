"""`bench chaos`: random faults under load, and the proof that no request was forgotten."""
