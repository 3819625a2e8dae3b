"""NumPy archive of attention matrices, written line by line, so that its size is not bounded by memory."""

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
    """An .npz with `weights-n-s` [layers, T, S], `src-n-s` and `tgt-n-s` for line n and its segment s, both from 1.

    `src` and `tgt` are the tokens as text, eos included.

    Args:
        path: the file; None to write nothing.

    Raises:
        StorageError: If the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.archive: zipfile.ZipFile | None = None

    def __enter__(self) -> AttentionFile:
        if self.path is not None:
            with storage_errors(self.path):
                self.archive = zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED)
        return self

    def add(self, line: int, segments: Sequence[SegmentAttention]) -> None:
        """Write the matrices of a line.

        Args:
            line: number of the line, from 1.
            segments: attention of each of its segments.
        """
        if self.archive is None or self.path is None:
            return
        for number, segment in enumerate(segments, 1):
            arrays = {
                "weights": segment.weights,
                "src": [*segment.src, "</s>"][: segment.weights.shape[2]],  # some models' sources have no eos
                "tgt": [*segment.tgt, "</s>"],
            }
            for name, value in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, np.asarray(value), allow_pickle=False)
                with storage_errors(self.path):
                    self.archive.writestr(f"{name}-{line}-{number}.npy", buffer.getvalue())

    def __exit__(self, *exception: Any) -> None:
        if self.archive is not None and self.path is not None:
            with storage_errors(self.path):
                self.archive.close()
