"""Random histories: what holds whatever happens, in whatever order."""
