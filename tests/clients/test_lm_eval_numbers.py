"""lm-eval gets the log-likelihoods through the API that its own `hf` backend computes.

Of a model with random weights; CANOPY_LM_EVAL_MODEL=FOLDER compares that of a folder instead.
"""

import json
import os
import random
import sysconfig
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.programs import SCRIPTS, run, variables
from tests.instance import Instance
from tests.realbroker import NodeProcess, root
from tests.unit.engine.tiny import save_model

pytestmark = pytest.mark.timeout(2000)

MODEL = "compared"
DOCUMENTS = 100
CHOICES = 3
LARGEST_DIFFERENCE = 1e-3
READY_SECONDS = 120.0
SECONDS = 1800.0  # with a model of a folder
TASK = """\
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("CANOPY_LM_EVAL_MODEL"):
        return Path(named).resolve()
    return save_model("llama", tmp_path_factory.mktemp("models") / MODEL)


@pytest.fixture(scope="module", autouse=True)
def _tree(service: Instance, folder: Path) -> object:
    """A tree of its own, which computes in the numbers that `hf` computes in."""
    with ExitStack() as trees:
        trees.enter_context(root(service.broker, f"{MODEL}-root", MODEL))
        options = ["--engine", "transformers", "--device", "cpu", "--model-path", str(folder)]
        node = ["--parent", f"{MODEL}-root", "--model", MODEL, *options, "--slots", "4"]
        numbers = {"CANOPY_THREADS": "1", "CANOPY_PRECISION": "float32"}
        process = NodeProcess(service.broker, f"{MODEL}-1", *node, env=numbers)
        trees.push(process)
        process.wait_ready(READY_SECONDS)
        yield


def write_task(where: Path) -> None:
    """Questions and answers of words by chance, some with characters of several tokens."""
    chance = random.Random(7)
    words = ["tree", "leaf", "naïve", "日本", "🌳", "a", "42", "river", "  two  spaces", "End."]
    lines = []
    for _ in range(DOCUMENTS):
        question = " ".join(chance.choices(words, k=chance.randint(1, 40)))
        choices = [" " + " ".join(chance.choices(words, k=3)).strip() for _ in range(CHOICES)]
        lines.append(json.dumps({"question": question, "choices": choices}))
    documents = where / "documents.jsonl"
    documents.write_text("\n".join(lines))
    (where / "choices.yaml").write_text(TASK.format(documents=documents))


def test_its_own_backend_and_the_api_agree(
    service: Instance, key: str, folder: Path, tmp_path: Path
) -> None:
    write_task(tmp_path)
    env = variables(service, key, MODEL, tmp_path)
    program = [str(environments.python("lm-eval")), str(SCRIPTS / "score_by_lm_eval.py")]
    packages = sysconfig.get_path("purelib")
    told = run([*program, MODEL, str(folder), str(tmp_path), packages], env, seconds=SECONDS)
    found = json.loads(told.splitlines()[-1])
    assert len(found["hf"]) == len(found["api"]) == DOCUMENTS * CHOICES
    pairs = list(zip(found["hf"], found["api"], strict=True))
    largest = max(abs(own[0] - served[0]) for own, served in pairs)
    print(f"largest difference of {len(pairs)} log-likelihoods: {largest:.2e}")
    assert largest <= LARGEST_DIFFERENCE
    assert [served[1] for _, served in pairs] == [own[1] for own, _ in pairs]
