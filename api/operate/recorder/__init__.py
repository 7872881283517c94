"""One API process reads the broker for all, and writes what is kept of it."""
