"""A file per command or group; `cli/__main__.py` lists all and imports the one that runs."""
