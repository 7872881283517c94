"""The clients that have a script: what each is asked to do with which model.

Those that are programs themselves are in test_programs.py.
"""

from dataclasses import dataclass

from tests.clients import environments

ECHO = "echo"
CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDER = "echo-embedder"  # for the checks named `embeddings`
MODELS = (ECHO, CHAT_MODEL)


@dataclass(frozen=True)
class Client:
    """A script of `scripts/` in `environments/NAME.txt`, or of `node/`, and its checks by model."""

    name: str
    script: str
    environment: str
    packages: tuple[str, ...]
    echo: str
    chat_model: str

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
        return {ECHO: self.echo, CHAT_MODEL: self.chat_model}[model].split()


def _each(prefixes: str, checks: str) -> str:
    """Each check with each prefix."""
    return " ".join(f"{prefix}_{check}" for check in checks.split() for prefix in prefixes.split())


_REFUSALS = "wrong_key unknown_model"
_CALLS = "tools forced_tool structured"
_ROUTES = "openai hosted_vllm lm_studio litellm_proxy anthropic"
_TEXT_ROUTE = "text-completion-openai"
_PROVIDERS = "openai chat compatible anthropic"

PYTHON = (
    Client(
        "openai (Python)",
        "use_openai.py",
        "openai",
        ("openai",),
        f"chat stream {_CALLS} streamed_tool json_mode responses responses_stream "
        f"responses_structured completions models embeddings {_REFUSALS} cancel",
        "chat stream forced_tool structured completions",
    ),
    Client(
        "anthropic (Python)",
        "use_anthropic.py",
        "anthropic",
        ("anthropic",),
        f"chat stream tools forced_tool streamed_tool count_tokens models {_REFUSALS} cancel",
        "chat stream forced_tool count_tokens",
    ),
    Client(
        "langchain-openai (Python)",
        "use_langchain.py",
        "langchain",
        ("langchain-openai",),
        f"chat stream batch {_CALLS} responses embeddings {_REFUSALS} cancel",
        "chat forced_tool structured",
    ),
    Client(
        "LlamaIndex (openai-like)",
        "use_llama_index.py",
        "llama-index",
        ("llama-index-llms-openai-like",),
        f"chat stream completions tools structured embeddings {_REFUSALS}",
        "chat structured",
    ),
    Client(
        "LiteLLM",
        "use_litellm.py",
        "litellm",
        ("litellm",),
        f"{_each(_ROUTES, 'chat stream tools')} {_each(_TEXT_ROUTE, 'chat stream')} "
        "openai_structured hosted_vllm_structured completions responses embeddings "
        f"{_REFUSALS} cancel",
        "openai_chat anthropic_chat openai_structured",
    ),
    Client(
        "Pydantic AI",
        "use_pydantic_ai.py",
        "pydantic-ai",
        ("pydantic-ai-slim",),
        "responses stream tools structured openai-chat_chat openai-chat_tools "
        "openai-chat_structured embeddings unknown_model",
        "structured",
    ),
    Client(
        "OpenAI Agents SDK",
        "use_openai_agents.py",
        "openai-agents",
        ("openai-agents",),
        "responses stream tools structured unknown_model",
        "structured",
    ),
    Client(
        "Instructor",
        "use_instructor.py",
        "instructor",
        ("instructor",),
        "structured streamed_structured provider_structured schema_structured wrong_key",
        "structured",
    ),
)
NODE = (
    Client(
        "openai (Node.js)",
        "openai.mjs",
        "node",
        ("openai",),
        f"chat stream {_CALLS} streamed_tool responses responses_stream completions models "
        f"embeddings {_REFUSALS} cancel",
        "chat forced_tool structured",
    ),
    Client(
        "@anthropic-ai/sdk",
        "anthropic.mjs",
        "node",
        ("@anthropic-ai/sdk",),
        f"chat stream tools forced_tool streamed_tool count_tokens {_REFUSALS} cancel",
        "chat forced_tool count_tokens",
    ),
    Client(
        "@langchain/openai",
        "langchain.mjs",
        "node",
        ("@langchain/openai",),
        f"chat stream {_CALLS} responses embeddings {_REFUSALS} cancel",
        "chat forced_tool structured",
    ),
    Client(
        "AI SDK: openai, openai-compatible, anthropic",
        "ai-sdk.mjs",
        "node",
        ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"),
        f"{_each(_PROVIDERS, 'chat stream tools forced_tool structured cancel')} "
        "embeddings unknown_model",
        "openai_chat openai_structured compatible_forced_tool anthropic_chat",
    ),
)


def pairs(clients: tuple[Client, ...]) -> list[tuple[Client, str]]:
    """Each client with each model that it is tried with, a client's models together."""
    return [(client, model) for client in clients for model in MODELS if client.checks(model)]
