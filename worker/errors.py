"""What an exception says, for a log line or a person."""


def one_line(error: BaseException) -> str:
    """Its first line, or its kind where it says nothing: some libraries' messages are pages, others empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
