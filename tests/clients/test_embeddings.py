"""OpenAI's library and plain HTTP against tiny encoders on a real instance."""

import math
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import OpenAI

from tests.instance import Instance, running
from tests.unit.engine.encoders import save_cross_encoder, save_embedder

pytestmark = pytest.mark.timeout(400)
TEXTS = ["a tree", "a much longer text about a tree and its leaves", "a stone"]


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A tree that embeds and one that scores, chosen by their files."""
    home = tmp_path_factory.mktemp("embeddings")
    pooling = {"pooling_mode_mean_tokens": True}
    embedder = save_embedder("bert", home / "tiny-embedder", pooling=pooling, normalize=True)
    scorer = save_cross_encoder("bert", home / "tiny-scorer")
    options = ["--model", str(embedder), "--model", str(scorer), "--nodes", "1"]
    with running(home / "instance", *options) as instance:
        yield instance


@pytest.fixture
def sdk(embeddings: Instance) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{embeddings.url}/v1", api_key=embeddings.key(), max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture
def client(embeddings: Instance) -> Iterator[httpx.Client]:
    with embeddings.program(embeddings.key()) as program:
        yield program


def test_embeddings_with_the_librarys_defaults(sdk: OpenAI) -> None:
    """Which is base64 where the caller names no format."""
    answer = sdk.embeddings.create(model="tiny-embedder", input=TEXTS)
    plain = sdk.embeddings.create(model="tiny-embedder", input=TEXTS, encoding_format="float")
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert answer.usage.total_tokens == sum(len(text) + 2 for text in TEXTS)
    for one, other in zip(answer.data, plain.data, strict=True):
        assert len(one.embedding) == 32
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-5)


def test_dimensions_and_token_ids(sdk: OpenAI) -> None:
    cut = sdk.embeddings.create(model="tiny-embedder", input=[[0, 70, 71, 2]], dimensions=8)
    assert len(cut.data[0].embedding) == 8
    with pytest.raises(openai.BadRequestError, match="there is no token 5000") as refused:
        sdk.embeddings.create(model="tiny-embedder", input=[5000])
    assert refused.value.code == "invalid_request"


def test_many_inputs_come_in_their_order(sdk: OpenAI) -> None:
    texts = [f"text {number} " + "x" * (number % 50) for number in range(2048)]
    answer = sdk.embeddings.create(model="tiny-embedder", input=texts)
    assert len(answer.data) == len(texts)
    alone = sdk.embeddings.create(model="tiny-embedder", input=texts[1777])
    assert answer.data[1777].embedding == pytest.approx(alone.data[0].embedding, abs=1e-5)


def test_a_long_input_is_refused_with_the_limit(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the model reads at most 128") as refused:
        sdk.embeddings.create(model="tiny-embedder", input=["a", "b" * 500])
    assert refused.value.code == "context_length_exceeded"
    cut = sdk.embeddings.create(
        model="tiny-embedder", input="b" * 500, extra_body={"truncate_prompt_tokens": -1}
    )
    assert cut.usage.prompt_tokens == 128


def test_documents_are_ranked_and_scored(client: httpx.Client) -> None:
    ranked = client.post(
        "/v1/rerank", json={"model": "tiny-scorer", "query": "what grows?", "documents": TEXTS}
    ).json()
    scored = client.post(
        "/v1/score", json={"model": "tiny-scorer", "text_1": "what grows?", "text_2": TEXTS}
    ).json()
    scores = [each["score"] for each in scored["data"]]
    best = sorted(range(3), key=lambda index: -scores[index])
    assert [each["index"] for each in ranked["results"]] == best
    assert all(0 <= score <= 1 for score in scores)


def test_each_model_says_what_it_does(sdk: OpenAI, embeddings: Instance) -> None:
    tasks = {model.id: model.model_extra["tasks"] for model in sdk.models.list()}  # type: ignore[index]
    assert tasks == {"tiny-embedder": ["embed"], "tiny-scorer": ["score"]}
    with pytest.raises(openai.BadRequestError, match="send it to /v1/embeddings"):
        sdk.chat.completions.create(
            model="tiny-embedder", messages=[{"role": "user", "content": "a"}]
        )
    with embeddings.session(embeddings.login_token()) as browser:
        assert browser.get("/api/models").json() == {"models": [], "default": None}
