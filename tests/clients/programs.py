"""Runs a client as a program of its own, and reads what its checks gave."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.clients import environments
from tests.clients.expected import Outcome, judge
from tests.clients.registry import EMBEDDER, Client
from tests.instance import Instance

SCRIPTS = Path(__file__).parent / "scripts"
SECONDS = 150.0
# Clients that report to their makers, or look for newer versions, are told by their own variables
# not to.
_QUIET = {
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "AIDER_ANALYTICS_DISABLE": "true",
    "AIDER_CHECK_UPDATE": "false",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",
}
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")


Record = Callable[[str, str, str, Mapping[str, str]], None]


def variables(service: Instance, key: str, model: str, home: Path) -> dict[str, str]:
    """The environment of a client: its usual variables, and a home of its own."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {
        **kept,
        **_QUIET,
        "HOME": str(home),
        "OPENAI_BASE_URL": f"{service.url}/v1",
        "OPENAI_API_BASE": f"{service.url}/v1",  # its name in older clients
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": service.url,
        "ANTHROPIC_API_KEY": key,
        "CANOPY_URL": service.url,
        "MODEL": model,
        "EMBEDDER": EMBEDDER,
    }


def check_client(client: Client, model: str, env: dict[str, str], record: Record) -> None:
    """Runs a client's checks with a model, records what worked, and fails if anything did not."""
    outcomes = run_script(client.script, client.environment, client.checks(model), env)
    problems = {check: judge(check, model, outcome) for check, outcome in outcomes.items()}
    record(client.name, client.version, model, problems)
    failed = [f"{check}: {why}" for check, why in problems.items() if why]
    assert not failed, "\n".join(failed)


def run_script(
    script: str, environment: str, checks: Sequence[str], env: dict[str, str]
) -> dict[str, Outcome]:
    """Runs a file of `scripts/` or `node/`, and collects what each check gave."""
    if environment == "node":
        command = [str(environments.node()), str(environments.NODE / script)]
    else:
        command = [str(environments.python(environment)), str(SCRIPTS / script)]
    outcomes: dict[str, Outcome] = {}
    for line in run([*command, *checks], env).splitlines():
        if line.startswith('{"check":'):
            told = json.loads(line)
            outcomes[told["check"]] = Outcome(told.get("fact"), told.get("error"))
    assert list(outcomes) == list(checks), f"{script} told {list(outcomes)}"
    return outcomes


def run(command: list[str], env: dict[str, str], text: str = "", seconds: float = SECONDS) -> str:
    """What a program printed. Fails with its errors if it does."""
    done = subprocess.run(
        command,
        cwd=env["HOME"],
        env=env,
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{command[:3]} ended with {done.returncode}:\n{said}"
    return done.stdout
