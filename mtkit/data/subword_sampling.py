"""Subword sampling: another segmentation of each sentence in each pass over the corpus.

In: token ids of sentences as `Tokenizer.encode` gives them. Out: ids of other segmentations of the same text.

- Unigram models (Kudo 2018, section 3): a segmentation has a probability proportional to the product of the
  probabilities of its pieces, raised to the power of alpha.
- BPE-dropout (Provilkov et al. 2020, algorithm 1): before each merge, every possible merge is left out with
  probability p, and the best of the others is made; when none is left, the word is finished.

A sample is a function of (seed, pass, sentence), whatever else is in a batch.

No piece crosses the border between two pieces of the usual segmentation if no piece contains the two characters at
that border next to each other. So a sentence is cut there into stretches, mostly words, that are sampled independently.
What a BPE model may merge in a stretch grows with the square of its length, so a long one, as in text without spaces,
is cut between usual pieces all the same.
Special pieces, symbols of the user, bytes and unknown characters are stretches of their own and stay as they are.

How a stretch is sampled is a walk through a graph: from each node, a random edge leads to the next. The graphs of all
stretches that were seen are kept in one table, in which all stretches of a batch take a step at the same time.
Shapes: R rows, N tokens of all rows, W stretches (words) of all rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mtkit.data.batching import Ids
from mtkit.data.counter_random import Key, Words, numbers_of_pairs
from mtkit.data.order import Indices
from mtkit.data.segmentation import Piece, read_pieces
from mtkit.data.tokenizer import Tokenizer, VocabularyTokenizer
from mtkit.errors import ConfigError

_MAX_SIZE = 1 << 23
"""Once the graphs have more numbers than this, they are forgotten, and built again as they are needed."""
_MAX_MERGED = 50
"""Characters of a stretch of a BPE model behind which it is cut at the next border between usual pieces."""
_END = -1
"""Mark in place of a node: the walk ends."""
_TWO_32 = 1 << 32

_Int64s = npt.NDArray[np.int64]
_Draw = Callable[[_Int64s, int], tuple[Words, ...]]
"""Returns four random numbers of 32 bits for each of some stretches, others for each block."""


class SubwordSampler:
    """Samples segmentations of sentences.

    Two stretches of text with the same hash of 64 bits would be taken for the same; among a million different ones,
    the probability of that is 3e-8.
    """

    def __init__(
        self, tokenizer: Tokenizer, method: Literal["unigram", "bpe"], strength: float, key: Key
    ) -> None:
        """Prepare the graphs of a model.

        Args:
            tokenizer: tokenizer of one side.
            method: `unigram` or `bpe`: the type of the model.
            strength: alpha of unigram sampling, or the probability of dropout.
            key: key of the random numbers.

        Raises:
            ConfigError: If the tokenizer is no SentencePiece model of this type.
        """
        pieces = _usable_pieces(tokenizer, method)
        graph = _SegmentationGraph if method == "unigram" else _MergeGraph
        self._graph: _Graph = graph(pieces, strength)
        self._max_stretch = _MAX_MERGED if method == "bpe" else None
        self._key = key
        self._starts: dict[int, int] = {}
        self._set_borders(pieces, tokenizer.num_pieces)

    def _set_borders(self, pieces: dict[int, Piece], num_ids: int) -> None:
        """Find the first and last character of each piece, and which characters are neighbors inside of pieces."""
        texts = {index: piece.text for index, piece in pieces.items()}
        numbers = {character: number for number, character in enumerate(sorted(set("".join(texts.values()))))}
        self._first, self._last = np.full(num_ids, -1, np.int64), np.full(num_ids, -1, np.int64)
        self._lengths = np.ones(num_ids, np.int64)
        for index, text in texts.items():
            self._first[index], self._last[index] = numbers[text[0]], numbers[text[-1]]
            self._lengths[index] = len(text)
        self._num_characters = len(numbers)
        inside = {
            numbers[one] * len(numbers) + numbers[other]
            for text in texts.values()
            for one, other in pairwise(text)
        }
        self._inside = np.array(sorted(inside), np.int64)

    def sample(self, rows: Sequence[Ids], pairs: Indices, passes: Indices) -> list[Ids]:
        """Return another segmentation of each row.

        Args:
            rows: token ids, R arrays.
            pairs: [R], index of each row in the corpus.
            passes: [R], how often it was seen before.
        """
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.concatenate([*rows, np.zeros(0, np.int32)])  # [N]
        row_of_token = np.repeat(np.arange(len(rows)), lengths)
        firsts = self._stretch_starts(ids, row_of_token)  # [W]
        row_of_stretch = row_of_token[firsts]
        place = np.arange(len(firsts)) - np.searchsorted(row_of_stretch, row_of_stretch)
        of_pair, of_pass = pairs[row_of_stretch], passes[row_of_stretch]

        def draw(stretches: _Int64s, block: int) -> tuple[Words, ...]:
            where = of_pair[stretches], of_pass[stretches], place[stretches]
            return numbers_of_pairs(self._key, *where, block)

        sampled, counts = self._graph.walk(self._start_nodes(ids, firsts), draw)
        per_row = np.bincount(row_of_stretch, weights=counts, minlength=len(rows)).astype(np.int64)
        ends = np.cumsum(per_row).tolist()
        return [sampled[first:end] for first, end in zip([0, *ends], ends, strict=False)]

    def _stretch_starts(self, ids: Ids, row_of_token: _Int64s) -> _Int64s:
        """Return where each stretch of the tokens starts: [N] -> [W]."""
        before, after = self._last[ids[:-1]], self._first[ids[1:]]
        codes = before * self._num_characters + after
        places = np.minimum(np.searchsorted(self._inside, codes), len(self._inside) - 1)
        joined = (self._inside[places] == codes) if len(self._inside) else np.zeros(len(codes), np.bool_)
        joined &= (before >= 0) & (after >= 0) & (row_of_token[1:] == row_of_token[:-1])
        firsts = np.flatnonzero(np.concatenate([np.ones(min(1, len(ids)), np.bool_), ~joined]))
        if self._max_stretch is None or not len(ids):
            return firsts
        ends = np.cumsum(self._lengths[ids])
        places = ends - self._lengths[ids]  # of each token in all rows
        parts = (places - np.repeat(places[firsts], np.diff(firsts, append=len(ids)))) // self._max_stretch
        return np.union1d(firsts, np.flatnonzero(np.diff(parts) > 0) + 1)

    def _start_nodes(self, ids: Ids, firsts: _Int64s) -> _Int64s:
        """Return the node at which the walk of each stretch starts: [W]. Graphs of new stretches are built."""
        if not len(firsts):
            return firsts
        if self._graph.size > _MAX_SIZE:
            self._graph.clear()
            self._starts.clear()
        place = np.arange(len(ids)) - np.repeat(firsts, np.diff(firsts, append=len(ids)))
        hashes = np.add.reduceat(
            _mix(ids.astype(np.uint64) << np.uint64(32) | place.astype(np.uint64)), firsts
        )
        keys = hashes.tolist()
        starts = list(map(self._starts.get, keys))
        if None in starts:
            ends = [*firsts[1:].tolist(), len(ids)]
            for number, start in enumerate(starts):
                if start is None:
                    stretch = tuple(ids[firsts[number] : ends[number]].tolist())
                    starts[number] = self._starts[keys[number]] = self._graph.add(stretch)
        return np.array(starts, np.int64)


class _Column:
    """An array that grows at its end."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._array, self._length = np.zeros(1024, dtype), 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: Sequence[float]) -> int:
        """Append values, and return where they begin."""
        first, self._length = self._length, self._length + len(values)
        while self._length > len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        self._array[first : self._length] = values
        return first

    @property
    def values(self) -> npt.NDArray[Any]:
        """A view of the array."""
        return self._array[: self._length]


