"""Sampling from a step function: translations are drawn from the model's distribution instead of searched for.

Every sample has a random generator of its own, seeded with (seed, sentence, index of the sample) and, where a line has
several segments, the index of the segment. So no sample depends on the batch or on the order of the sentences.

Shapes: B sentences, K samples of each, V vocabulary, T tokens so far, P longest prefix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtkit.device import to_device
from mtkit.search.scores import final_scores, nan_error
from mtkit.search.state import (
    NEG_INF,
    Hypothesis,
    SearchOptions,
    Stepper,
    keep_rows,
    pad_prefixes,
    read_columns,
    remaining_rows,
    rows_on,
    should_sync,
)
from mtkit.search.token_rules import apply_token_rules


@dataclass(frozen=True)
class SamplingOptions:
    """Distribution to draw from. The cuts are made in this order, on the probabilities after the temperature.

    Args:
        num_samples: K, samples of each sentence.
        temperature: divides the logits; below 1 is sharper, above 1 is flatter.
        top_k: keep the k most probable tokens (Fan et al. 2018); 0 is off.
        top_p: keep the fewest tokens that together have this probability (Holtzman et al. 2020); 1 is off.
        epsilon: drop tokens less probable than this, but never the best one (Hewitt et al. 2022); 0 is off.
        seed: random seed of the samples.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    epsilon: float = 0.0
    seed: int = 1


@dataclass
class Samples:
    """Samples in progress. Every field has a row for each sentence; in the first step K is 1."""

    sentences_B: Tensor  # index in the caller's order
    max_lengths_B: Tensor  # most tokens, eos included
    prefixes_BP: Tensor  # tokens that a sample must start with, then -1
    tokens_BKT: Tensor  # starting with bos, padded with eos
    log_probs_BK: Tensor  # sums over the tokens so far
    uniforms_BKT: Tensor  # random numbers from [0, 1), one for each step up to the longest max_length
    ended_BK: Tensor  # True from eos on

    @property
    def length(self) -> int:
        """Tokens so far, not counting bos."""
        return self.tokens_BKT.shape[2] - 1


@torch.inference_mode()
def sample(
    stepper: Stepper,
    max_lengths: Sequence[int],
    options: SearchOptions,
    sampling: SamplingOptions,
    device: torch.device | str = "cpu",
    prefixes: Sequence[Sequence[int]] | None = None,
    rng_keys: Sequence[tuple[int, ...]] | None = None,
) -> list[list[Hypothesis]]:
    """Return the samples of each sentence in the order they were drawn; one hypothesis may come more than once.

    Args:
        stepper: the model, already holding the sentences.
        max_lengths: for each sentence, the most tokens of a sample, eos included; at least 1.
        options: bos, eos, token rules, and the length penalty that scores contain.
        sampling: distribution to draw from.
        device: where the samples are held: that of the logits.
        prefixes: for each sentence, the tokens that its samples start with; fewer than its `max_lengths`.
        rng_keys: for each sentence, what seeds its samples besides `sampling.seed`: the line, and the index of the
            segment unless it is the first; by default (0,), (1,), (2,) and so on.
    """
    rng_keys = [(i,) for i in range(len(max_lengths))] if rng_keys is None else rng_keys
    samples = init_samples(max_lengths, options, sampling, device, prefixes, rng_keys)
    results: list[list[Hypothesis]] = [[] for _ in max_lengths]
    longest = max(max_lengths, default=0)
    while len(samples.sentences_B):
        logits_BKV = stepper.logits(stepper.step(samples.tokens_BKT[:, :, -1]))
        log_probs_BKV = logits_BKV.log_softmax(dim=-1, dtype=torch.float32)
        apply_token_rules(log_probs_BKV, samples, options)
        expanded = log_probs_BKV.shape[1] != sampling.num_samples  # the first step: bos is computed once
        if expanded:
            _expand(samples, sampling.num_samples)
            log_probs_BKV = log_probs_BKV.expand(-1, sampling.num_samples, -1)
        _draw(samples, log_probs_BKV, options, sampling)
        syncs = should_sync(samples.length, longest, samples.ended_BK.device)
        if syncs and any(done := samples.ended_BK.all(dim=1).tolist()):
            rows = [row for row, is_done in enumerate(done) if is_done]
            _write_results(samples, rows_on(samples.ended_BK.device, rows), results, options)
            kept_B = rows_on(samples.ended_BK.device, remaining_rows(done))
            keep_rows(samples, kept_B)
            stepper.keep_rows(kept_B)
        if expanded:
            num_left = len(samples.sentences_B)
            stepper.reorder(torch.zeros(num_left, sampling.num_samples, dtype=torch.long, device=device))
    return results


