"""The formula for floating-point operations against PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtkit.benchmark.flops import Positions, forward_flops, training_flops
from mtkit.benchmark.synthetic import SyntheticCorpus
from mtkit.config.sections import ModelConfig
from mtkit.data.batching import SpecialIds, make_batch
from mtkit.model.transformer import Transformer
from mtkit.training.loss import batch_loss

VOCAB = 40
SHAPES: list[dict[str, Any]] = [
    {},
    {"activation": "swiglu", "d_ff": 24},
    {"num_heads": 4, "num_kv_heads": 2},
    {"positions": "rotary"},
    {"positions": "relative", "max_relative_distance": 3},
    {"num_heads": 4, "num_kv_heads": 2, "decoder_num_heads": 8, "d_ff": 48, "decoder_d_ff": 8},
    {"tie_embeddings": "none", "unique_decoder_layers": 1, "norm_position": "post"},
]


@pytest.mark.parametrize("keys", SHAPES, ids=lambda keys: " ".join(map(str, keys)))
def test_the_formula_equals_pytorchs_count(keys: dict[str, Any]) -> None:
    config = ModelConfig(**{"d_model": 16, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 3} | keys)
    corpus = SyntheticCorpus(9, VOCAB, 30, seed=1)
    indices = np.arange(len(corpus))
    padded = Positions.of_batch(corpus.src_lengths, corpus.tgt_lengths, indices, padded=True)
    batch = make_batch(corpus, indices, SpecialIds(0, 3, 0, 2, 3))
    model = Transformer(config, VOCAB, VOCAB).train()
    assert (padded.src, padded.tgt, padded.projected) == (
        batch.src.size,
        batch.tgt_in.size,
        batch.num_targets,
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(torch.from_numpy(batch.src), torch.from_numpy(batch.tgt_in))[batch.tgt_mask])
    assert counter.get_total_flops() == forward_flops(config, VOCAB, padded)
    with FlopCounterMode(display=False) as counter:
        batch_loss(model, batch, 0.1).loss.backward()
    assert counter.get_total_flops() == training_flops(config, VOCAB, padded)


def test_counts_without_padding_are_sums_over_pairs() -> None:
    corpus = SyntheticCorpus(20, VOCAB, 50, seed=2)
    indices = np.arange(20)
    lengths = corpus.src_lengths, corpus.tgt_lengths
    whole = Positions.of_batch(*lengths, indices, padded=False)
    alone = (Positions.of_batch(*lengths, indices[i : i + 1], padded=True) for i in range(20))
    assert whole == sum(alone, Positions())
    padded = Positions.of_batch(*lengths, indices, padded=True)
    assert whole.src < padded.src
    assert whole.projected == padded.projected == whole.tgt


def test_synthetic_pairs_have_the_mean_length_of_wmt() -> None:
    corpus = SyntheticCorpus(20_000, 32_000, 250, seed=3)
    assert 27 < corpus.src_lengths.mean() < 31
    assert 28 < corpus.tgt_lengths.mean() < 33
    assert corpus.src_lengths.min() >= 1
    assert corpus.src_lengths.max() <= 250
    tokens = np.concatenate([corpus.src(i) for i in range(100)] + [corpus.tgt(i) for i in range(100)])
    assert tokens.min() >= 4 and tokens.max() < 32_000
    assert [len(corpus.tgt(i)) for i in range(50)] == corpus.tgt_lengths[:50].tolist()
