"""Clients that are programs themselves: command lines, and one in Java."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.expected import QUESTION
from tests.clients.programs import SCRIPTS, Record, run, variables
from tests.clients.registry import CHAT_MODEL, ECHO
from tests.instance import Instance

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("models")]

Check = Callable[[], None]


@pytest.fixture
def env(service: Instance, key: str, tmp_path: Path) -> dict[str, str]:
    """A client's variables; MODEL is for the test to set."""
    return variables(service, key, ECHO, tmp_path)


def program(environment: str, name: str) -> str:
    """A program of a Python environment."""
    return str(environments.python(environment).with_name(name))


def tell(record: Record, client: str, version: str, model: str, checks: dict[str, Check]) -> None:
    """Runs the checks, records what worked, and fails if anything did not."""
    problems = {}
    for name, check in checks.items():
        try:
            check()
            problems[name] = ""
        except (AssertionError, LookupError, ValueError) as error:
            problems[name] = str(error)
    record(client, version, model, problems)
    assert not any(problems.values()), "\n".join(filter(None, problems.values()))


# ---- llm


def llm(env: dict[str, str], model: str, *words: str) -> str:
    """What `llm openai endpoint` says."""
    key = ["--key", env["OPENAI_API_KEY"]]
    endpoint = ["openai", "endpoint", env["OPENAI_BASE_URL"], "-m", model, *key]
    return run([program("llm", "llm"), *endpoint, *words], env).strip()


def person(said: str) -> None:
    """Fails unless that is a person in JSON."""
    found = json.loads(said)
    assert isinstance(found["name"], str) and isinstance(found["age"], int), said


@pytest.mark.parametrize("model", [ECHO, CHAT_MODEL])
def test_llm(env: dict[str, str], record: Record, model: str) -> None:
    version = environments.python_version("llm", "llm")

    def chat() -> None:
        assert llm(env, model, QUESTION)

    def responses() -> None:
        assert llm(env, model, "--responses", QUESTION)

    def schema() -> None:
        person(llm(env, model, "--schema", "name, age int", "Ada is 36."))

    def tools() -> None:
        assert llm(env, model, "-T", "llm_version", "call llm_version {}") == version

    checks: dict[str, Check] = {"chat": chat}
    if model == ECHO:  # the small model does not end a text in a schema before its limit
        checks |= {"--schema": schema, "responses": responses, "-T": tools}
    tell(record, "llm", version, model, checks)


# ---- aider


def test_aider(env: dict[str, str], record: Record) -> None:
    # its list of prices would be fetched from its makers
    prices = Path(env["HOME"], ".aider", "caches", "model_prices_and_context_window.json")
    prices.parent.mkdir(parents=True)
    prices.write_text("{}")

    def chat() -> None:
        quiet = ["--no-show-release-notes", "--no-show-model-warnings", "--no-git"]
        command = [program("aider", "aider"), "--model", f"openai/{ECHO}", *quiet]
        said = run([*command, "--yes-always", "--message", f"/ask {QUESTION}"], env)
        assert QUESTION in said, said

    version = environments.python_version("aider", "aider-chat")
    tell(record, "aider", version, ECHO, {"ask": chat})


# ---- Java


def test_java(env: dict[str, str], record: Record) -> None:
    java = shutil.which("java")
    assert java, "the test needs a JDK: sudo apt-get install default-jdk-headless"
    checks = ["chat", "stream", "wrong_key", "unknown_model"]
    lines = run([java, str(SCRIPTS / "Client.java"), *checks], env).splitlines()
    facts = {told["check"]: told["fact"] for told in map(json.loads, lines)}

    def chat() -> None:
        assert facts["chat"]["choices"][0]["message"]["content"] == QUESTION

    def stream() -> None:
        deltas = [choice["delta"] for event in facts["stream"] for choice in event["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == QUESTION

    def refusals() -> None:
        assert (facts["wrong_key"]["status"], facts["unknown_model"]["status"]) == (401, 404)

    tried: dict[str, Check] = {"chat": chat, "stream": stream, "refusals": refusals}
    release = run([java, "--version"], env).split()[1]
    tell(record, "Java's HttpClient", release.split(".")[0], ECHO, tried)
