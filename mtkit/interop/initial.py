"""The model that `init` names, whatever its format: models of other toolkits are imported into the cache first."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mtkit import __version__
from mtkit.checkpoint import BEST, CHECKPOINTS, MANIFEST_FILE
from mtkit.data.cache import cache_folder
from mtkit.errors import ConfigError
from mtkit.files import sha256_file, storage_errors
from mtkit.interop.hub import resolve_model

_OWN_NAMES = (MANIFEST_FILE, BEST, CHECKPOINTS)
"""Entries of which a run or model folder of mtkit has one at least."""


def find_model(name: str) -> Path:
    """Return the folder of a model of mtkit: itself, or an import of a model of another toolkit.

    Args:
        name: a run or model folder, a folder of another toolkit, or a name on the Hugging Face hub.

    Raises:
        ConfigError: If there is no such folder, it holds no model of a known format, or its import needs an option.
        StorageError: If the model cannot be downloaded, is damaged, or cannot be written to the cache.
    """
    folder = Path(resolve_model(name))
    if not folder.is_dir() or any((folder / own).exists() for own in _OWN_NAMES):
        return folder
    from mtkit.interop.formats import FORMATS
    from mtkit.interop.importing import ImportOptions, import_model

    imported = cache_folder(None) / "models" / _fingerprint(folder)
    if not (imported / MANIFEST_FILE).exists():
        try:
            import_model(str(folder), imported, FORMATS, ImportOptions())
        except ConfigError as error:
            # Only `mtkit import` has the options that such a hint names.
            option = re.search("`(?:src|tgt)(_tokenizer)?`", error.hint or "")
            if option is None:
                raise
            kind = option[1] or ""
            options = f"`src{kind}` and `tgt{kind}`"
            hint = f"import it first with `mtkit import`, {options}, and name the folder that it wrote"
            raise ConfigError(error.what, where=error.where, hint=hint) from error
    return imported


def _fingerprint(folder: Path) -> str:
    """Return a hash of the files in a folder and of the version of mtkit that imports them."""
    with storage_errors(folder):
        files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return hashlib.sha256(repr((__version__, files)).encode()).hexdigest()[:32]
