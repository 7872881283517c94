"""How products of few rows with a weight matrix are divided among a GPU's programs. Pure."""

from typing import NamedTuple

import torch

ROW_BUCKETS = (1, 16, 32, 64)  # products of more rows are torch's


class Tile(NamedTuple):
    """How a program goes about its work."""

    columns: int  # out features of a program
    inner: int  # in features read at a time
    split: int  # programs that share the in features
    warps: int
    stages: int  # reads under way
    method: str = "dot"  # or "swapped": out features are the rows of the product; "sum": one row


class LinearKey(NamedTuple):
    """What the choice of a method depends on, besides rows."""

    shape: torch.Size  # of the weight: [out features, in features]
    dtype: torch.dtype
    activation: str  # of a gated layer, whose weight has the gates first; else ""


# By the number of rows up to which they are worth measuring.
CANDIDATES = {
    1: (Tile(16, 256, 1, 4, 4), Tile(32, 256, 1, 4, 4)),
    16: (Tile(32, 256, 1, 4, 4), Tile(32, 256, 2, 4, 4)),
    32: (Tile(32, 128, 1, 4, 4), Tile(64, 128, 4, 4, 4)),
    64: (Tile(64, 128, 4, 4, 4), Tile(128, 64, 4, 8, 5, "swapped")),
}


def bucket_of(rows: int) -> int | None:
    """The smallest bucket that `rows` fit into."""
    return next((bucket for bucket in ROW_BUCKETS if rows <= bucket), None)
