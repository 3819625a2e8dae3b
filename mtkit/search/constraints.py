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

from mtkit.search.state import NEG_INF, Beam, Candidates, SearchOptions

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
        for row in range(len(log_probs_BKV)):
            for k, state in enumerate(self.states[first + row]):
                if self.num_missing(first + row, state):
                    log_probs_BKV[row, k, self.eos] = NEG_INF

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
        C, K = candidates.log_probs_BGC.shape[2], log_probs_BKV.shape[1]
        size = self.options.beam_size // self.options.groups
        for row in range(len(log_probs_BKV)):
            chosen: Counter[int] = Counter()
            for group in range(self.options.groups if self.constraints[first + row] else 0):
                own = range(group * size, (group + 1) * size) if K > 1 else range(1)
                pool = candidates.parents_BGC[row, group], candidates.tokens_BGC[row, group]
                best = set(zip(*(column.tolist() for column in pool), strict=True))
                ranked = self._allocate_group(first + row, row, own, best, log_probs_BKV[row], beam, chosen)
                padded = [*ranked, *[(NEG_INF, own[0], 0)] * C][:C]
                _replace_candidates(candidates, row, group, padded, self.eos)
                live = [token for _, _, token in ranked[:C] if token != self.eos]
                chosen.update(live[:size])

    def _allocate_group(
        self,
        sentence: int,
        row: int,
        own: range,
        best: set[tuple[int, int]],
        log_probs_KV: Tensor,
        beam: Beam,
        chosen: Counter[int],
    ) -> list[Candidate]:
        """Return the candidates of a group in the order in which the beam is filled.

        Args:
            sentence: index of the sentence among all.
            row: index of the sentence in `beam`.
            own: hypotheses of the group.
            best: (hypothesis, token) of its most probable candidates.
            log_probs_KV: log-probabilities of the sentence.
            chosen: how many hypotheses of the earlier groups chose each token.
        """
        tokens_left = int(beam.max_lengths_B[row]) - beam.length - 1  # after this one, eos included
        previous = beam.log_probs_BK[row].tolist()
        most_probable = log_probs_KV.argmax(dim=-1).tolist()
        own_best = ((k, most_probable[k]) for k in own)  # so that every hypothesis can continue
        ends = ((k, self.eos) for k in own)
        pool = sorted({*best, *own_best, *ends, *self._advancing(sentence, own)})
        log_probs = log_probs_KV[[k for k, _ in pool], [token for _, token in pool]].tolist()
        banks: dict[int, list[Candidate]] = {}
        for (k, token), log_prob in zip(pool, log_probs, strict=True):
            total = previous[k] + log_prob
            state = self.next_state(sentence, self.states[sentence][k], token)
            missing = self.num_missing(sentence, state)
            if total > NEG_INF and missing < max(tokens_left, 1):  # room for the missing tokens and eos
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
        self.states = [
            [
                self.next_state(row, self.states[row][k], token)
                for k, token in zip(parents, tokens, strict=True)
            ]
            for row, (parents, tokens) in enumerate(zip(parents_BK.tolist(), tokens_BK.tolist(), strict=True))
        ]

    def keep_rows(self, rows_B: Tensor) -> None:
        """Continue with sentences `rows_B` only."""
        kept = rows_B.tolist()
        self.constraints = [self.constraints[row] for row in kept]
        self.states = [self.states[row] for row in kept]


def _replace_candidates(
    candidates: Candidates, row: int, group: int, new: Sequence[Candidate], eos: int
) -> None:
    """Replace the candidates of a group in place."""
    log_probs, parents, tokens = zip(*new, strict=True)
    device = candidates.log_probs_BGC.device
    candidates.log_probs_BGC[row, group] = torch.tensor(log_probs, device=device)
    candidates.parents_BGC[row, group] = torch.tensor(parents, device=device)
    candidates.tokens_BGC[row, group] = torch.tensor(tokens, device=device)
    candidates.ends_BGC[row, group] = candidates.tokens_BGC[row, group] == eos


def _round_robin(banks: list[list[Candidate]]) -> list[Candidate]:
    """Take one candidate from each bank in turn until all are empty; the bank that lacks the fewest tokens is first."""
    taken: list[Candidate] = []
    for turn in range(max(map(len, banks), default=0)):
        taken += [bank[turn] for bank in banks if turn < len(bank)]
    return taken
