"""What is measured: a model that both a node and `bench engine` can have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.engine import shapes
from bench.engine.prompts import Prompts


class Subject(Protocol):
    """What is measured."""

    @property
    def name(self) -> str:
        """For tables."""

    @property
    def node(self) -> list[str]:
        """Options of `up`."""

    @property
    def alone(self) -> list[str]:
        """Options of `bench engine`."""

    def prompts(self, seed: int) -> Prompts:
        """Texts of a known number of tokens."""


@dataclass(frozen=True)
class Random:
    """A shape with random weights; the node makes them when it starts."""

    name: str

    @property
    def node(self) -> list[str]:
        """Options of `up`."""
        return ["--engine", "bench.gpu.engine", "--model", self.name]

    @property
    def alone(self) -> list[str]:
        """Options of `bench engine`."""
        return ["--random-weights", self.name]

    def prompts(self, seed: int) -> Prompts:
        """Texts of a known number of tokens."""
        vocabulary = shapes.config(self.name).vocab_size
        return Prompts(shapes.tokenizer(vocabulary), vocabulary, self.name, seed)


@dataclass(frozen=True)
class Prepared:
    """A model in a folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def node(self) -> list[str]:
        """Options of `up`."""
        return ["--engine", "transformers", "--model", str(self.folder)]

    @property
    def alone(self) -> list[str]:
        """Options of `bench engine`."""
        return ["--model", str(self.folder)]

    def prompts(self, seed: int) -> Prompts:
        """Texts of a known number of tokens."""
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )
        return Prompts(tokenizer, len(tokenizer), self.name, seed)
