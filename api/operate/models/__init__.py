"""Models: what is served where, load and stop one, its limits and card, its autoscaler."""
