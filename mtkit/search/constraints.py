"""Lexical constraints: words that a translation must contain (terminology), each with any number of alternatives.

A hypothesis may end only when all of its constraints are met. Without help, hypotheses that work towards a constraint
would be crowded out of the beam by those that ignore it. So the beam is divided evenly among banks: hypotheses that
lack the same number of tokens (dynamic beam allocation, Post and Vilar 2018, section 3). The candidates are the best of
all, plus every token that continues a phrase. Alternatives make a constraint disjunctive (Hu et al. 2019). The model
decides where in the sentence the words stand.

Shapes: B sentences, K hypotheses, V vocabulary, G groups of the beam, C candidates of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtkit.device import to_device
from mtkit.search.state import (
    NEG_INF,
    Beam,
    Candidates,
    SearchOptions,
    read_columns,
    rows_on,
)

_MET, _PENDING = -1, -2
"""Progress of a constraint that is met, and of one that is met if the next token may follow the phrase."""


@dataclass(frozen=True)
class Constraint:
    """A constraint: one of its phrases must appear.

    The progress of a constraint is a tuple: for each phrase, how many of its tokens the hypothesis ends with; or all
    `_MET` or `_PENDING`.

    Args:
        phrases: sequences of token ids, none of them empty.
        followers: tokens allowed right after a phrase, besides eos, so that a phrase is not the beginning of a longer
            word; None allows any.
    """

    phrases: tuple[tuple[int, ...], ...]
    followers: frozenset[int] | None = None

    @cached_property
    def borders(self) -> tuple[tuple[int, ...], ...]:
        """Failure function of each phrase (Knuth, Morris and Pratt 1977)."""
        return tuple(map(_failure_function, self.phrases))

    @property
    def num_tokens(self) -> int:
        """Length of the shortest phrase."""
        return min(map(len, self.phrases))

    def advance(self, progress: tuple[int, ...], token: int) -> tuple[int, ...]:
        """Return the progress after one more token."""
        if progress[0] == _MET:
            return progress
        if progress[0] == _PENDING:
            if self.followers is None or token in self.followers:
                return (_MET,) * len(progress)
            progress = (0,) * len(progress)
        advanced = tuple(
            _advance_phrase(phrase, border, matched, token)
            for phrase, border, matched in zip(self.phrases, self.borders, progress, strict=True)
        )
        if any(matched == len(phrase) for matched, phrase in zip(advanced, self.phrases, strict=True)):
            return (_MET if self.followers is None else _PENDING,) * len(advanced)
        return advanced

    def num_missing(self, progress: tuple[int, ...]) -> int:
        """Return the fewest tokens that complete a phrase."""
        if progress[0] in (_MET, _PENDING):
            return 0
        return min(len(phrase) - matched for phrase, matched in zip(self.phrases, progress, strict=True))

    def next_tokens(self, progress: tuple[int, ...]) -> set[int]:
        """Return the tokens that continue a phrase."""
        if progress[0] in (_MET, _PENDING):
            return set()
        return {phrase[matched] for phrase, matched in zip(self.phrases, progress, strict=True)}


def _failure_function(phrase: Sequence[int]) -> tuple[int, ...]:
    """Return, for each prefix of the phrase, the length of its longest proper suffix that is also a prefix."""
    borders = [0]
    for token in phrase[1:]:
        length = borders[-1]
        while length and phrase[length] != token:
            length = borders[length - 1]
        borders.append(length + (phrase[length] == token))
    return tuple(borders)


def _advance_phrase(phrase: Sequence[int], borders: Sequence[int], matched: int, token: int) -> int:
    """Return how many tokens of the phrase the hypothesis ends with after `token`, if it was `matched` before."""
    while matched and phrase[matched] != token:
        matched = borders[matched - 1]
    return matched + (phrase[matched] == token)


State = tuple[tuple[int, ...], ...]
"""State of a hypothesis: the progress of each constraint of its sentence."""

Candidate = tuple[float, int, int]
"""Log-probability of the hypothesis with its new token, the hypothesis it continues, the token."""


@dataclass(frozen=True)
class _Found:
    """Numbers of a sentence that the allocation depends on."""

    best: list[list[tuple[int, int]]]  # (hypothesis, token) of the best candidates of each group
    own_best: list[tuple[int, int]]  # each hypothesis with its most probable token
    log_probs: dict[tuple[int, int], float]  # of each (hypothesis, token) that may be allocated
    previous: list[float]  # log-probability of each hypothesis so far
    tokens_left: int  # after the next one, eos included


class ConstraintTracker:
    """The state of every live hypothesis, and the candidates that follow from it.

    Args:
        constraints: constraints of each sentence; empty for a sentence that is searched freely.
        options: options of the search.
    """

    def __init__(self, constraints: Sequence[Sequence[Constraint]], options: SearchOptions) -> None:
        self.constraints, self.options, self.eos = [tuple(c) for c in constraints], options, options.eos
        start = [tuple((0,) * len(c.phrases) for c in own) for own in self.constraints]
        self.states: list[list[State]] = [[state] for state in start]

    def num_missing(self, sentence: int, state: State) -> int:
        """Return the fewest tokens that a hypothesis in this state still lacks."""
        own = self.constraints[sentence]
        return sum(c.num_missing(progress) for c, progress in zip(own, state, strict=True))

    def next_state(self, sentence: int, state: State, token: int) -> State:
        """Return the state after one more token; eos changes nothing."""
        if token == self.eos:
            return state
        own = self.constraints[sentence]
        return tuple(c.advance(progress, token) for c, progress in zip(own, state, strict=True))

    def forbid_early_eos(self, log_probs_BKV: Tensor, first: int = 0) -> None:
        """Forbid eos, in place, where a constraint is not met.

        Args:
            log_probs_BKV: log-probabilities of consecutive sentences.
            first: index of the first of them.
        """
        early = [
            [self.num_missing(sentence, state) > 0 for state in self.states[sentence]]
            for sentence in range(first, first + len(log_probs_BKV))
        ]
        early_BK = to_device(torch.tensor(early), log_probs_BKV.device)
        log_probs_BKV[:, :, self.eos].masked_fill_(early_BK, NEG_INF)

    def allocate(self, candidates: Candidates, log_probs_BKV: Tensor, beam: Beam, first: int = 0) -> None:
        """Replace, in place, the candidates of sentences with constraints by those of dynamic beam allocation.

        Each group of diverse search divides its own part of the beam, and its tokens are penalized for the choices of
        the groups before it.

        Args:
            candidates: the best candidates of consecutive sentences.
            log_probs_BKV: log-probabilities of these sentences.
            beam: the beam of these sentences.
            first: index of the first of them.
        """
        rows = [row for row in range(len(log_probs_BKV)) if self.constraints[first + row]]
        if not rows:
            return
        C, K = candidates.log_probs_BGC.shape[2], log_probs_BKV.shape[1]
        size = self.options.beam_size // self.options.groups
        new: list[list[list[Candidate]]] = []
        for row, found in zip(rows, self._read(rows, candidates, log_probs_BKV, beam, first), strict=True):
            chosen: Counter[int] = Counter()
            new.append([])
            for group, best in enumerate(found.best):
                own = range(group * size, (group + 1) * size) if K > 1 else range(1)
                ranked = self._allocate_group(first + row, own, {*best}, found, chosen)
                new[-1].append([*ranked, *[(NEG_INF, own[0], 0)] * C][:C])
                live = [token for _, _, token in ranked[:C] if token != self.eos]
                chosen.update(live[:size])
        _replace_candidates(candidates, rows, new, self.eos)

    def _read(
        self, rows: list[int], candidates: Candidates, log_probs_BKV: Tensor, beam: Beam, first: int
    ) -> list[_Found]:
        """Return what the allocation of these rows depends on; from a GPU it is read in one copy."""
        K, V = log_probs_BKV.shape[1:]
        known = [
            sorted({*((k, self.eos) for k in range(K)), *self._advancing(first + row, range(K))})
            for row in rows
        ]
        places = [(row * K + k) * V + token for row, own in zip(rows, known, strict=True) for k, token in own]
        device = log_probs_BKV.device
        rows_R, places_N = rows_on(device, rows), rows_on(device, places)
        most_probable_RK = log_probs_BKV.argmax(dim=-1)[rows_R]
        parents_RGC, tokens_RGC = candidates.parents_BGC[rows_R], candidates.tokens_BGC[rows_R]
        best_RN = (parents_RGC * V + tokens_RGC).flatten(1)
        own_best_RK = torch.arange(K, device=device) * V + most_probable_RK
        of_rows_RN = torch.cat([best_RN, own_best_RK], dim=1) + rows_R[:, None] * (K * V)
        flat = log_probs_BKV.flatten()
        parents, tokens, most_probable, previous, max_lengths, log_probs, known_log_probs = read_columns(
            [
                parents_RGC,
                tokens_RGC,
                most_probable_RK,
                beam.log_probs_BK[rows_R],
                beam.max_lengths_B[rows_R],
                flat[of_rows_RN],
                flat[places_N],
            ]
        )
        found, start = [], 0
        for index, own in enumerate(known):
            best = [
                list(zip(*group, strict=True)) for group in zip(parents[index], tokens[index], strict=True)
            ]
            own_best = list(enumerate(most_probable[index]))
            pairs = [*(pair for group in best for pair in group), *own_best, *own]
            values = [*log_probs[index], *known_log_probs[start : start + len(own)]]
            start += len(own)
            tokens_left = max_lengths[index] - beam.length - 1  # after this one, eos included
            by_pair = dict(zip(pairs, values, strict=True))
            found.append(_Found(best, own_best, by_pair, previous[index], tokens_left))
        return found

    def _allocate_group(
        self,
        sentence: int,
        own: range,
        best: set[tuple[int, int]],
        found: _Found,
        chosen: Counter[int],
    ) -> list[Candidate]:
        """Return the candidates of a group in the order in which the beam is filled.

        Args:
            sentence: index of the sentence among all.
            own: hypotheses of the group.
            best: (hypothesis, token) of its most probable candidates.
            found: what was read for the sentence.
            chosen: how many hypotheses of the earlier groups chose each token.
        """
        own_best = (found.own_best[k] for k in own)  # so that every hypothesis can continue
        ends = ((k, self.eos) for k in own)
        banks: dict[int, list[Candidate]] = {}
        for k, token in sorted({*best, *own_best, *ends, *self._advancing(sentence, own)}):
            total = found.previous[k] + found.log_probs[k, token]
            state = self.next_state(sentence, self.states[sentence][k], token)
            missing = self.num_missing(sentence, state)
            if total > NEG_INF and missing < max(found.tokens_left, 1):  # room for missing tokens and eos
                banks.setdefault(missing, []).append((total, k, token))

        def rank(candidate: Candidate) -> Candidate:
            total, k, token = candidate
            return total - self.options.diversity * chosen[token], k, token

        return _round_robin([sorted(bank, key=rank, reverse=True) for _, bank in sorted(banks.items())])

    def _advancing(self, sentence: int, own: range) -> set[tuple[int, int]]:
        """Return (hypothesis, token) for each token that continues a phrase of one of these hypotheses."""
        return {
            (k, token)
            for k in own
            for c, progress in zip(self.constraints[sentence], self.states[sentence][k], strict=True)
            for token in c.next_tokens(progress)
        }

    def advance(self, parents_BK: Tensor, tokens_BK: Tensor) -> None:
        """Continue with the new live hypotheses: the previous one of each, and its new token."""
        columns = zip(*read_columns([parents_BK, tokens_BK]), strict=True)
        self.states = [
            [
                self.next_state(row, self.states[row][k], token)
                for k, token in zip(parents, tokens, strict=True)
            ]
            for row, (parents, tokens) in enumerate(columns)
        ]

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        kept = rows_B.tolist()
        self.constraints = [self.constraints[row] for row in kept]
        self.states = [self.states[row] for row in kept]


def _replace_candidates(
    candidates: Candidates, rows: list[int], new: Sequence[Sequence[Sequence[Candidate]]], eos: int
) -> None:
    """Replace the candidates of these sentences in place."""
    device = candidates.log_probs_BGC.device
    rows_R, numbers_RGC3 = rows_on(device, rows), to_device(torch.tensor(new, dtype=torch.float64), device)
    log_probs_RGC, parents_RGC, tokens_RGC = numbers_RGC3.unbind(dim=-1)
    candidates.log_probs_BGC[rows_R] = log_probs_RGC.to(candidates.log_probs_BGC.dtype)
    candidates.parents_BGC[rows_R] = parents_RGC.long()
    candidates.tokens_BGC[rows_R] = tokens_RGC.long()
    candidates.ends_BGC[rows_R] = tokens_RGC == eos


def _round_robin(banks: list[list[Candidate]]) -> list[Candidate]:
    """Take one candidate from each bank in turn until all are empty; the bank that lacks the fewest tokens is first."""
    taken: list[Candidate] = []
    for turn in range(max(map(len, banks), default=0)):
        taken += [bank[turn] for bank in banks if turn < len(bank)]
    return taken
