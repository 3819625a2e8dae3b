"""Sampling from a step function: translations drawn from the model instead of searched for.

Every sample has random numbers of its own, made from (seed, sentence, number of the sample) and, where a line has
several parts, the part: what is drawn does not depend on the batch, its order or the neighbours.

Shapes: B sentences, K samples of each, V vocabulary, T pieces so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtkit.search.beam import final_scores
from mtkit.search.state import NEG_INF, Hypothesis, SearchOptions, Stepper, keep_sentences, survivors
from mtkit.search.token_rules import apply_token_rules


@dataclass(frozen=True)
class SamplingOptions:
    """What is drawn from. Cuts are made in this order, on probabilities after the temperature.

    Args:
        num_samples: for each sentence.
        temperature: log-probabilities are divided by it; below 1 sharper, above 1 flatter.
        top_k: only the most probable so many pieces (Fan et al. 2018); 0 is off.
        top_p: only the fewest pieces that together have this probability (Holtzman et al. 2020); 1 is off.
        epsilon: no piece less probable than this, but the best one (Hewitt et al. 2022); 0 is off.
        seed: another seed, other samples.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    epsilon: float = 0.0
    seed: int = 1


@dataclass
class Samples:
    """The samples as they grow."""

    sentences_B: Tensor  # their numbers in the caller's order
    max_lengths_B: Tensor
    prefixes_BP: Tensor
    tokens_BKT: Tensor  # bos first; after eos more eos
    log_probs_BK: Tensor
    uniforms_BKT: Tensor  # one number of [0, 1) for each step, made beforehand
    ended_BK: Tensor

    @property
    def length(self) -> int:
        """Pieces so far, bos not counted."""
        return self.tokens_BKT.shape[2] - 1


@torch.inference_mode()
def sample(
    stepper: Stepper,
    max_lengths: Sequence[int],
    options: SearchOptions,
    sampling: SamplingOptions,
    device: torch.device | str = "cpu",
    prefixes: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[tuple[int, ...]] | None = None,
) -> list[list[Hypothesis]]:
    """The samples of each sentence in the order they were drawn; the same one may come twice.

    Args:
        stepper, max_lengths, prefixes: see `search`.
        options: bos, eos, rules of what is forbidden, and the penalties of the scores.
        numbers: of each sentence, what its random numbers depend on: the line, and the part unless it is the first;
            by default (0,), (1,), (2,) ...
    """
    numbers = [(number,) for number in range(len(max_lengths))] if numbers is None else numbers
    samples = start_samples(max_lengths, options, sampling, device, prefixes, numbers)
    results: list[list[Hypothesis]] = [[] for _ in max_lengths]
    while len(samples.sentences_B):
        logits_BKV = stepper.logits(stepper.step(samples.tokens_BKT[:, :, -1]))
        log_probs_BKV = logits_BKV.log_softmax(dim=-1, dtype=torch.float32)
        apply_token_rules(log_probs_BKV, samples, options)
        expanded = log_probs_BKV.shape[1] != sampling.num_samples  # at the first step all have one past
        if expanded:
            _widen(samples, sampling.num_samples)
            log_probs_BKV = log_probs_BKV.expand(-1, sampling.num_samples, -1)
        draw(samples, log_probs_BKV, options, sampling)
        done_B = samples.ended_BK.all(dim=1)
        if done_B.any():
            _collect_samples(samples, done_B, results, options)
            kept_B = survivors(done_B)
            keep_sentences(samples, kept_B)
            stepper.keep(kept_B)
        if expanded:
            num_left = len(samples.sentences_B)
            stepper.reorder(torch.zeros(num_left, sampling.num_samples, dtype=torch.long, device=device))
    return results


