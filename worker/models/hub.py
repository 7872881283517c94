"""Models from the Hugging Face hub: safetensors, configuration and tokenizer, but no code."""

import shutil
from pathlib import Path

from worker.errors import ModelError, one_line
from worker.models.progress import Say

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
_SUBFOLDERS = ["*/*"]  # of other formats and precisions


class HubModel:
    """A repository of the hub. An interrupted download is resumed."""

    needs = 1_000_000_000  # a guess: the true size is known only to the hub

    def __init__(self, name: str) -> None:
        self._name = name

    def stamp(self) -> dict[str, str]:
        """Names no version: a downloaded model is never updated."""
        return {"hub": self._name}

    def fill(self, folder: Path, say: Say) -> None:
        """Downloads into `folder`. Raises ModelError if the hub or the network fails."""
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
        )

        say(f"downloading {self._name} from the Hugging Face hub")
        try:
            snapshot_download(
                self._name, local_dir=folder, allow_patterns=_FILES, ignore_patterns=_SUBFOLDERS
            )
        except HFValidationError as error:
            raise ModelError(f"{self._name!r} is neither a folder nor a Hugging Face id") from error
        except GatedRepoError as error:
            raise ModelError(
                f"{self._name} asks you to accept its terms on the hub and to set HF_TOKEN"
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"the Hugging Face hub has no model {self._name} that this account may read"
            ) from error
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            raise ModelError(
                f"{self._name} is neither packaged nor a folder here nor downloaded, and the "
                "Hugging Face hub cannot be reached or failed "
                f"({one_line(error)}); give the model's folder instead"
            ) from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's metadata
