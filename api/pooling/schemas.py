"""The request bodies. Those of reranking and scoring are vLLM's, Jina's and Cohere's."""

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from api.http.parsing import Body, Integer, ModelName
from api.openai import unsupported
from api.openai.schemas import Tier
from api.openai.unsupported import Unsupported
from api.pooling.inputs import Documents, Inputs, PromptName, Texts
from broker.wire import MAX_DIMENSIONS, JobClass, Pooling

_UNSUPPORTED = {
    "input_type": Unsupported(instead="use prompt_name"),
    "messages": Unsupported(instead="use input"),
    "late_chunking": Unsupported((False,)),
    "rank_fields": Unsupported(([],)),
    "query_image": Unsupported(),
}


class PoolingBody(Body):
    """The fields of all of them."""

    model: ModelName
    truncate_prompt_tokens: Integer | None = Field(
        default=None,
        ge=-1,
        le=2**53,
        description="keep so many tokens of an input, -1: as many as the model reads; "
        "without it a longer one is refused",
    )
    user: str | None = Field(default=None, max_length=1000)
    service_tier: Tier | None = Field(
        default=None, description="flex: comes after all other jobs; the rest: default"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        unsupported.refuse(body, _UNSUPPORTED)
        return body

    @property
    def job_class(self) -> JobClass:
        """`flex` can wait."""
        return "batch" if self.service_tier == "flex" else "interactive"


class Embeddings(PoolingBody):
    """What to make vectors of."""

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Integer | None = Field(
        default=None,
        ge=1,
        le=MAX_DIMENSIONS,
        description="the first so many of each vector, at unit length again",
    )
    prompt_name: PromptName | None = Field(
        default=None, description="of the model's own prompts, to be put before each text"
    )
    pooling: Literal["cls", "mean", "last", "max"] | None = Field(
        default=None, description="instead of the one that the model's files name"
    )
    normalize: bool | None = Field(
        default=None, description="to unit length; default: as the model's files say"
    )

    def to_wire(self) -> Pooling:
        """As nodes read it."""
        return Pooling(
            inputs=tuple(self.input),
            prompt_name=self.prompt_name or "",
            mode=self.pooling or "",
            normalize=self.normalize,
            dimensions=self.dimensions or 0,
            truncate=self.truncate_prompt_tokens,
        )


class Rerank(PoolingBody):
    """Which documents answer the query best."""

    query: str
    documents: Documents
    top_n: Integer | None = Field(default=None, ge=0, description="0: all")
    return_documents: bool | None = True

    def to_wire(self) -> Pooling:
        """As nodes read it."""
        return Pooling(
            inputs=tuple(self.documents),
            queries=(self.query,),
            truncate=self.truncate_prompt_tokens,
        )


class Score(PoolingBody):
    """Pairs of texts: one with each of many, or those of the same place in two lists."""

    text_1: Texts | None = Field(default=None, description="or queries")
    text_2: Texts | None = Field(default=None, description="or documents")
    queries: Texts | None = None
    documents: Texts | None = None

    @model_validator(mode="after")
    def _pairs(self) -> "Score":
        first, second = self._sides()
        if not first or not second:
            raise PydanticCustomError(
                "pairs", "give text_1 and text_2, or queries and documents", {"at": ("text_1",)}
            )
        if len(first) not in {1, len(second)}:
            raise PydanticCustomError(
                "pairs",
                "has {first} texts and text_2 {second}: give one, or as many",
                {"at": ("text_1",), "first": len(first), "second": len(second)},
            )
        return self

    def to_wire(self) -> Pooling:
        """As nodes read it."""
        first, second = self._sides()
        return Pooling(
            inputs=tuple(second), queries=tuple(first), truncate=self.truncate_prompt_tokens
        )

    def _sides(self) -> tuple[list[str], list[str]]:
        return self.text_1 or self.queries or [], self.text_2 or self.documents or []
