"""Shortlists of models: made from the alignment of pairs, and kept beside the tokenizers of a model.

A source token allows the target tokens that most often translate it, by p(t|s) = c(s, t) / c(s), where c is the
expected number of links between tokens: each target token is linked to the source tokens with the attention that the
model pays to them in the step that predicts it, the mean of the last two layers. Lexical shortlists of Marian are made
from such probabilities, of fast_align. On Multi30k (12,000 pairs, 100 + 100 tokens), lists made in this way had 99.1 %
of the tokens of other translations, and those made from the one source token with the most attention 98.2 %.
Allowed are also the most frequent target tokens, and the piece of the source token itself, which copies names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from mtkit.checkpoint import safetensors_errors
from mtkit.data.batching import Ids
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import StorageError
from mtkit.files import write_bytes
from mtkit.search.shortlist import Shortlist
from mtkit.translation.alignment import align
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.model_folder import shortlist_file
from mtkit.translation.options import ignore_progress

if TYPE_CHECKING:
    from mtkit.data.corpus import Corpus

_METADATA = "mtkit shortlist 1"
"""Name of the one entry of metadata, the fingerprint of the tokenizers; equal lists make equal files."""
MOST_ALIGNED = 2_000_000
"""Pairs of a larger corpus that are aligned: an even sample."""
_MOST_MEASURED = 100_000
"""Pairs of a larger corpus on which the coverage is measured."""
_PAIRS_AT_ONCE = 4096
"""Pairs that are aligned and counted together."""
_PAIRS_MEASURED_AT_ONCE = 256

_MIN_ATTENTION = 0.01
"""Attention that makes a link; less is noise."""

_Counts = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Pairs of a source and a target token, as s * V + t, and how often each was linked, weighted by attention."""


@dataclass(frozen=True)
class ShortlistSize:
    """Size of a shortlist: how many target tokens it allows.

    Attributes:
        first: the most frequent target tokens, which every sentence may use.
        best: those that most probably translate a source token.
    """

    first: int = 100
    best: int = 100


class Coverage(NamedTuple):
    """Share of translations that a shortlist allows.

    Attributes:
        tokens: share of the target tokens that their sentences may use.
        lines: share of the lines all of whose target tokens are such.
        size: mean number of tokens that a sentence may use.
    """

    tokens: float
    lines: float
    size: float

    def describe(self, num_tokens: int) -> str:
        """Describe it in words; `num_tokens` is the size of the target vocabulary."""
        return (
            f"a sentence may use {self.size:,.0f} of {num_tokens:,} tokens on average, "
            f"with {self.tokens:.2%} of the target tokens among them"
        )


def save_shortlist(path: Path, shortlist: Shortlist, tokenizers: Tokenizers) -> Path:
    """Write the shortlist of a run or model folder, in place of an older one, and return its file.

    Raises:
        StorageError: If the folder contains no model, or the file cannot be written.
    """
    file = shortlist_file(path)
    write_bytes(file, save(vars(shortlist), {_METADATA: tokenizers.fingerprint}))
    return file


def load_shortlist(path: Path, tokenizers: Tokenizers) -> Shortlist | None:
    """Load the shortlist of a run or model folder; None if it has none.

    Args:
        path: the folder.
        tokenizers: its tokenizers.

    Raises:
        StorageError: If the folder contains no model, or the shortlist is damaged, of another version, or made
            for other tokenizers.
    """
    file = shortlist_file(path)
    if not file.exists():
        return None
    hint = f"make it again with `mtkit shortlist {path}`, or delete it"
    with safetensors_errors(file), safe_open(file, framework="numpy") as opened:
        metadata, names = opened.metadata() or {}, set(opened.keys())
        arrays = {name: opened.get_tensor(name) for name in names}
    if _METADATA not in metadata or names != {"first", "offsets", "targets"}:
        raise StorageError("not a shortlist of this version", where=str(file), hint=hint)
    if metadata[_METADATA] != tokenizers.fingerprint:
        raise StorageError("made for other tokenizers", where=str(file), hint=hint)
    found = Shortlist(**arrays)
    if not _is_sound(found, tokenizers):
        raise StorageError("damaged", where=str(file), hint=hint)
    return found


def _is_sound(found: Shortlist, tokenizers: Tokenizers) -> bool:
    """Return whether the arrays of a shortlist fit together and have tokens of these vocabularies."""
    offsets, size = found.offsets, tokenizers.tgt.vocab_size
    if any(array.dtype.kind != "i" or array.ndim != 1 for array in (found.first, offsets, found.targets)):
        return False
    if len(offsets) != tokenizers.src.vocab_size + 1 or offsets[0] != 0 or offsets[-1] != len(found.targets):
        return False
    tokens = np.concatenate([found.first, found.targets])
    return bool((np.diff(offsets) >= 0).all() and (tokens >= 0).all() and (tokens < size).all())


