"""What ends a command of this room."""


class DataError(Exception):
    """The command cannot be done as things are; the text says why, and what to do."""
