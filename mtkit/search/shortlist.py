"""Lexical shortlists: the search chooses among the target tokens that probably translate the source, about 200.

Most of the time of a small decoder is spent on the output matrix, whose rows are the whole vocabulary. With a shortlist
(Schwenk et al. 2007; for word translation probabilities Mi et al. 2016, and Marian) only some rows are multiplied:
those of the tokens that a table allows for the source tokens of a sentence.

The compiled library multiplies the rows of each sentence's own list. PyTorch multiplies those of all lists of a batch:
they are gathered once, and the search runs on a vocabulary that consists of them alone.

Either way a sentence may use the tokens of its own list only, and probabilities are normalized over that list. So
neither its translation nor its score depends on the other sentences of the batch. Allowed besides are eos, and what its
prefix and its constraints consist of.

Shapes: B sentences, V vocabulary, U tokens that the sentences of a batch may use, F tokens that every sentence may use,
N source tokens, P entries of the table or of all lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.data.batching import Ids
from mtkit.search.constraints import Constraint
from mtkit.search.state import Hypothesis, SearchOptions


@dataclass(frozen=True)
class Shortlist:
    """A table of target tokens for each source token.

    Attributes:
        first: [F] tokens that every sentence may use.
        offsets: [N + 1] where the entries of each source token begin; source token s has
            `targets[offsets[s]:offsets[s + 1]]`.
        targets: [P] target tokens, in ascending order for each source token.
    """

    first: Ids
    offsets: npt.NDArray[np.int64]
    targets: Ids

    def allowed(self, sentences: Sequence[Ids], vocab_size: int) -> npt.NDArray[np.bool_]:
        """Return which target tokens each sentence may use, by its source tokens: [B, V]."""
        allowed_BV = np.zeros((len(sentences), vocab_size), dtype=np.bool_)
        allowed_BV[:, self.first] = True
        tokens = np.concatenate([np.zeros(0, dtype=np.int32), *sentences])
        rows = np.repeat(np.arange(len(sentences)), [len(ids) for ids in sentences])
        counts = self.offsets[tokens + 1] - self.offsets[tokens]
        starts = np.repeat(self.offsets[tokens] - (counts.cumsum() - counts), counts)
        entries = starts + np.arange(int(counts.sum()))
        allowed_BV[np.repeat(rows, counts), self.targets[entries]] = True
        return allowed_BV

    def lists(
        self,
        sentences: Sequence[Ids],
        prefixes: Sequence[Sequence[int]],
        constraints: Sequence[Sequence[Constraint]],
        eos: int,
        vocab_size: int,
    ) -> TokenLists:
        """Return the target tokens that each sentence of a batch may use.

        Args:
            sentences: source tokens of each sentence.
            prefixes: for each sentence, the tokens that its hypotheses start with.
            constraints: for each sentence, its constraints.
            eos: the token that ends a hypothesis.
            vocab_size: V.
        """
        allowed_BV = self.allowed(sentences, vocab_size)
        allowed_BV[:, eos] = True
        for row, (prefix, own) in enumerate(zip(prefixes, constraints, strict=True)):
            phrases = [token for constraint in own for phrase in constraint.phrases for token in phrase]
            allowed_BV[row, [*prefix, *phrases]] = True
        return TokenLists(allowed_BV)


@dataclass(frozen=True)
class TokenLists:
    """The target tokens that each sentence of a batch may use.

    Attributes:
        allowed_BV: whether a sentence may use a token.
    """

    allowed_BV: npt.NDArray[np.bool_]

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """The tokens [P] of all sentences, int32, and where those of each begin and end: [B, 2]."""
        B, V = self.allowed_BV.shape
        cells = np.flatnonzero(self.allowed_BV)
        ends = np.searchsorted(cells, V * np.arange(B + 1))
        spans = np.stack([ends[:-1], ends[1:]], axis=1).astype(np.int64)
        return torch.from_numpy((cells % V).astype(np.int32)), torch.from_numpy(spans)


class ReducedVocabulary:
    """The target tokens that the sentences of a batch may use, numbered in ascending order for the search.

    Args:
        lists: those of each sentence.
        bos: the token that every hypothesis starts with.
        device: where the search runs.

    Attributes:
        tokens_U: the tokens.
        forbidden_B1U: True where a sentence may not use a token.
    """

    def __init__(self, lists: TokenLists, bos: int, device: torch.device | str = "cpu") -> None:
        allowed_BV = lists.allowed_BV
        used = {bos, *np.flatnonzero(allowed_BV.any(axis=0)).tolist()}  # bos is the first input
        tokens = np.array(sorted(used))
        self._numbers = dict(zip(tokens.tolist(), range(len(tokens)), strict=True))
        self.tokens_U = torch.from_numpy(tokens).to(device)
        self.forbidden_B1U = torch.from_numpy(~allowed_BV[:, None, tokens]).to(device)

    def options(self, options: SearchOptions) -> SearchOptions:
        """Return options of the search in the numbers of this vocabulary."""
        return replace(
            options,
            bos=self._numbers[options.bos],
            eos=self._numbers[options.eos],
            suppressed=self._known(options.suppressed),
        )

    def prefixes(self, prefixes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Return prefixes in the numbers of this vocabulary, which has their tokens."""
        return [tuple(self._numbers[token] for token in prefix) for prefix in prefixes]

    def constraints(self, constraints: Sequence[Sequence[Constraint]]) -> list[tuple[Constraint, ...]]:
        """Return constraints in the numbers of this vocabulary, which has the tokens of their phrases."""
        return [tuple(map(self._constraint, own)) for own in constraints]

    def _constraint(self, constraint: Constraint) -> Constraint:
        followers = None if constraint.followers is None else frozenset(self._known(constraint.followers))
        return Constraint(tuple(self.prefixes(constraint.phrases)), followers)

    def _known(self, tokens: Sequence[int] | frozenset[int]) -> tuple[int, ...]:
        """Return the numbers of those of the tokens that this vocabulary has."""
        return tuple(self._numbers[token] for token in tokens if token in self._numbers)

    def restore(self, found: Sequence[Sequence[Hypothesis]]) -> list[list[Hypothesis]]:
        """Return hypotheses with the tokens of the whole vocabulary."""
        tokens = self.tokens_U.tolist()
        return [[replace(hyp, ids=[tokens[number] for number in hyp.ids]) for hyp in hyps] for hyps in found]
