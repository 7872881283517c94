"""Types of the wire's fields with their bounds.

A message outside these bounds does not decode. They lie far beyond what a correct process sends.
"""

from typing import Annotated

import msgspec

from topology.names import MAX_NAME_BYTES, NODE_NAME

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Slots = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
JobCount = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]  # Unix seconds
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_BYTES)]
NodeName = Annotated[str, msgspec.Meta(pattern=rf"^(?:{NODE_NAME})\Z")]
Traceparent = Annotated[str, msgspec.Meta(max_length=55)]  # W3C's, checked where it is used
Note = Annotated[str, msgspec.Meta(max_length=10_000)]  # a sentence for people
Trail = Annotated[tuple[Name, ...], msgspec.Meta(max_length=10_000)]  # for display only
Waits = Annotated[tuple[Seconds, ...], msgspec.Meta(max_length=10_000)]  # for display only
NodeNames = Annotated[tuple[NodeName, ...], msgspec.Meta(max_length=10_000)]
UserCounts = Annotated[dict[Name, JobCount], msgspec.Meta(max_length=20_000)]
Unit = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-1000, le=1000)]
Text = Annotated[str, msgspec.Meta(max_length=50_000)]  # of a prompt, as an operator sees it
LONGEST_SECONDS = 1e9  # the bound of Seconds
