"""Models by name: a local folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mtkit.errors import ConfigError, MtkitError, StorageError

_SETTINGS = (
    "*.json", "*.spm", "*.model", "*.txt", "*.yml", "*.yaml", "*.codes", "bpecodes", "codes", "code", "*.bpe",
    "preprocess.sh",
)  # fmt: skip
_WEIGHTS = ("*.safetensors",)
_OLDER_WEIGHTS = ("*.bin", "*.pt", "*.ckpt", "*.npz")
"""Downloaded if there are no safetensors: many repositories have the weights in both formats."""


def resolve_model(name: str, revision: str | None = None) -> str:
    """Return the folder of a model; a name on the hub is downloaded to the hub's cache first.

    Args:
        name: a path, or a name such as `Helsinki-NLP/opus-mt-en-fr`, with a revision after `@` if need be.
        revision: commit, tag or branch on the hub.

    Raises:
        ConfigError: If there is no such folder, and no such name or revision on the hub, or a folder with a revision.
        StorageError: If the download fails.
    """
    if Path(name).exists():
        if revision:
            hint = "leave out the revision, or name a model on the hub"
            raise ConfigError("a folder has no revisions", where=name, hint=hint)
        return name
    repository, _, named = name.partition("@")
    if repository.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ConfigError(
            "no such folder", where=name, hint="name a folder, or a model on the hub as owner/name"
        )
    if named and revision and named != revision:
        raise ConfigError(f"{named} and {revision} are two revisions", where=name, hint="name one")
    return _download(repository, revision or named or None)


def _download(name: str, revision: str | None) -> str:
    """Return the folder of a repository in the hub's cache, after downloading what it lacks.

    Raises:
        ConfigError: If there is no such name or revision.
        StorageError: If the download fails.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download(patterns: Sequence[str]) -> str:
        with _quiet_unless_watched():
            return str(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = download(_SETTINGS + _WEIGHTS)
        if not any(Path(folder).glob(_WEIGHTS[0])):
            folder = download(_SETTINGS + _WEIGHTS + _OLDER_WEIGHTS)
        return folder
    except HFValidationError as error:
        raise ConfigError("neither a folder nor a name on the hub", where=name, hint="owner/name") from error
    except LocalEntryNotFoundError as error:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):  # of other programs, which do not download every file
            return str(Path(cached).parent)
        raise _unreachable(name, error) from error
    except HfHubHTTPError as error:
        raise _refused(name, revision, error) from error
    except Exception as error:  # of the libraries that the hub uses for HTTP, or of the disk
        raise _unreachable(name, error) from error


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """Keep warnings of the hub's library off stderr, and progress off a stderr that is no terminal."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    level, had_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            enable_progress_bars()


def _refused(name: str, revision: str | None, error: Exception) -> MtkitError:
    """Return what an answer of the hub means."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case GatedRepoError():
            hint = "ask for it on the page of the model, then log in with `hf auth login`"
            return StorageError(
                "the hub gives this model only to those who have access", where=name, hint=hint
            )
        case RepositoryNotFoundError():
            hint = "check the name; for a private model log in with `hf auth login`"
            return ConfigError("no folder and no model on the hub has this name", where=name, hint=hint)
        case RevisionNotFoundError():
            return ConfigError(f"no revision {revision!r} on the hub", where=name, hint="check the revision")
        case _:
            return _unreachable(name, error)


def _unreachable(name: str, error: Exception) -> StorageError:
    """Return the error about a download that failed."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        hint = "unset HF_HUB_OFFLINE, or download it elsewhere and name the folder"
        return StorageError("not in the hub's cache, and HF_HUB_OFFLINE is set", where=name, hint=hint)
    reason = str(error.__cause__ or error).strip().split("\n")[0].rstrip(".")
    what = f"cannot be downloaded from {constants.ENDPOINT}: {reason or type(error).__name__:.200}"
    hint = "check the network, or download it elsewhere and name the folder"
    return StorageError(what, where=name, hint=hint)
