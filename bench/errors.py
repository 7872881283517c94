"""What ends a benchmark or one of its rows. The texts are for the person who started it."""


class BenchError(Exception):
    """The root of every error that a benchmark raises on purpose."""


class NotStarted(BenchError):
    """A process that is to be measured did not come up, or ended early."""


class RequestFailed(BenchError):
    """The service answered with something other than the answer."""
