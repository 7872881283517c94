"""Benchmarks of others: lm-eval and guidellm."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients import environments
from tests.clients.conftest import model_folder
from tests.clients.programs import Record, run, variables
from tests.clients.registry import CHAT_MODEL, ECHO
from tests.clients.test_programs import Check, program, tell
from tests.instance import Instance

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("models")]


@pytest.fixture
def env(service: Instance, key: str, tmp_path: Path) -> dict[str, str]:
    """A client's variables."""
    return variables(service, key, ECHO, tmp_path)


_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
_SAY = """\
output_type: generate_until
doc_to_target: "{{question}}"
generation_kwargs: {until: ["."], max_gen_toks: 3}
metric_list: [{metric: exact_match}]
"""
_CHOOSE = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
_DOCUMENTS = [
    {"question": "The sky is", "choices": [" blue", " Wednesday"], "answer": 0},
    {"question": "Fire is very", "choices": [" hot", " Wednesday"], "answer": 0},
]


def lm_eval(env: dict[str, str], model: str, arguments: str, task: str, *more: str) -> Any:
    """The results of a task over two documents."""
    home = Path(env["HOME"])
    data = home / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, _DOCUMENTS)))
    (home / "task.yaml").write_text(_TASK.format(name="task", data=data) + task)
    options = ["--model", model, "--model_args", arguments, "--tasks", "task", *more]
    command = [program("lm-eval", "lm_eval"), "run", *options, "--include_path", str(home)]
    run([*command, "--output_path", str(home / "results")], env, seconds=300)
    (file,) = (home / "results").rglob("results*.json")
    return json.loads(file.read_text())["results"]["task"]


@pytest.mark.parametrize("model", [ECHO, CHAT_MODEL])
def test_lm_eval(env: dict[str, str], record: Record, model: str) -> None:
    base = env["OPENAI_BASE_URL"]

    def chat() -> None:
        arguments = f"model={model},base_url={base}/chat/completions"
        found = lm_eval(env, "local-chat-completions", arguments, _SAY, "--apply_chat_template")
        assert found["exact_match,none"] == 1.0, found

    def likelihoods() -> None:
        arguments = f"model={model},base_url={base}/completions,tokenizer={model_folder()}"
        found = lm_eval(env, "local-completions", arguments, _CHOOSE)
        assert found["acc,none"] == 1.0, found

    checks: dict[str, Check] = {"loglikelihood": likelihoods}
    if model == ECHO:
        checks = {"chat": chat}
    tell(record, "lm-eval", environments.python_version("lm-eval", "lm-eval"), model, checks)


def test_guidellm(env: dict[str, str], record: Record) -> None:
    def load() -> None:
        key, url = env["OPENAI_API_KEY"], env["CANOPY_URL"]
        options = {
            "backend": f"kind=openai_http,target={url},model={ECHO},api_key={key}",
            "tokenizer": f"kind=hf_auto,model={model_folder()}",
            "data": "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
            "profile": "kind=synchronous",
            "constraint": "kind=max_requests,count=3",
            "output": "kind=json",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [program("guidellm", "guidellm"), "run", *words, "--disable-progress"]
        run(command, env, seconds=300)
        report = json.loads(Path(env["HOME"], "benchmarks.json").read_text())
        requests = report["benchmarks"][0]["requests"]
        assert (len(requests["successful"]), requests["errored"]) == (3, [])

    version = environments.python_version("guidellm", "guidellm")
    tell(record, "guidellm", version, ECHO, {"synthetic load": load})
