"""Attention matrices as a NumPy archive that is written line by line, so that any number of lines fit in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkit.files import storage_errors

if TYPE_CHECKING:
    from mtkit.translation.alignment import SegmentAttention


class AttentionFile:
    """An .npz with, for line n and part p (both from 1), `weights-n-p` [layers, T, S], `src-n-p` and `tgt-n-p`.

    `src` and `tgt` are the pieces as text, eos included. Args: path: None to write nothing. Raises: StorageError.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.archive: zipfile.ZipFile | None = None

    def __enter__(self) -> AttentionFile:
        if self.path is not None:
            with storage_errors(self.path):
                self.archive = zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED)
        return self

    def add(self, line: int, parts: Sequence[SegmentAttention]) -> None:
        """The matrices of a line."""
        if self.archive is None or self.path is None:
            return
        for number, part in enumerate(parts, 1):
            names = {"weights": part.weights, "src": [*part.src, "</s>"], "tgt": [*part.tgt, "</s>"]}
            for name, value in names.items():
                buffer = io.BytesIO()
                np.save(buffer, np.asarray(value), allow_pickle=False)
                with storage_errors(self.path):
                    self.archive.writestr(f"{name}-{line}-{number}.npy", buffer.getvalue())

    def __exit__(self, *exception: Any) -> None:
        if self.archive is not None and self.path is not None:
            with storage_errors(self.path):
                self.archive.close()
