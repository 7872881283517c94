"""JSON in a growing text: where a value ends. It is not checked, only its brackets are counted."""


class JSONBoundary:
    """Finds the end of one object or list. `depth`: how many brackets are open."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str, depth: int = 0) -> int | None:
        """Where in `text` the value that closes to `depth` ends (behind its bracket), or None.

        What is behind the end is not read.
        """
        for index, character in enumerate(text):
            if self._in_string:
                self._in_a_string(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth <= depth:
                    return index + 1
        return None

    def _in_a_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
