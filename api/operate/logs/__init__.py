"""The last lines of logs, followed live. The command line uses it, so it needs no Django."""
