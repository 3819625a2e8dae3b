"""Minimum-risk training: the expected risk of a model's own translations, beside the loss of the reference.

The risk of a translation y is 1 - its sentence score against the reference. Its expectation is taken over a set Y of
candidates with the probabilities of the model, sharpened by alpha and scaled to add up to 1 (Shen et al. 2016, eq. 9 to
11): Q(y) = P(y)^alpha / sum over Y of P(y')^alpha. It is mixed with the loss of the tokens, as Edunov et al. (2018) and
Wieting et al. (2019) do: (1 - weight) x loss + weight x risk, where a sentence's risk counts as often as its reference
has tokens, eos included. So both are sums that are divided by the target tokens of the update, and neither the number
of micro-batches nor that of processes changes the mathematics.

The candidates are drawn from the model without dropout and without gradient. Their seed is that of the micro-batch's
dropout, so that they are a function of (seed, step, micro-batch, row), and a resumed run draws the same. Their
probabilities in Q have the dropout of training.

Memory stays what it is without: the candidates run through the decoder in chunks no larger than the micro-batch, and
the backward pass computes the activations of each chunk again.

Shapes: B sentences, K candidates of each at most, R candidates of a chunk, S source length, D model width, M real
positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtkit.config.sections import Config, MinimumRiskConfig
from mtkit.data.batching import Ids, collate_tokens, split_by_tokens
from mtkit.data.order import Indices
from mtkit.data.tokenizer import Tokenizer
from mtkit.device import to_device
from mtkit.evaluation.metrics import build_metrics
from mtkit.model.transformer import Transformer
from mtkit.search.sampling import SamplingOptions, sample
from mtkit.search.state import NEG_INF, read_arrays
from mtkit.search.steppers import ModelStepper
from mtkit.training.loss import CHUNK_POSITIONS, TensorBatch
from mtkit.translation.batched_search import search_options

_MAX_SAMPLES = 512
"""Candidates that are drawn at the same time."""


class MinimumRisk:
    """The expected risk of a model's translations.

    Args:
        settings: section `training.minimum_risk`.
        config: config of the run.
        tokenizer: tokenizer of the target.
    """

    def __init__(self, settings: MinimumRiskConfig, config: Config, tokenizer: Tokenizer) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.weight = settings.weight
        self._decoding, self._max_tokens = config.decoding, config.data.max_length + 1
        self._options = search_options(config.decoding, tokenizer)
        [self._metric] = build_metrics(
            [settings.metric], config.validation.bleu_tokenizer, lowercase=False, tgt=config.data.tgt,
            effective_order=True,
        )  # fmt: skip

    def loss(self, model: Transformer, batch: TensorBatch) -> Tensor:
        """Return the expected risks of the sentences of a batch, each times its target tokens, summed.

        Args:
            model: the model, in training mode.
            batch: the batch.
        """
        arrays = read_arrays([batch.tgt_out_BT, batch.mask_BT])
        refs = [ids[is_real][:-1].tolist() for ids, is_real in zip(*arrays, strict=True)]
        candidates = self.draw(model, batch.src_BS, refs, torch.initial_seed())
        risks = self.risks(candidates, refs)
        positions = len(refs) * max(batch.src_BS.shape[1], batch.tgt_in_BT.shape[1])
        log_probs_BK = candidate_log_probs(model, batch.src_BS, candidates, self.tokenizer, positions)
        padded = [[*own, *[0.0] * (log_probs_BK.shape[1] - len(own))] for own in risks]
        risks_BK = to_device(torch.tensor(padded, dtype=log_probs_BK.dtype), log_probs_BK.device)
        weights_B = batch.mask_BT.sum(dim=1)
        return (expected_risks(log_probs_BK, risks_BK, self.settings.alpha) * weights_B).sum()

    def draw(
        self, model: Transformer, src_BS: Tensor, refs: Sequence[list[int]], seed: int
    ) -> list[list[list[int]]]:
        """Return different candidates of each sentence, tokens without eos, drawn without dropout.

        Args:
            model: the model; it is in the same mode afterwards.
            src_BS: the sources.
            refs: tokens of the references, the first candidates if the settings include them.
            seed: seed of the samples.
        """
        was_training = model.training
        model.eval()
        try:
            drawn = self._sample(model, src_BS, seed)
        finally:
            model.train(was_training)
        first = refs if self.settings.include_reference else [None] * len(refs)
        candidates = []
        for ref, own in zip(first, drawn, strict=True):
            ids = dict.fromkeys(map(tuple, own if ref is None else [ref, *own]))
            candidates.append([list(each) for each in ids])
        return candidates

    @torch.inference_mode()
    def _sample(self, model: Transformer, src_BS: Tensor, seed: int) -> list[list[list[int]]]:
        """Return the samples of each sentence."""
        sampling = SamplingOptions(num_samples=self.settings.samples, seed=seed)
        lengths = (src_BS != model.src_pad).sum(dim=1).tolist()
        limits = [min(self._decoding.max_length(length), self._max_tokens) for length in lengths]
        size, found = max(1, _MAX_SAMPLES // self.settings.samples), []
        for start in range(0, len(limits), size):
            rows = slice(start, start + size)
            stepper = ModelStepper(model, src_BS[rows])
            keys = [(row,) for row in range(start, start + len(limits[rows]))]
            hyps = sample(stepper, limits[rows], self._options, sampling, src_BS.device, rng_keys=keys)
            found += [[hyp.ids for hyp in own] for own in hyps]
        return found

    def risks(
        self, candidates: Sequence[Sequence[list[int]]], refs: Sequence[list[int]]
    ) -> list[list[float]]:
        """Return 1 - the sentence score of each candidate, as text, against the text of the reference."""
        texts = iter(self.tokenizer.decode([ids for own in candidates for ids in own]))
        return [
            [1 - self._metric.sentence_score(next(texts), [ref]).score / 100 for _ in own]
            for own, ref in zip(candidates, self.tokenizer.decode(list(refs)), strict=True)
        ]


def expected_risks(log_probs_BK: Tensor, risks_BK: Tensor, alpha: float) -> Tensor:
    """Return the expected risk [B] of the candidates of each sentence (Shen et al. 2016, eq. 9 and 10).

    Args:
        log_probs_BK: log-probabilities; -inf where there are fewer than K.
        risks_BK: risks.
        alpha: sharpness of the distribution.
    """
    return ((alpha * log_probs_BK).softmax(dim=1) * risks_BK).sum(dim=1)


def candidate_log_probs(
    model: Transformer,
    src_BS: Tensor,
    candidates: Sequence[Sequence[list[int]]],
    tokenizer: Tokenizer,
    max_positions: int,
) -> Tensor:
    """Return the log-probability [B, K] of each candidate with eos, in float32 or better; -inf where there is none.

    Args:
        model: the model.
        src_BS: the sources.
        candidates: tokens of the candidates of each sentence, without eos.
        tokenizer: tokenizer of the target.
        max_positions: most target positions whose activations exist at the same time, unless a candidate has more.
    """
    counts = np.array([len(own) for own in candidates])
    rows = [np.array(ids, dtype=np.int32) for own in candidates for ids in own]
    sentences = np.repeat(np.arange(len(counts)), counts)
    sizes = np.array([len(ids) + 1 for ids in rows], dtype=np.int32)
    order = np.argsort(sizes, kind="stable")
    memory_BSD, mask = model.encode(src_BS), model.source_mask(src_BS)

    def chunk_log_probs(chunk: Indices, memory_BSD: Tensor) -> Tensor:
        sentence = to_device(torch.from_numpy(sentences[chunk]), src_BS.device)
        return _row_log_probs(
            model, memory_BSD[sentence], mask[sentence], [rows[i] for i in chunk.tolist()], tokenizer
        )

    chunks = split_by_tokens(sizes, order, max_positions)
    parts = [checkpoint(chunk_log_probs, chunk, memory_BSD, use_reentrant=False) for chunk in chunks]
    found = torch.cat(parts)[to_device(torch.from_numpy(np.argsort(order, kind="stable")), src_BS.device)]
    is_there = to_device(torch.from_numpy(np.arange(counts.max()) < counts[:, None]), src_BS.device)
    return found.new_full(is_there.shape, NEG_INF).masked_scatter(is_there, found)


def _row_log_probs(
    model: Transformer, memory_RSD: Tensor, mask: Tensor, rows: list[Ids], tokenizer: Tokenizer
) -> Tensor:
    """Return the log-probability [R] of each row of tokens with eos, given its own memory."""
    device = memory_RSD.device
    tgt_in_RT = collate_tokens(rows, tokenizer.pad, bos=tokenizer.bos)
    tgt_out_RT = collate_tokens(rows, tokenizer.pad, eos=tokenizer.eos)
    lengths = np.array([len(ids) + 1 for ids in rows])
    real_M = np.flatnonzero(np.arange(tgt_in_RT.shape[1]) < lengths[:, None])
    tgt_in, tgt_out_M, positions_M, row_of_position = (
        to_device(torch.from_numpy(array), device)
        for array in (tgt_in_RT, tgt_out_RT.ravel()[real_M], real_M, np.repeat(np.arange(len(rows)), lengths))
    )
    hidden_MD = model.decode(tgt_in, memory_RSD, mask).flatten(0, 1)[positions_M]
    parts = zip(hidden_MD.split(CHUNK_POSITIONS), tgt_out_M.split(CHUNK_POSITIONS), strict=True)
    log_probs_M = torch.cat(
        [
            checkpoint(_token_log_probs, model, hidden, targets, use_reentrant=False)
            for hidden, targets in parts
        ]
    )
    return log_probs_M.new_zeros(len(rows)).index_add(0, row_of_position, log_probs_M)


def _token_log_probs(model: Transformer, hidden_MD: Tensor, targets_M: Tensor) -> Tensor:
    """Return the log-probability [M] of each target token."""
    logits_MV = model.logits(hidden_MD)
    log_probs_MV = logits_MV.log_softmax(dim=-1, dtype=torch.promote_types(logits_MV.dtype, torch.float32))
    return log_probs_MV.gather(1, targets_M[:, None])[:, 0]
