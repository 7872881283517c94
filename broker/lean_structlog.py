"""Imports structlog without rich and pygments, which it takes along wherever they are installed.

transformers brings them. They are a third of what a node imports and 4 MB of each process, for
coloured tracebacks that no log of ours has. Who needs rich may still import it after this. It works
when it is imported, and before structlog: the packages of nodes and of the API do that first.
"""

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes its import fail
    import structlog  # noqa: F401

    del sys.modules["rich"]