class _Graph(ABC):
    """Graphs of all stretches in tables."""

    @property
    @abstractmethod
    def size(self) -> int:
        """About how many numbers they consist of."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all graphs."""

    @abstractmethod
    def add(self, ids: tuple[int, ...]) -> int:
        """Return the first node of a stretch with these tokens, whose graph is added if it is new."""

    @abstractmethod
    def walk(self, nodes: _Int64s, draw: _Draw) -> tuple[Ids, _Int64s]:
        """Walk from a node for each stretch to the end.

        Args:
            nodes: [W], first nodes.
            draw: returns random numbers.

        Returns:
            the tokens of all stretches one after another; how many each has: [W].
        """


class _SegmentationGraph(_Graph):
    """Segmentations of a stretch under a unigram model: a node is a place in the text, an edge a piece there.

    The probability of an edge is that of all segmentations of the rest that begin with it: sampling goes forward after
    a pass of sums backward.
    """

    def __init__(self, pieces: dict[int, Piece], alpha: float) -> None:
        self._texts = {index: piece.text for index, piece in pieces.items()}
        self._weights = {piece.text: (index, alpha * piece.score) for index, piece in pieces.items()}
        self._longest = max(map(len, self._weights), default=0)
        self.clear()

    @property
    def size(self) -> int:
        return len(self._tokens)

    def clear(self) -> None:
        self._first_edges = _Column(np.int64)  # of each node; a node's edges follow each other
        self._bounds = _Column(np.uint64)  # of each edge: 2^32 x the probability of it and those before it
        self._tokens = _Column(np.int32)
        self._nexts = _Column(np.int64)

    def add(self, ids: tuple[int, ...]) -> int:
        """A token that is no usable piece stays as it is."""
        if any(index not in self._texts for index in ids):
            (index,) = ids
            return self._add_node([(1.0, index, _END)])
        text = "".join(map(self._texts.__getitem__, ids))
        # from each place to the end, the log of the sum over all segmentations
        rest = [-math.inf] * len(text) + [0.0]
        nodes = [_END] * (len(text) + 1)
        for start in reversed(range(len(text))):
            edges = []
            for end in range(start + 1, min(len(text), start + self._longest) + 1):
                found = self._weights.get(text[start:end])
                if found is not None and rest[end] > -math.inf:
                    edges.append((found[1] + rest[end], found[0], nodes[end]))
            if edges:
                edges.sort(reverse=True)
                largest = edges[0][0]
                rest[start] = largest + math.log(sum(math.exp(weight - largest) for weight, _, _ in edges))
                normalized = [(math.exp(weight - rest[start]), token, node) for weight, token, node in edges]
                nodes[start] = self._add_node(normalized)
        return nodes[0]

    def _add_node(self, edges: Sequence[tuple[float, int, int]]) -> int:
        """Add a node with edges, each with its probability, its token and the node that it leads to."""
        probabilities, tokens, nexts = zip(*edges, strict=True)
        totals = list(accumulate(probabilities))
        bounds = [min(_TWO_32, round(total * _TWO_32)) for total in totals[:-1]]
        self._tokens.extend(tokens)
        self._nexts.extend(nexts)
        return self._first_edges.extend([self._bounds.extend([*bounds, _TWO_32])])

    def walk(self, nodes: _Int64s, draw: _Draw) -> tuple[Ids, _Int64s]:
        """Every edge writes a token."""
        active, counts = np.arange(len(nodes)), np.zeros(len(nodes), np.int64)
        written: list[tuple[_Int64s, Ids]] = []
        while len(active):
            if len(written) % 4 == 0:
                numbers = draw(active, len(written) // 4)
            edges = self._choose(nodes, numbers[len(written) % 4])
            written.append((active, self._tokens.values[edges]))
            counts[active] += 1
            nodes = self._nexts.values[edges]
            goes_on = np.flatnonzero(nodes >= 0)
            active, nodes, numbers = active[goes_on], nodes[goes_on], tuple(row[goes_on] for row in numbers)
        firsts = np.cumsum(counts) - counts
        tokens = np.zeros(int(counts.sum()), np.int32)
        for step, (stretches, of_step) in enumerate(written):
            tokens[firsts[stretches] + step] = of_step
        return tokens, counts

    def _choose(self, nodes: _Int64s, numbers: Words) -> _Int64s:
        """Return an edge of each node by a random number of 32 bits: the first whose bound is above it."""
        edges = self._first_edges.values[nodes]
        bounds = self._bounds.values
        behind = np.flatnonzero(bounds[edges] <= numbers)
        while len(behind):
            edges[behind] += 1
            behind = behind[bounds[edges[behind]] <= numbers[behind]]
        return edges


class _MergeGraph(_Graph):
    """Merges of a stretch under a BPE model: a node is a segmentation, an edge a merge that is possible there.

    With the merges in the order of their priority, the first k are left out with probability p^k (1 - p), and the walk
    ends if all are. Most walks go along the path of first merges for a while, so that path is kept for each node, and
    the number of steps until a first merge is left out is drawn at once. Nodes are added as walks arrive there.
    """

    def __init__(self, pieces: dict[int, Piece], dropout: float) -> None:
        self._dropout = dropout
        self._texts = {index: piece.text for index, piece in pieces.items()}
        self._ids = {piece.text: index for index, piece in pieces.items()}
        self._scores = {index: piece.score for index, piece in pieces.items()}
        self.clear()

    @property
    def size(self) -> int:
        return len(self._tokens) + len(self._paths) + len(self._detours)

    def clear(self) -> None:
        self._nodes: dict[tuple[int, ...], int] = {}
        self._states: list[tuple[int, ...]] = []
        self._detours: dict[int, int] = {}
        """The node after a merge, by the node before it and the number of merges that were left out there."""
        self._num_merges = _Column(np.int64)  # of each node
        self._path_starts, self._path_steps = _Column(np.int64), _Column(np.int64)  # of each node
        self._paths = _Column(np.int64)  # nodes
        self._tokens = _Column(np.int32)
        self._first_tokens, self._num_tokens = _Column(np.int64), _Column(np.int64)  # of each node

    def add(self, ids: tuple[int, ...]) -> int:
        """A stretch with a character that is no piece stays as it is."""
        text = "".join(self._texts.get(index, "") for index in ids)
        characters = tuple(self._ids.get(character, -1) for character in text)
        return self._add_path(ids if -1 in characters or not text else characters)

    def _add_path(self, state: tuple[int, ...]) -> int:
        """Return the node of a segmentation; if it is new, add it and all nodes on its path of first merges."""
        states, numbers = list[tuple[int, ...]](), list[int]()
        first_node = len(self._states)
        while state not in self._nodes:
            merges = self._merges(state)
            self._nodes[state] = first_node + len(states)
            states.append(state)
            numbers.append(len(merges))
            if merges:
                state = _apply(state, merges[0])
        known = self._nodes[state]
        if not states:
            return known
        path = list(range(first_node, first_node + len(states)))
        if known < first_node:
            start = self._path_starts.values[known]
            path += self._paths.values[start : start + self._path_steps.values[known] + 1].tolist()
        first = self._paths.extend(path)
        self._path_starts.extend(range(first, first + len(states)))
        self._path_steps.extend(range(len(path) - 1, len(path) - 1 - len(states), -1))
        self._states += states
        self._num_merges.extend(numbers)
        lengths = list(map(len, states))
        start = self._tokens.extend([index for each in states for index in each])
        self._first_tokens.extend(
            [start + end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
        )
        self._num_tokens.extend(lengths)
        return first_node

    def _merges(self, state: tuple[int, ...]) -> list[tuple[float, int, int]]:
        """Return the merges that are possible in a segmentation, the best first, then from left to right.

        Returns:
            of each merge its rank among all merges, its place, and the piece that it makes.
        """
        merges = []
        for place, (one, other) in enumerate(pairwise(state)):
            merged = self._ids.get(self._texts[one] + self._texts[other])
            if merged is not None:
                merges.append((-self._scores[merged], place, merged))
        return sorted(merges)

    def walk(self, nodes: _Int64s, draw: _Draw) -> tuple[Ids, _Int64s]:
        """The last node is the segmentation."""
        last, active, step = nodes.copy(), np.arange(len(nodes)), 0
        while len(active):
            if step % 2 == 0:
                numbers = draw(active, step // 2)
            for_steps, for_merges = numbers[2 * (step % 2) : 2 * (step % 2) + 2]
            steps, most = _geometric(for_steps, 1 - self._dropout), self._path_steps.values[nodes]
            stops = self._paths.values[self._path_starts.values[nodes] + np.minimum(steps, most)]
            last[active] = stops
            left_out = 1 + _geometric(for_merges, self._dropout)
            goes_on = np.flatnonzero((steps < most) & (left_out < self._num_merges.values[stops]))
            nodes = self._after_detours(stops[goes_on], left_out[goes_on])
            active, numbers, step = active[goes_on], tuple(row[goes_on] for row in numbers), step + 1
        counts = self._num_tokens.values[last]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._tokens.values[np.repeat(self._first_tokens.values[last], counts) + within], counts

    def _after_detours(self, nodes: _Int64s, left_out: _Int64s) -> _Int64s:
        """Return, for each node, the one behind its best merge after the `left_out` best ones."""
        keys = ((nodes << 32) + left_out).tolist()
        found = list(map(self._detours.get, keys))
        for number, node in enumerate(found):
            if node is None:
                state = self._states[nodes[number]]
                merge = self._merges(state)[left_out[number]]
                found[number] = self._detours[keys[number]] = self._add_path(_apply(state, merge))
        return np.array(found, np.int64)


def _apply(state: tuple[int, ...], merge: tuple[float, int, int]) -> tuple[int, ...]:
    """Return a segmentation after a merge."""
    _, place, merged = merge
    return (*state[:place], merged, *state[place + 2 :])


def _geometric(numbers: Words, probability: float) -> _Int64s:
    """Return how often something with this probability happens before it first does not.

    Args:
        numbers: random numbers of 32 bits.
        probability: above 0 and below 1.
    """
    return (np.log((numbers + 0.5) / _TWO_32) / math.log(probability)).astype(np.int64)


def _mix(values: Words) -> Words:
    """Return a hash of each number (SplitMix64: Steele et al. 2014, figure 17)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _usable_pieces(tokenizer: Tokenizer, method: str) -> dict[int, Piece]:
    """Return the pieces into which text is split, by id.

    Raises:
        ConfigError: If the tokenizer is no SentencePiece model of the type that the method needs.
    """
    key = "tokenizer.sampling_alpha" if method == "unigram" else "tokenizer.bpe_dropout"
    segmentation = tokenizer.segmentation if isinstance(tokenizer, VocabularyTokenizer) else None
    if segmentation is not None and segmentation.kind != "sentencepiece":
        hint = "leave it out: only SentencePiece models store the scores of their pieces"
        raise ConfigError(
            f"the vocabulary of this model is split by {segmentation.kind!r}", where=key, hint=hint
        )
    kind, pieces = read_pieces(tokenizer.model)
    if kind != method:
        others = {"unigram": "tokenizer.sampling_alpha", "bpe": "tokenizer.bpe_dropout"}
        hint = f"set {others[kind]} in its place" if kind in others else "leave it out"
        raise ConfigError(
            f"needs a {method} model, and this tokenizer is a {kind} model", where=key, hint=hint
        )
    if segmentation is None:
        usable = {index: piece for index, piece in enumerate(pieces) if piece.is_normal}
    else:
        assert isinstance(tokenizer, VocabularyTokenizer)
        known, only = tokenizer.vocabulary.pieces, segmentation.only
        usable = {
            tokenizer.vocabulary.ids[piece.text]: piece
            for piece in pieces
            if piece.is_normal
            and piece.text in known
            and (only is None or len(piece.text) == 1 or piece.text in only)
        }
    if method == "bpe" and len(usable) < sum(piece.is_normal or piece.is_unused for piece in pieces):
        what = "the vocabulary lacks pieces of the BPE model, so that its merges cannot be followed"
        raise ConfigError(what, where=key, hint="leave it out")
    return usable
