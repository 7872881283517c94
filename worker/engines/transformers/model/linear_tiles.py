"""How products of few rows with a weight matrix are divided among a GPU's programs. Pure."""

from typing import NamedTuple

import torch

from worker.engines.transformers.model.cuda_graphs import MAX_CHUNKS

ROW_BUCKETS = (1, 8, 16, 32, 64)  # products of more rows are torch's
_WIDE = 16_384  # out features from which on there are programs enough without splitting


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

    @property
    def columns(self) -> int:
        """The out features of the product."""
        return self.shape[0] // 2 if self.activation else self.shape[0]


# By rows, those of some 40 that were the fastest on an H200 for a shape of Llama-3-8B.
_PLAIN = Tile(64, 128, 1, 4, 4, "swapped")
_NARROW = {
    1: (Tile(8, 512, 1, 2, 5, "sum"), Tile(64, 256, 2, 4, 4, "swapped")),
    8: (Tile(16, 256, 1, 2, 5), Tile(64, 256, 2, 4, 4, "swapped")),
    16: (Tile(16, 256, 1, 2, 5), Tile(64, 256, 2, 4, 4, "swapped")),
    32: (Tile(64, 128, 2, 4, 4, "swapped"), Tile(64, 128, 4, 4, 4, "swapped")),
    64: (_PLAIN, Tile(64, 128, 2, 4, 4, "swapped")),
}
_WIDE_TILES = {
    1: (Tile(16, 256, 1, 4, 4, "sum"), _PLAIN),
    8: (_PLAIN,),
    16: (_PLAIN,),
    32: (_PLAIN, Tile(128, 128, 1, 8, 4, "swapped")),
    64: (_PLAIN,),
}
_GATED = dict.fromkeys(ROW_BUCKETS, (_PLAIN,)) | {1: (Tile(8, 512, 1, 2, 5, "sum"), _PLAIN)}


def candidates(key: LinearKey, bucket: int) -> tuple[Tile, ...]:
    """What is worth measuring for up to `bucket` rows. A gated product is not split."""
    if key.activation:
        return _GATED[bucket]
    return (_WIDE_TILES if key.columns >= _WIDE else _NARROW)[bucket]


def measured_buckets(slots: int, *, logits: bool = False) -> tuple[int, ...]:
    """Those of decoding steps, without the one of all slots: steps of requests that name a seed
    have so many rows, and must not depend on what a measurement at this start has said. `logits`:
    of a layer that computes them, which a prefill of such a request does, too.
    """
    excluded = bucket_of(MAX_CHUNKS) if logits else None
    return tuple(bucket for bucket in ROW_BUCKETS if bucket < slots and bucket != excluded)


def default_tile(rows: int, columns: int, *, gated: bool, x_bytes: int, weight_bytes: int) -> Tile:
    """For a product that was not measured. The bytes: of one number."""
    wide = gated or columns >= _WIDE
    if rows == 1:
        return Tile(8, 512 if wide else 1024, 1, 4, 4, "sum")
    if x_bytes != weight_bytes:  # weights are converted as they come, which "swapped" is slow at
        return Tile(32, 256, 1 if wide else 2, 4, 4)
    inner = 256 // weight_bytes  # whole cache lines, two of them
    return Tile(64, inner, 1 if wide else 2, 4, 4, "swapped")


def bucket_of(rows: int) -> int | None:
    """The smallest bucket that `rows` fit into."""
    return next((bucket for bucket in ROW_BUCKETS if rows <= bucket), None)