def make_shortlist(
    ensemble: Ensemble,
    corpus: Corpus,
    size: ShortlistSize,
    batch_tokens: int,
    on_progress: Callable[[int], None] = ignore_progress,
) -> Shortlist:
    """Make a shortlist from pairs that a model aligns: all, or an even sample of `MOST_ALIGNED`.

    Args:
        ensemble: the models; the first one aligns.
        corpus: the pairs, in tokens of the model.
        size: how many tokens the shortlist allows.
        batch_tokens: tokens of a batch.
        on_progress: called with the number of further pairs that are aligned.
    """
    num_targets = ensemble.tokenizers.tgt.vocab_size
    counts: _Counts = (np.zeros(0, dtype=np.int64), np.zeros(0))
    links: list[_Counts] = []
    frequencies = np.zeros(num_targets, dtype=np.int64)
    for pairs in _chunks(corpus, _PAIRS_AT_ONCE, MOST_ALIGNED):
        links.append(_join(list(_links(ensemble, pairs, batch_tokens))))
        # summing sorts all counts so far, so it must not be done for each chunk
        if sum(len(keys) for keys, _ in links) >= len(counts[0]):
            counts, links = _sum([counts, *links]), []
        frequencies += np.bincount(np.concatenate([tgt for _, tgt in pairs]), minlength=num_targets)
        on_progress(len(pairs))
    return shortlist_of_counts(_sum([counts, *links]), frequencies, ensemble.tokenizers, size)


def _chunks(corpus: Corpus, size: int, most: int) -> Iterator[list[tuple[Ids, Ids]]]:
    """Yield the pairs of a corpus, of a larger one an even sample of `most`, in lists of some."""
    number = min(len(corpus), most)
    for first in range(0, number, size):
        places = (i * len(corpus) // number for i in range(first, min(first + size, number)))
        yield [(corpus.src(place), corpus.tgt(place)) for place in places]


def _links(ensemble: Ensemble, pairs: Sequence[tuple[Ids, Ids]], batch_tokens: int) -> Iterator[_Counts]:
    """Yield the links of each pair; the attention to eos of the source makes none."""
    for index, attention in align(ensemble, pairs, batch_tokens):
        src, tgt = pairs[index]
        weights_TS = attention.weights[-2:].mean(axis=0)[: len(tgt), : len(src)]
        t, s = (weights_TS >= _MIN_ATTENTION).nonzero()
        keys = src[s].astype(np.int64) * ensemble.tokenizers.tgt.vocab_size + tgt[t]
        yield keys, weights_TS[t, s].astype(np.float64)


def _join(parts: Sequence[_Counts]) -> _Counts:
    """Return counts one after the other."""
    keys, counts = zip(*parts, strict=True)
    return np.concatenate(keys), np.concatenate(counts)


def _sum(parts: Sequence[_Counts]) -> _Counts:
    """Return the sum of counts, its pairs in ascending order."""
    keys, counts = _join(parts)
    unique, numbers = np.unique(keys, return_inverse=True)
    return unique, np.bincount(numbers, weights=counts, minlength=len(unique)).astype(np.float64)


def shortlist_of_counts(
    counts: _Counts, frequencies: npt.NDArray[np.int64], tokenizers: Tokenizers, size: ShortlistSize
) -> Shortlist:
    """Return the shortlist that counted links and frequencies make.

    Args:
        counts: links between source and target tokens, in ascending order.
        frequencies: how often each target token occurs.
        tokenizers: the tokenizers.
        size: how many tokens it allows; of equally frequent ones, those with the lowest ids.
    """
    num_targets = tokenizers.tgt.vocab_size
    order = np.argsort(-frequencies, kind="stable")[: size.first]
    first = np.sort(order[frequencies[order] > 0]).astype(np.int32)
    keys, totals = counts
    srcs, tgts = keys // num_targets, keys % num_targets
    # c(s) is the same for all t of an s, so counts rank as p(t|s) does
    ranked = np.lexsort((tgts, -totals, srcs))
    # keys are in ascending order, so the tokens of a source are together
    starts = np.searchsorted(srcs, srcs)
    best = ranked[np.arange(len(keys)) - starts < size.best]
    entries = np.concatenate([keys[best], _copies(tokenizers)])
    entries = np.unique(entries)
    entries = entries[~np.isin(entries % num_targets, first)]
    per_source = np.bincount(entries // num_targets, minlength=tokenizers.src.vocab_size)
    offsets = np.concatenate([[0], per_source.cumsum()]).astype(np.int64)
    return Shortlist(first, offsets, (entries % num_targets).astype(np.int32))


def _copies(tokenizers: Tokenizers) -> npt.NDArray[np.int64]:
    """Return each source token with the target token of the same piece, if there is one, as s * V + t."""
    src, tgt = tokenizers.src, tokenizers.tgt
    numbers = {tgt.piece(token): token for token in range(tgt.num_pieces)}
    special = {*src.special, src.unk}
    found = [
        token * tgt.vocab_size + numbers[piece]
        for token in range(src.num_pieces)
        if token not in special and (piece := src.piece(token)) in numbers
    ]
    return np.array(found, dtype=np.int64)


def measure_coverage(shortlist: Shortlist, corpus: Corpus, tokenizers: Tokenizers) -> Coverage:
    """Return how much of the targets of a corpus, or of an even sample of 100,000 pairs, a shortlist allows."""
    num_pairs = num_tokens = num_allowed = num_lines = total_size = 0
    for pairs in _chunks(corpus, _PAIRS_MEASURED_AT_ONCE, _MOST_MEASURED):
        num_pairs += len(pairs)
        allowed_BV = shortlist.allowed([src for src, _ in pairs], tokenizers.tgt.vocab_size)
        total_size += int(allowed_BV.sum())
        for allowed_V, (_, tgt) in zip(allowed_BV, pairs, strict=True):
            num_tokens, num_allowed = num_tokens + len(tgt), num_allowed + int(allowed_V[tgt].sum())
            num_lines += bool(allowed_V[tgt].all())
    return Coverage(num_allowed / max(1, num_tokens), num_lines / num_pairs, total_size / num_pairs)
