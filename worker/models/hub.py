"""Models from the Hugging Face hub: safetensors, configuration and tokenizer, but no code."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from worker.errors import ModelError, one_line
from worker.models.progress import Say, bytes_in

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
# Other formats and precisions. Those that begin with a digit are a sentence-transformers model's
# modules, such as 1_Pooling.
_SUBFOLDERS = ["[!0-9]*/*", "*/*/*"]
_INFO_SECONDS = 20.0
_REPORT_SECONDS = 1.0  # between two looks at what has come


class HubModel:
    """A repository of the hub. An interrupted download is resumed.

    `needs` and `weights` ask the hub, and raise ModelError as `fill` does.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def stamp(self) -> dict[str, str]:
        """Names no version: a downloaded model is never updated."""
        return {"hub": self._name}

    @property
    def needs(self) -> int:
        """Bytes of disk."""
        return sum(self._sizes.values())

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        sizes = [size for name, size in self._sizes.items() if name.endswith(".safetensors")]
        return sum(sizes)

    def fill(self, folder: Path, say: Say) -> None:
        """Downloads into `folder`. Raises ModelError if the hub or the network fails."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # the lines of `say` are read by people and by the agent
        say(f"downloading {self._name} from the Hugging Face hub")
        with _one_line_errors(self._name), _reporting(self._name, folder, self.needs, say):
            snapshot_download(
                self._name, local_dir=folder, allow_patterns=_FILES, ignore_patterns=_SUBFOLDERS
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's metadata

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of the files that are downloaded, by name."""
        from huggingface_hub import HfApi

        with _one_line_errors(self._name):
            info = HfApi().model_info(self._name, files_metadata=True, timeout=_INFO_SECONDS)
        sizes = {}
        for file in info.siblings or ():
            if _is_needed(file.rfilename):
                sizes[file.rfilename] = file.size or 0
        return sizes


def _is_needed(file: str) -> bool:
    """As the library reads these patterns."""
    wanted = any(fnmatch(file, pattern) for pattern in _FILES)
    return wanted and not any(fnmatch(file, pattern) for pattern in _SUBFOLDERS)


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Makes a ModelError of what the hub's library raises."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    # Its own client, whichever that is, has this name there across its major versions.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a Hugging Face id") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} asks you to accept its terms on the hub and to set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hugging Face hub has no model {name} that this account may read"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"{name} is neither packaged nor a folder here nor downloaded, and the "
            "Hugging Face hub cannot be reached or failed "
            f"({one_line(error)}); try again, which goes on where it broke off, "
            "or give the model's folder instead"
        ) from error


@contextmanager
def _reporting(name: str, folder: Path, total: int, say: Say) -> Iterator[None]:
    """Says meanwhile how many of the `total` bytes have come, whenever that has changed."""
    ended = threading.Event()

    def report() -> None:
        said = -1
        while not ended.wait(_REPORT_SECONDS):
            present = bytes_in(folder)
            if present != said:
                said = present
                say(f"downloading {name}: {_amount(present)} of {_amount(total)}")

    reporter = threading.Thread(target=report, name="download progress", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