def init_samples(
    max_lengths: Sequence[int],
    options: SearchOptions,
    sampling: SamplingOptions,
    device: torch.device | str,
    prefixes: Sequence[Sequence[int]] | None,
    rng_keys: Sequence[tuple[int, ...]],
) -> Samples:
    """Return one sequence for each sentence, bos, and the random numbers of all samples."""
    B, T = len(max_lengths), max(max_lengths, default=1)
    uniforms = [
        [
            np.random.default_rng((sampling.seed, line, k, *segment)).random(T)
            for k in range(sampling.num_samples)
        ]
        for line, *segment in rng_keys
    ]
    return Samples(
        sentences_B=torch.arange(B, device=device),
        max_lengths_B=to_device(torch.tensor(max_lengths, dtype=torch.long), device),
        prefixes_BP=pad_prefixes(prefixes or [()] * B, device),
        tokens_BKT=torch.full((B, 1, 1), options.bos, device=device),
        log_probs_BK=torch.zeros(B, 1, device=device),
        uniforms_BKT=to_device(
            torch.from_numpy(np.array(uniforms).reshape(B, sampling.num_samples, T)), device
        ),
        ended_BK=torch.zeros(B, 1, dtype=torch.bool, device=device),
    )


def _expand(samples: Samples, num_samples: int) -> None:
    """Expand the one sequence of each sentence to all of its samples."""
    samples.tokens_BKT = samples.tokens_BKT.expand(-1, num_samples, -1)
    samples.log_probs_BK = samples.log_probs_BK.expand(-1, num_samples)
    samples.ended_BK = samples.ended_BK.expand(-1, num_samples)


def _draw(samples: Samples, log_probs_BKV: Tensor, options: SearchOptions, sampling: SamplingOptions) -> None:
    """Append a token to every sample: the one at which the cumulative probability passes its random number."""
    cumulative_BKV = truncated_probabilities(log_probs_BKV, sampling).cumsum(dim=-1, dtype=torch.float64)
    thresholds_BK1 = samples.uniforms_BKT[:, :, samples.length, None] * cumulative_BKV[:, :, -1:]
    tokens_BK1 = torch.searchsorted(cumulative_BKV, thresholds_BK1, right=True)
    tokens_BK1 = tokens_BK1.clamp(max=log_probs_BKV.shape[2] - 1)
    new_log_probs_BK = log_probs_BKV.gather(2, tokens_BK1)[:, :, 0]
    samples.log_probs_BK = samples.log_probs_BK + new_log_probs_BK.masked_fill(samples.ended_BK, 0.0)
    tokens_BK = tokens_BK1[:, :, 0].masked_fill(samples.ended_BK, options.eos)
    samples.tokens_BKT = torch.cat([samples.tokens_BKT, tokens_BK[:, :, None]], dim=2)
    full_B1 = (samples.max_lengths_B <= samples.length)[:, None]
    samples.ended_BK = samples.ended_BK | (tokens_BK == options.eos) | full_B1


def truncated_probabilities(log_probs_BKV: Tensor, sampling: SamplingOptions) -> Tensor:
    """Return the probabilities [B, K, V] to draw from, not normalized, 0 for the tokens that were cut."""
    probs = (log_probs_BKV / sampling.temperature).softmax(dim=-1)
    V = probs.shape[-1]
    if 0 < sampling.top_k < V:
        smallest = probs.topk(sampling.top_k, dim=-1).values[..., -1:]
        probs = probs * (probs >= smallest)
    if sampling.top_p < 1.0:
        sorted_probs, order = probs.sort(dim=-1, descending=True)
        preceding = sorted_probs.cumsum(dim=-1) - sorted_probs  # probability of all more probable tokens
        total = sorted_probs.sum(dim=-1, keepdim=True)
        kept = sorted_probs * (preceding < sampling.top_p * total)
        probs = torch.zeros_like(probs).scatter(-1, order, kept)
    if sampling.epsilon > 0.0:
        best = probs.amax(dim=-1, keepdim=True)
        probs = probs * ((probs >= sampling.epsilon) | (probs == best))
    return probs


def _write_results(
    samples: Samples, rows_B: Tensor, results: list[list[Hypothesis]], options: SearchOptions
) -> None:
    """Write the samples of these sentences into `results`."""
    tokens_BKT = samples.tokens_BKT[rows_B, :, 1:]
    lengths_BK = (tokens_BKT != options.eos).sum(dim=2)
    log_probs_BK = samples.log_probs_BK[rows_B]
    scores_BK = final_scores(log_probs_BK, lengths_BK + 1, options)
    columns = samples.sentences_B[rows_B], tokens_BKT, lengths_BK, scores_BK, log_probs_BK
    for sentence, tokens, lengths, scores, log_probs in zip(*read_columns(columns), strict=True):
        if any(map(math.isnan, log_probs)):
            raise nan_error()
        results[sentence] = [
            Hypothesis(ids[:length], score, log_prob)
            for ids, length, score, log_prob in zip(tokens, lengths, scores, log_probs, strict=True)
            if log_prob > NEG_INF
        ]
