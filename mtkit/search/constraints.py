"""Lexical constraints: words that must appear in a translation (terminology), each with any number of alternatives.

A hypothesis may end only when every constraint is met. So that constrained hypotheses are not crowded out by those
that have no intention of meeting them, the beam is dealt out evenly to hypotheses that have met equally much
(dynamic beam allocation, Post and Vilar 2018, section 3); the candidates are, besides the best of all, the pieces that
bring each hypothesis on. Alternatives make a constraint disjunctive (Hu et al. 2019). Where in the sentence the words
stand is left to the model.

Shapes: B sentences, K hypotheses, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtkit.search.state import NEG_INF, Beam, Candidates, SearchOptions

_MET, _JUST_MET = -1, -2
"""The place in a phrase of a constraint that is met; that is met if the next piece may follow it."""


@dataclass(frozen=True)
class Constraint:
    """One of these phrases must appear.

    Args:
        phrases: sequences of piece ids, none of them empty.
        followers: pieces that may come right after a phrase (or eos), so that it is not the beginning of a longer
            word; None: any.
    """

    phrases: tuple[tuple[int, ...], ...]
    followers: frozenset[int] | None = None

    @cached_property
    def borders(self) -> tuple[tuple[int, ...], ...]:
        """For each phrase the failure function of Knuth, Morris and Pratt (1977)."""
        return tuple(map(_failure_function, self.phrases))

    @property
    def num_tokens(self) -> int:
        """Length of the shortest phrase."""
        return min(map(len, self.phrases))

    def advance(self, places: tuple[int, ...], token: int) -> tuple[int, ...]:
        """How far each phrase has come after a piece; all `_MET` once one of them is whole."""
        if places[0] == _MET:
            return places
        if places[0] == _JUST_MET:
            if self.followers is None or token in self.followers:
                return (_MET,) * len(places)
            places = (0,) * len(places)
        after = tuple(
            _next_place(phrase, border, place, token)
            for phrase, border, place in zip(self.phrases, self.borders, places, strict=True)
        )
        whole = any(place == len(phrase) for place, phrase in zip(after, self.phrases, strict=True))
        met = _MET if self.followers is None else _JUST_MET
        return (met,) * len(after) if whole else after

    def missing(self, places: tuple[int, ...]) -> int:
        """The fewest pieces that still have to come."""
        if places[0] in (_MET, _JUST_MET):
            return 0
        return min(len(phrase) - place for phrase, place in zip(self.phrases, places, strict=True))

    def next_tokens(self, places: tuple[int, ...]) -> set[int]:
        """Pieces that bring a phrase on."""
        if places[0] in (_MET, _JUST_MET):
            return set()
        return {phrase[place] for phrase, place in zip(self.phrases, places, strict=True)}


def _failure_function(phrase: Sequence[int]) -> tuple[int, ...]:
    """For each prefix the length of its longest proper suffix that is a prefix too."""
    borders = [0]
    for token in phrase[1:]:
        length = borders[-1]
        while length and phrase[length] != token:
            length = borders[length - 1]
        borders.append(length + (phrase[length] == token))
    return tuple(borders)


def _next_place(phrase: Sequence[int], borders: Sequence[int], place: int, token: int) -> int:
    """Pieces of the phrase that the hypothesis ends with after this piece, if it ended with `place` before."""
    while place and phrase[place] != token:
        place = borders[place - 1]
    return place + (phrase[place] == token)


State = tuple[tuple[int, ...], ...]
"""Of a hypothesis: for each of its constraints how far each phrase has come."""


class ConstraintTracker:
    """How far every hypothesis has come, and what the search may do because of that.

    Args:
        constraints: of each sentence; none for a sentence that is searched freely.
        options: of the search.
    """

    def __init__(self, constraints: Sequence[Sequence[Constraint]], options: SearchOptions) -> None:
        self.constraints, self.options, self.eos = [tuple(c) for c in constraints], options, options.eos
        start = [tuple((0,) * len(c.phrases) for c in own) for own in self.constraints]
        self.states: list[list[State]] = [[state] for state in start]

    def missing(self, sentence: int, state: State) -> int:
        """The fewest pieces that a hypothesis still lacks."""
        own = self.constraints[sentence]
        return sum(c.missing(places) for c, places in zip(own, state, strict=True))

    def after(self, sentence: int, state: State, token: int) -> State:
        """The state after one more piece; eos changes nothing."""
        if token == self.eos:
            return state
        own = self.constraints[sentence]
        return tuple(c.advance(places, token) for c, places in zip(own, state, strict=True))

    def apply_token_rules(self, log_probs_BKV: Tensor, first: int = 0) -> None:
        """No eos before all constraints are met, in place. The sentences are those from number `first` on."""
        for row in range(len(log_probs_BKV)):
            for k, state in enumerate(self.states[first + row]):
                if self.missing(first + row, state):
                    log_probs_BKV[row, k, self.eos] = NEG_INF

    def allocate(self, candidates: Candidates, log_probs_BKV: Tensor, beam: Beam, first: int = 0) -> None:
        """Deal the beam of constrained sentences out to the banks, in place of their best candidates.

        Each group of diverse search deals its own hypotheses, and pays for the pieces of the groups before it.
        """
        C, K = candidates.log_probs_BGC.shape[2], log_probs_BKV.shape[1]
        size = self.options.beam_size // self.options.groups
        for row in range(len(log_probs_BKV)):
            prices: Counter[int] = Counter()
            for group in range(self.options.groups if self.constraints[first + row] else 0):
                own = range(group * size, (group + 1) * size) if K > 1 else range(1)
                pool = candidates.parents_BGC[row, group], candidates.tokens_BGC[row, group]
                best = set(zip(*(column.tolist() for column in pool), strict=True))
                dealt = self._dealt(first + row, row, own, best, log_probs_BKV[row], beam, prices)
                write(candidates, row, group, [*dealt, *[(NEG_INF, own[0], 0)] * C][:C], self.eos)
                go_on = [token for _, _, token in dealt[:C] if token != self.eos]
                prices.update(go_on[:size])

    def _dealt(
        self,
        number: int,
        row: int,
        own: range,
        best: set[tuple[int, int]],
        log_probs_KV: Tensor,
        beam: Beam,
        prices: Counter[int],
    ) -> list[tuple[float, int, int]]:
        """(log-probability, hypothesis, piece) in the order in which they may go on.

        Args:
            number, row: of the sentence, among all and among those looked at.
            own: hypotheses of the group.
            best: (hypothesis, piece) of its best candidates.
            prices: how many hypotheses of the groups before chose a piece.
        """
        left = int(beam.max_lengths_B[row]) - beam.length - 1  # pieces after this one, eos included
        previous = beam.log_probs_BK[row].tolist()
        most_probable = log_probs_KV.argmax(dim=-1).tolist()
        own_best = ((k, most_probable[k]) for k in own)  # so that every hypothesis can go on
        ends = ((k, self.eos) for k in own)
        order = sorted({*best, *own_best, *ends, *self._advancing(number, own)})
        scores = log_probs_KV[[k for k, _ in order], [v for _, v in order]].tolist()
        banks: dict[int, list[tuple[float, int, int]]] = {}
        for (k, token), log_prob in zip(order, scores, strict=True):
            total = previous[k] + log_prob
            missing = self.missing(number, self.after(number, self.states[number][k], token))
            if total > NEG_INF and missing < max(left, 1):  # what is missing fits, and eos behind it
                banks.setdefault(missing, []).append((total, k, token))

        def value(candidate: tuple[float, int, int]) -> tuple[float, int, int]:
            total, k, token = candidate
            return total - self.options.diversity * prices[token], k, token

        return _deal([sorted(bank, key=value, reverse=True) for _, bank in sorted(banks.items())])

    def _advancing(self, number: int, own: range) -> set[tuple[int, int]]:
        """(hypothesis, piece) of all pieces that bring one of these hypotheses on."""
        return {
            (k, token)
            for k in own
            for c, places in zip(self.constraints[number], self.states[number][k], strict=True)
            for token in c.next_tokens(places)
        }

    def advance(self, parents_BK: Tensor, tokens_BK: Tensor) -> None:
        """The hypotheses that go on."""
        self.states = [
            [self.after(row, self.states[row][k], v) for k, v in zip(parents, tokens, strict=True)]
            for row, (parents, tokens) in enumerate(zip(parents_BK.tolist(), tokens_BK.tolist(), strict=True))
        ]

    def keep(self, sentences_B: Tensor) -> None:
        """Continue with these sentences alone."""
        kept = sentences_B.tolist()
        self.constraints = [self.constraints[row] for row in kept]
        self.states = [self.states[row] for row in kept]


def write(
    candidates: Candidates, row: int, group: int, dealt: Sequence[tuple[float, int, int]], eos: int
) -> None:
    """Put (log-probability, hypothesis, piece) in place of a group's candidates."""
    totals, parents, tokens = zip(*dealt, strict=True)
    device = candidates.log_probs_BGC.device
    candidates.log_probs_BGC[row, group] = torch.tensor(totals, device=device)
    candidates.parents_BGC[row, group] = torch.tensor(parents, device=device)
    candidates.tokens_BGC[row, group] = torch.tensor(tokens, device=device)
    candidates.ends_BGC[row, group] = candidates.tokens_BGC[row, group] == eos


def _deal(banks: list[list[tuple[float, int, int]]]) -> list[tuple[float, int, int]]:
    """One from each bank in turn, from those that lack least on, until all are empty."""
    dealt: list[tuple[float, int, int]] = []
    for turn in range(max(map(len, banks), default=0)):
        dealt += [bank[turn] for bank in banks if turn < len(bank)]
    return dealt