def start_samples(
    max_lengths: Sequence[int],
    options: SearchOptions,
    sampling: SamplingOptions,
    device: torch.device | str,
    prefixes: Sequence[Sequence[int]] | None,
    numbers: Sequence[tuple[int, ...]],
) -> Samples:
    """One past for each sentence, bos; and the random numbers of all samples."""
    B, T = len(max_lengths), max(max_lengths, default=1)
    longest = max(map(len, prefixes or []), default=0)
    padded = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes or [()] * B]
    uniforms = [
        [
            np.random.default_rng((sampling.seed, line, k, *part)).random(T)
            for k in range(sampling.num_samples)
        ]
        for line, *part in numbers
    ]
    return Samples(
        sentences_B=torch.arange(B, device=device),
        max_lengths_B=torch.tensor(max_lengths, dtype=torch.long, device=device),
        prefixes_BP=torch.tensor(padded, dtype=torch.long, device=device).view(B, longest),
        tokens_BKT=torch.full((B, 1, 1), options.bos, device=device),
        log_probs_BK=torch.zeros(B, 1, device=device),
        uniforms_BKT=torch.from_numpy(np.array(uniforms).reshape(B, sampling.num_samples, T)).to(device),
        ended_BK=torch.zeros(B, 1, dtype=torch.bool, device=device),
    )


def _widen(samples: Samples, num_samples: int) -> None:
    """From one past for each sentence to one for each sample."""
    samples.tokens_BKT = samples.tokens_BKT.expand(-1, num_samples, -1)
    samples.log_probs_BK = samples.log_probs_BK.expand(-1, num_samples)
    samples.ended_BK = samples.ended_BK.expand(-1, num_samples)


def draw(samples: Samples, log_probs_BKV: Tensor, options: SearchOptions, sampling: SamplingOptions) -> None:
    """One more piece for every sample: where its random number falls among the cumulated probabilities."""
    cumulated_BKV = cut_probabilities(log_probs_BKV, sampling).cumsum(dim=-1, dtype=torch.float64)
    heights_BK1 = samples.uniforms_BKT[:, :, samples.length, None] * cumulated_BKV[:, :, -1:]
    tokens_BK1 = torch.searchsorted(cumulated_BKV, heights_BK1, right=True)
    tokens_BK1 = tokens_BK1.clamp(max=log_probs_BKV.shape[2] - 1)
    new_BK = log_probs_BKV.gather(2, tokens_BK1)[:, :, 0]
    samples.log_probs_BK = samples.log_probs_BK + new_BK.masked_fill(samples.ended_BK, 0.0)
    tokens_BK = tokens_BK1[:, :, 0].masked_fill(samples.ended_BK, options.eos)
    samples.tokens_BKT = torch.cat([samples.tokens_BKT, tokens_BK[:, :, None]], dim=2)
    last_B1 = (samples.max_lengths_B <= samples.length)[:, None]
    samples.ended_BK = samples.ended_BK | (tokens_BK == options.eos) | last_B1


def cut_probabilities(log_probs_BKV: Tensor, sampling: SamplingOptions) -> Tensor:
    """Probabilities that are drawn from, 0 for what was cut, not normalized: the shape of the input."""
    probs = (log_probs_BKV / sampling.temperature).softmax(dim=-1)
    V = probs.shape[-1]
    if 0 < sampling.top_k < V:
        smallest = probs.topk(sampling.top_k, dim=-1).values[..., -1:]
        probs = probs * (probs >= smallest)
    if sampling.top_p < 1.0:
        ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # what the more probable ones have together
        total = ordered.sum(dim=-1, keepdim=True)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered * (before < sampling.top_p * total))
    if sampling.epsilon > 0.0:
        best = probs.amax(dim=-1, keepdim=True)
        probs = probs * ((probs >= sampling.epsilon) | (probs == best))
    return probs


def _collect_samples(
    samples: Samples, done_B: Tensor, results: list[list[Hypothesis]], options: SearchOptions
) -> None:
    """Write the samples of finished sentences into the results."""
    tokens_BKT = samples.tokens_BKT[done_B, :, 1:]
    lengths_BK = (tokens_BKT != options.eos).sum(dim=2)
    log_probs_BK = samples.log_probs_BK[done_B]
    scores_BK = final_scores(log_probs_BK, lengths_BK + 1, options)
    rows = zip(
        samples.sentences_B[done_B].tolist(), tokens_BKT.tolist(), lengths_BK.tolist(),
        scores_BK.tolist(), log_probs_BK.tolist(), strict=True,
    )  # fmt: skip
    for sentence, tokens, lengths, scores, log_probs in rows:
        results[sentence] = [
            Hypothesis(ids[:length], score, log_prob)
            for ids, length, score, log_prob in zip(tokens, lengths, scores, log_probs, strict=True)
            if log_prob > NEG_INF
        ]
