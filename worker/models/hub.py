"""Models from the Hugging Face hub: safetensors, configuration and tokenizer, nothing that runs code."""

import shutil
from pathlib import Path

from worker.errors import one_line
from worker.models import ModelError
from worker.models.progress import Say

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
_ELSEWHERE = ["*/*"]  # other formats and precisions live in subfolders


class HubModel:
    """One repository of the hub. A download that breaks off is resumed."""

    needs = 1_000_000_000  # a guess: the true size is known only to the hub

    def __init__(self, name: str) -> None:
        self._name = name

    def stamp(self) -> dict[str, str]:
        """A model downloaded once stays as it is."""
        return {"hub": self._name}

    def fill(self, folder: Path, say: Say) -> None:
        """Downloads into `folder`. Raises ModelError in one line for what the hub or the network refuses."""
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
                self._name, local_dir=folder, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE
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
                f"{self._name} is neither packaged nor a folder here nor downloaded, and the Hugging Face hub "
                f"cannot be reached or failed ({one_line(error)}); give the model's folder instead"
            ) from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's notes
