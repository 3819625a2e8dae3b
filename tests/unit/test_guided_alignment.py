"""Guided alignment: its loss against a direct computation, the head that learns, and links from words to tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_consistency import R_DROP, SIMCUT
from torch import Tensor

from mtkit.config.loading import dump_config, parse_config, replace_sections
from mtkit.config.sections import DataConfig, ModelConfig, SourceConfig, TokenizerConfig
from mtkit.data import corpus as corpus_module
from mtkit.data import encoding
from mtkit.data.alignments import read_alignments, token_links
from mtkit.data.batching import SpecialIds, make_batch, without_targets
from mtkit.data.corpus import Corpus
from mtkit.data.encoding import encode_corpus
from mtkit.data.readers import Pair
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import Tokenizers, make_tokenizers
from mtkit.errors import ConfigError, DataError
from mtkit.model.transformer import Transformer
from mtkit.training.guided_alignment import alignment_loss
from mtkit.training.initial import take_over
from mtkit.training.loss import Consistency, TensorBatch
from mtkit.training.parallel import Objective
from mtkit.translation.alignment import _cross_attention

LINKS = torch.tensor([[0, 0, 0], [0, 0, 2], [0, 3, 1], [2, 1, 4], [2, 1, 0], [2, 1, 3], [4, 0, 6]])
"""Row, target, source; row 1 and most target tokens have none."""


def test_loss_and_gradient_equal_a_direct_computation() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 6, 7, dtype=torch.float64, requires_grad=True)
    mine = alignment_loss(scores.log_softmax(dim=-1), LINKS)
    direct = torch.zeros((), dtype=torch.float64)
    for row in range(5):
        for tgt in range(6):
            sources = [int(s) for b, t, s in LINKS if (b, t) == (row, tgt)]
            target = torch.tensor([float(s in sources) for s in range(7)], dtype=torch.float64)
            if sources:
                direct = direct - (target / target.sum() * scores[row, tgt].softmax(dim=0).log()).sum()
    assert mine.item() == pytest.approx(direct.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(3 * loss, scores)[0] for loss in (mine, direct))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert alignment_loss(scores.log_softmax(dim=-1), LINKS[:0]).item() == 0


def model_and_batch(**keys: object) -> tuple[Transformer, TensorBatch]:
    torch.manual_seed(1)
    defaults = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_heads": 4,
        "d_ff": 16,
        "dropout": 0.0,
    }
    model = Transformer(ModelConfig.model_validate(defaults | {"alignment_layer": 2} | keys), 30, 30)
    src, tgt_in, tgt_out = (torch.randint(4, 29, (5, width)) for width in (7, 6, 6))
    src[1, 4:] = 0
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 4, 6, 1])[:, None]
    return model, TensorBatch(src, tgt_in, tgt_out, mask, LINKS)


def attention_of_the_head(model: Transformer, batch: TensorBatch) -> Tensor:
    """Return the weights [B, T, S] of the first head of the second layer, from a pass that keeps all weights."""
    found: list[Tensor] = []
    cross = model.decoder[1].cross
    hook = cross.q.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    memory, mask = model.encode(batch.src_BS), model.source_mask(batch.src_BS)
    model.decode(batch.tgt_in_BT, memory, mask)
    hook.remove()
    weights: Tensor = cross.memory_weights(found[0], memory, mask)
    return weights[:, 0]


@pytest.mark.parametrize("keys", [{}, {"num_kv_heads": 2}, {"positions": "rotary", "bias": False}], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_first_head_of_the_layer_learns(keys: dict[str, object], recompute: bool) -> None:
    model, batch = model_and_batch(**keys)
    model.recompute = recompute
    weight, parameters = 0.3, list(model.parameters())
    attention = attention_of_the_head(model.train(), batch).clamp(min=1e-30)
    direct = weight * alignment_loss(attention.log(), LINKS)
    plain, nll = Objective(model, 0.1).train()(batch)
    loss, same_nll = Objective(model, 0.1, guided_alignment=weight).train()(batch)
    assert (loss - plain).item() == pytest.approx(direct.item(), rel=1e-4)
    assert same_nll.item() == nll.item()
    mine, without, expected = (
        torch.autograd.grad(each, parameters, allow_unused=True) for each in (loss, plain, direct)
    )
    for own, base, wanted in zip(mine, without, expected, strict=True):
        change = torch.zeros_like(own) if wanted is None else wanted
        torch.testing.assert_close(own - base, change, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("method", [SIMCUT, R_DROP], ids=["simcut", "r_drop"])
def test_streams_share_it_as_they_share_the_cross_entropy(method: Consistency) -> None:
    model, batch = model_and_batch()
    uncut = Consistency(method.cross_entropy, method.divergence)
    losses = [
        Objective(model, 0.1, consistency=each, guided_alignment=0.5)(batch)[0].item()
        for each in (None, uncut)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_translations_are_aligned_by_that_head() -> None:
    model, batch = model_and_batch(num_kv_heads=2)
    expected = attention_of_the_head(model.eval(), batch).detach()
    lengths = [(6, 7), (3, 4), (4, 7), (6, 7), (1, 7)]
    found = _cross_attention(model, batch.src_BS, batch.tgt_in_BT, lengths)
    for row, ((_, head), (T, S)) in enumerate(zip(found, lengths, strict=True)):
        assert head is not None
        np.testing.assert_allclose(head, expected[row, :T, :S], atol=1e-5)
    plain, _ = model_and_batch(alignment_layer=None)
    assert all(head is None for _, head in _cross_attention(plain, batch.src_BS, batch.tgt_in_BT, lengths))


# --- the config -----------------------------------------------------------------------------------------------------


def config(model: dict[str, object] | None = None, **training: object) -> dict[str, object]:
    data = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv", "alignments": "x.links"}]}
    return {"run": "r", "data": data, "model": model or {}, "training": {"guided_alignment": 0.1, **training}}


def test_the_layer_is_resolved_and_stored() -> None:
    assert parse_config(config(guided_alignment=0)).model.alignment_layer is None
    parsed = parse_config(config({"decoder_layers": 6}))
    assert parsed.model.alignment_layer == 5
    assert "alignment_layer: 5" in dump_config(parsed)
    assert "alignment_layer" not in parsed.model.model_fields_set
    shallow = replace_sections(parsed, {"model": ModelConfig(decoder_layers=1)})  # as with `init`
    assert shallow.model.alignment_layer == 1
    assert parse_config(config({"alignment_layer": 2})).model.alignment_layer == 2
    with pytest.raises(ConfigError, match=r"alignment_layer 9 is greater than model\.decoder_layers 4"):
        parse_config(config({"alignment_layer": 9}))


def test_fine_tuning_may_name_any_layer_of_the_initial_model() -> None:
    named = parse_config(config({"alignment_layer": 5}) | {"init": "other"})
    assert take_over(named, parse_config(config({"decoder_layers": 6}))).model.alignment_layer == 5
    with pytest.raises(ConfigError, match=r"alignment_layer 5 is greater than model\.decoder_layers 4"):
        take_over(named, parse_config(config()))


def test_alignments_are_needed_and_are_of_training_corpora() -> None:
    raw = config()
    raw["data"] = {"src": "en", "tgt": "de", "train": [{"path": "x.tsv"}]}
    with pytest.raises(ConfigError, match="guided_alignment needs alignments"):
        parse_config(raw)
    raw["data"] |= {"valid": [{"path": "y.tsv", "alignments": "y.links"}]}  # type: ignore[operator]
    with pytest.raises(ConfigError, match="alignments in valid: only training corpora have them"):
        parse_config(raw)


# --- the corpus -----------------------------------------------------------------------------------------------------


def test_each_token_of_a_word_is_linked_with_each_of_the_other() -> None:
    src, tgt = "ab  c", "x yz"
    spans = [(0, 1), (1, 2), (2, 5)], [(0, 1), (1, 3), (3, 4), (4, 4)]
    assert token_links(((0, 1),), src, tgt, *spans) == [0, 1, 1, 1, 0, 2, 1, 2, 0, 3, 1, 3]
    assert token_links(((1, 0), (0, 0), (1, 0)), src, tgt, *spans) == [0, 0, 1, 0, 2, 0]
    assert token_links((), src, tgt, *spans) == []
    for wrong, side in (((2, 0), "source"), ((0, 2), "target")):
        with pytest.raises(ValueError, match=f"{side} word 2, but the words are 0 to 1"):
            token_links((wrong,), src, tgt, *spans)


@pytest.mark.parametrize("line", ["0-", "0-1,2-3", "a-0", "0-1-2", "-1-0", "0 - 1"])
def test_lines_of_other_formats_are_refused(tmp_path: Path, line: str) -> None:
    path = tiny.write_lines(tmp_path / "links", ["0-0  1-1 ", "", line])
    with pytest.raises(DataError, match="is not a link") as caught:
        list(read_alignments(path))
    assert caught.value.where == f"{path}:3"


def aligned_corpus(folder: Path, alignments: list[str], **keys: object) -> tuple[Corpus, Tokenizers]:
    """Encode the tiny corpus with these lines of alignments, beside two pairs without any."""
    pairs = tiny.pairs(200, seed=0)
    pairs[3], pairs[5] = ("", "x"), pairs[4]  # left out: empty, duplicate
    tiny.write_lines(folder / "a.tsv", ["\t".join(pair) for pair in pairs])
    tiny.write_lines(folder / "b.tsv", ["\t".join(pair) for pair in tiny.pairs(2, seed=1)])
    tiny.write_lines(folder / "a.links", alignments)
    sources = (
        SourceConfig.model_validate({"path": "a.tsv", "alignments": "a.links", **keys}),
        SourceConfig(path="b.tsv"),
    )
    data = DataConfig(
        root=str(folder), src="en", tgt="fr", train=sources, cache=str(folder), drop_duplicates=True
    )
    settings = TokenizerConfig(vocab_size=60, type="bpe", byte_fallback=False, user_symbols=("<t>",))
    tokenizers = make_tokenizers(settings, [Pair(*pair) for pair in pairs])
    return encode_corpus(open_sources(sources, data, "train"), tokenizers, data), tokenizers


def diagonal() -> list[str]:
    """Link the words of each pair in order; the last source word with the last target word too."""
    lengths = [min(len(src.split()), len(tgt.split())) for src, tgt in tiny.pairs(200, seed=0)]
    lengths[3], lengths[5] = 0, lengths[4]
    return [" ".join(f"{i}-{i}" for i in range(length)) for length in lengths]


@pytest.mark.parametrize("tag", [None, "<t>"])
def test_links_stay_with_their_pairs(
    tmp_path: Path, tag: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (corpus_module, encoding):
        monkeypatch.setattr(module, "ROWS", 64)
    monkeypatch.setattr(encoding, "_CHUNK_PAIRS", 20)
    corpus, tokenizers = aligned_corpus(tmp_path, diagonal(), **({} if tag is None else {"tag": tag}))
    assert len(corpus) < 200 and corpus.counts.empty == 1 and corpus.counts.duplicate > 0
    for index in range(len(corpus) - 2):
        src, tgt = (
            [tokenizers.src.piece(int(i)) for i in side] for side in (corpus.src(index), corpus.tgt(index))
        )
        words = [np.cumsum([piece.startswith("\u2581") for piece in side]) - 1 for side in (src, tgt)]
        for s, t in corpus.links(index):
            assert words[0][s] - (tag is not None) == words[1][t]
        linked = {int(t) for _, t in corpus.links(index)}
        assert linked == set(range(len(tgt)))
    assert corpus.links(len(corpus) - 1).shape == (0, 2)
    special = SpecialIds(0, 3, 0, 2, 3)
    batch = make_batch(corpus, np.array([7, len(corpus) - 1, 2]), special, corpus.links)
    assert batch.links is not None and make_batch(corpus, np.array([1]), special).links is None
    assert {tuple(map(int, row)) for row in batch.links} == {
        (row, int(t), int(s)) for row, index in ((0, 7), (2, 2)) for s, t in corpus.links(index)
    }
    assert batch.src[2, batch.links[-1, 2]] == corpus.src(2)[corpus.links(2)[-1, 0]]
    empty = without_targets(make_batch(corpus, np.array([7]), special, corpus.links))
    assert empty.links is not None and empty.links.shape == (0, 3)


def test_other_alignments_are_another_corpus(tmp_path: Path) -> None:
    first, _ = aligned_corpus(tmp_path, diagonal())
    other, _ = aligned_corpus(tmp_path, ["0-0", *diagonal()[1:]])
    again, _ = aligned_corpus(tmp_path, diagonal())
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.first_difference(again) is None and first.first_difference(other) == 0


def test_mistakes_in_alignments_are_told_with_their_place(tmp_path: Path) -> None:
    for lines, message in (
        (diagonal()[:-1], "199 lines, but 200 pairs in a"),
        ([*diagonal(), "", ""], "202 lines, but 200 pairs in a"),
        ([*diagonal()[:-1], "0-40"], "target word 40, but the words are 0 to"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            aligned_corpus(tmp_path, lines)
        assert str(caught.value.where) == f"{tmp_path}/a.links"
