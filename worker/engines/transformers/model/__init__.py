"""The model on its device: loading, placement, number formats, the compatibility probe, the runner and attention."""
