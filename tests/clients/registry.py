"""The clients that have a script: what each is asked to do with which model.

Those that are programs themselves are in test_programs.py.
"""

from dataclasses import dataclass

from tests.clients import environments

ECHO = "echo"
CHAT_MODEL = "smollm2-135m-instruct"
TOOL_CALLER = "tool-caller"
MODELS = (ECHO, CHAT_MODEL, TOOL_CALLER)


@dataclass(frozen=True)
class Client:
    """A script of `scripts/` in `environments/NAME.txt`, or of `node/`, and its checks by model."""

    name: str
    script: str
    environment: str
    packages: tuple[str, ...]
    echo: str
    chat_model: str
    tool_caller: str

    def __str__(self) -> str:
        return self.name

    @property
    def version(self) -> str:
        """Of its packages, as the lock file has them."""
        if self.environment == "node":
            versions = [environments.node_version(package) for package in self.packages]
        else:
            versions = [
                environments.python_version(self.environment, package) for package in self.packages
            ]
        return ", ".join(versions)

    def checks(self, model: str) -> list[str]:
        """What it is asked to do with that model."""
        return {ECHO: self.echo, CHAT_MODEL: self.chat_model, TOOL_CALLER: self.tool_caller}[
            model
        ].split()


def _each(prefixes: str, checks: str) -> str:
    """Each check with each prefix."""
    return " ".join(f"{prefix}_{check}" for check in checks.split() for prefix in prefixes.split())


_REFUSALS = "wrong_key unknown_model"
_ROUTES = "openai hosted_vllm lm_studio litellm_proxy"
_PROVIDERS = "openai chat compatible anthropic"

PYTHON = (
    Client(
        "openai (Python)",
        "use_openai.py",
        "openai",
        ("openai",),
        f"chat stream completions models {_REFUSALS} cancel",
        "chat stream",
        "",
    ),
    Client(
        "langchain-openai (Python)",
        "use_langchain.py",
        "langchain",
        ("langchain-openai",),
        f"chat stream batch {_REFUSALS} cancel",
        "chat",
        "",
    ),
    Client(
        "LlamaIndex",
        "use_llama_index.py",
        "llama-index",
        ("llama-index-llms-openai-like",),
        f"chat stream completions {_REFUSALS}",
        "chat",
        "",
    ),
    Client(
        "LiteLLM",
        "use_litellm.py",
        "litellm",
        ("litellm",),
        f"{_each(_ROUTES, 'chat stream')} completions {_REFUSALS} cancel",
        "openai_chat",
        "",
    ),
    Client(
        "Pydantic AI",
        "use_pydantic_ai.py",
        "pydantic-ai",
        ("pydantic-ai-slim",),
        "chat unknown_model",
        "chat",
        "",
    ),
)
NODE = (
    Client(
        "openai (Node.js)",
        "openai.mjs",
        "node",
        ("openai",),
        f"chat stream completions models {_REFUSALS} cancel",
        "chat stream",
        "",
    ),
    Client(
        "@langchain/openai",
        "langchain.mjs",
        "node",
        ("@langchain/openai",),
        f"chat stream {_REFUSALS} cancel",
        "chat",
        "",
    ),
    Client(
        "AI SDK",
        "ai-sdk.mjs",
        "node",
        ("ai",),
        f"{_each('chat compatible', 'chat stream cancel')} unknown_model",
        "compatible_chat",
        "",
    ),
)


def pairs(clients: tuple[Client, ...]) -> list[tuple[Client, str]]:
    """Each client with each model that it is tried with, a client's models together."""
    return [(client, model) for client in clients for model in MODELS if client.checks(model)]
