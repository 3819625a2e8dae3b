"""The Transformer against PyTorch's own, its masks by perturbation, every option, and incremental decoding."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.config.sections import ModelConfig
from mtkit.model.attention import MultiHeadAttention, causal_mask
from mtkit.model.incremental import DecoderState
from mtkit.model.layers import DecoderLayer, EncoderLayer, FeedForward, LayerNorm, RMSNorm
from mtkit.model.positions import sinusoids
from mtkit.model.transformer import Transformer
from mtkit.training.loss import loss_sums

PAD, BOS, EOS, VOCAB = 0, 2, 3, 24
CPU = torch.device("cpu")
POSITIONS = ["sinusoidal", "learned", "rotary", "relative"]


def tiny(**keys: Any) -> ModelConfig:
    defaults = {
        "d_model": 16,
        "num_heads": 4,
        "d_ff": 24,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "dropout": 0.0,
        "max_positions": 64,
        "max_relative_distance": 3,
    }
    return ModelConfig(**(defaults | keys))


def make(seed: int = 0, **keys: Any) -> Transformer:
    """Return a model in evaluation mode that has no zero vectors."""
    torch.manual_seed(seed)
    model = Transformer(tiny(**keys), VOCAB, VOCAB, PAD)
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Randomize biases and norms: initialized to zeros and ones, they would hide mistakes."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))


def random_tokens(*lengths: int) -> Tensor:
    """Return rows of random tokens of these lengths, padded."""
    rows = [torch.randint(4, VOCAB, (n,)) for n in lengths]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


# --- norms and feed-forward ------------------------------------------------------------------------------------


def test_norms_are_the_formulas() -> None:
    torch.manual_seed(0)
    x, layer, rms = 3 * torch.randn(4, 5, 12) + 1, LayerNorm(12), RMSNorm(12)
    shake(layer)
    shake(rms)
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    close(layer(x), (x - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias)
    close(rms(x), x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt() * rms.weight)
    assert layer(x.bfloat16()).dtype == rms(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "swiglu"])
def test_feed_forward_is_the_formula(activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer = FeedForward(tiny(activation=activation, bias=bias)).double()
    shake(layer)
    x = torch.randn(3, 4, 16, dtype=torch.float64)
    h = x @ layer.inner.weight.T
    if bias:
        h = h + layer.inner.bias
    match activation:
        case "relu":
            h = h.clamp(min=0)
        case "gelu":
            h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        case "silu":
            h = h / (1 + torch.exp(-h))
        case _:
            gate, value = h[..., :24], h[..., 24:]
            h = gate / (1 + torch.exp(-gate)) * value
    out = h @ layer.outer.weight.T
    close(layer(x), out + layer.outer.bias if bias else out, 1e-12)


def test_default_widths_give_swiglu_as_many_parameters() -> None:
    plain, gated = ModelConfig(d_model=256), ModelConfig(d_model=256, activation="swiglu")
    assert plain.feed_forward == 1024
    assert gated.feed_forward % 8 == 0
    assert 3 * gated.feed_forward == pytest.approx(2 * plain.feed_forward, rel=0.02)


# --- PyTorch's layers with the same weights --------------------------------------------------------------------


@torch.no_grad()
def copy_linear(ours: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    ours.weight.copy_(weight)
    ours.bias.copy_(bias)


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    weight, bias, width = theirs.in_proj_weight, theirs.in_proj_bias, theirs.embed_dim
    if ours.cross:
        copy_linear(ours.q, weight[:width], bias[:width])
        copy_linear(ours.kv, weight[width:], bias[width:])
    else:
        copy_linear(ours.qkv, weight, bias)
    copy_linear(ours.out, theirs.out_proj.weight, theirs.out_proj.bias)


def copy_encoder_layer(ours: EncoderLayer, theirs: nn.TransformerEncoderLayer) -> None:
    copy_attention(ours.attention, theirs.self_attn)
    copy_linear(ours.feed_forward.inner, theirs.linear1.weight, theirs.linear1.bias)
    copy_linear(ours.feed_forward.outer, theirs.linear2.weight, theirs.linear2.bias)
    copy_linear(ours.attention_residual.norm, theirs.norm1.weight, theirs.norm1.bias)
    copy_linear(ours.feed_forward_residual.norm, theirs.norm2.weight, theirs.norm2.bias)


def copy_decoder_layer(ours: DecoderLayer, theirs: nn.TransformerDecoderLayer) -> None:
    copy_attention(ours.attention, theirs.self_attn)
    copy_attention(ours.cross, theirs.multihead_attn)
    copy_linear(ours.feed_forward.inner, theirs.linear1.weight, theirs.linear1.bias)
    copy_linear(ours.feed_forward.outer, theirs.linear2.weight, theirs.linear2.bias)
    copy_linear(ours.attention_residual.norm, theirs.norm1.weight, theirs.norm1.bias)
    copy_linear(ours.cross_residual.norm, theirs.norm2.weight, theirs.norm2.bias)
    copy_linear(ours.feed_forward_residual.norm, theirs.norm3.weight, theirs.norm3.bias)


def their_options(norm_position: str, activation: str) -> dict[str, Any]:
    pre = norm_position == "pre"
    return {"dropout": 0.0, "activation": activation, "batch_first": True, "norm_first": pre}


both_norms = pytest.mark.parametrize("norm_position", ["pre", "post"])
both_activations = pytest.mark.parametrize("activation", ["relu", "gelu"])


@both_norms
@both_activations
def test_encoder_layer_equals_torch(norm_position: str, activation: str) -> None:
    torch.manual_seed(1)
    theirs = nn.TransformerEncoderLayer(16, 4, 24, **their_options(norm_position, activation))
    shake(theirs)
    ours = EncoderLayer(tiny(norm_position=norm_position, activation=activation))
    copy_encoder_layer(ours, theirs)
    x, real = torch.randn(3, 6, 16), torch.arange(6) < torch.tensor([6, 2, 5])[:, None]
    expected = theirs(x, src_key_padding_mask=~real)
    close(ours(x, real[:, None, None, :], torch.arange(6), x.dtype), expected)


@both_norms
@both_activations
def test_decoder_layer_equals_torch(norm_position: str, activation: str) -> None:
    torch.manual_seed(2)
    theirs = nn.TransformerDecoderLayer(16, 4, 24, **their_options(norm_position, activation))
    shake(theirs)
    ours = DecoderLayer(tiny(norm_position=norm_position, activation=activation))
    copy_decoder_layer(ours, theirs)
    x, memory = torch.randn(3, 5, 16), torch.randn(3, 6, 16)
    real, mask = torch.arange(6) < torch.tensor([6, 2, 5])[:, None], causal_mask(5, CPU)
    expected = theirs(x, memory, tgt_mask=~mask, memory_key_padding_mask=~real)
    out = ours(
        x,
        lambda layer, x: layer.attend_self(x, mask, torch.arange(5)),
        lambda layer, x: layer.attend_memory_kv(x, layer.project_memory(memory), real[:, None, None, :]),
        x.dtype,
    )
    close(out, expected)


@both_norms
@both_activations
def test_transformer_equals_torch_with_its_gradients(norm_position: str, activation: str) -> None:
    torch.manual_seed(3)
    options = their_options(norm_position, activation)
    pre = norm_position == "pre"
    theirs = nn.Transformer(  # its post-norm variant has one more norm at the end than the paper
        16,
        4,
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 24, **options),
            3,
            nn.LayerNorm(16) if pre else None,
            enable_nested_tensor=False,
        ),
        custom_decoder=nn.TransformerDecoder(
            nn.TransformerDecoderLayer(16, 4, 24, **options), 2, nn.LayerNorm(16) if pre else None
        ),
        batch_first=True,
    )
    for parameter in theirs.parameters():  # its layers are initialized as copies of one
        nn.init.normal_(parameter, std=0.3)
    ours = make(norm_position=norm_position, activation=activation, encoder_layers=3)
    for our_layer, their_layer in zip(ours.encoder, theirs.encoder.layers, strict=True):
        copy_encoder_layer(our_layer, their_layer)
    for our_layer, their_layer in zip(ours.decoder, theirs.decoder.layers, strict=True):
        copy_decoder_layer(our_layer, their_layer)
    if pre:
        copy_linear(ours.encoder_norm, theirs.encoder.norm.weight, theirs.encoder.norm.bias)
        copy_linear(ours.decoder_norm, theirs.decoder.norm.weight, theirs.decoder.norm.bias)
    src, tgt = random_tokens(7, 3, 5), random_tokens(6, 6, 6)
    table = ours.tgt_embedding.weight
    src_x, tgt_x = (4 * table[ids] + sinusoids(torch.arange(ids.shape[1]), 16) for ids in (src, tgt))
    expected = theirs(
        src_x,
        tgt_x,
        tgt_mask=~causal_mask(6, CPU),
        src_key_padding_mask=src == PAD,
        memory_key_padding_mask=src == PAD,
    )
    hidden = ours(src, tgt)
    close(hidden, expected)
    close(ours.logits(hidden), expected @ table.T)
    upstream = torch.randn_like(hidden)
    (our_grad,) = torch.autograd.grad(hidden, table, upstream)
    (their_grad,) = torch.autograd.grad(expected, table, upstream)
    torch.testing.assert_close(our_grad, their_grad, atol=1e-4, rtol=1e-4)


# --- masks, by changing what must be hidden --------------------------------------------------------------------

every_kind = pytest.mark.parametrize("positions", POSITIONS)


@every_kind
@both_norms
def test_later_target_tokens_are_hidden_and_earlier_ones_are_seen(positions: str, norm_position: str) -> None:
    model = make(positions=positions, norm_position=norm_position, num_kv_heads=2)
    src, tgt = random_tokens(6, 4), random_tokens(7, 7)
    with torch.no_grad():
        hidden = model(src, tgt)
        for position in range(7):
            changed = tgt.clone()
            changed[:, position] = (tgt[:, position] - 4 + 7) % (VOCAB - 4) + 4
            new = model(src, changed)
            assert torch.equal(new[:, :position], hidden[:, :position])
            differs = (new != hidden).any(-1)
            assert differs[:, position:].all()


@every_kind
def test_later_target_positions_get_no_gradient(positions: str) -> None:
    model = make(positions=positions)
    x = torch.randn(1, 6, 16, requires_grad=True)
    mask, where = causal_mask(6, CPU), torch.arange(6)
    for position in range(6):
        out = model.decoder[0].attention.attend_self(x, mask, where)
        (grad,) = torch.autograd.grad(out[0, position].sum(), x)
        touched = grad[0].abs().sum(-1) > 0
        assert touched.tolist() == [i <= position for i in range(6)]


@every_kind
@both_norms
def test_source_padding_is_hidden(positions: str, norm_position: str) -> None:
    model = make(positions=positions, norm_position=norm_position, tie_embeddings="none", num_kv_heads=2)
    src, tgt = random_tokens(8, 3, 5), random_tokens(6, 6, 6)
    real = src != PAD
    with torch.no_grad():
        memory = model.encode(src)
        hidden = model.decode(tgt, memory, model.source_mask(src))
        model.src_embedding.weight[PAD] = 50 * torch.randn(16)
        new_memory = model.encode(src)
        assert torch.equal(new_memory[real], memory[real])
        assert not torch.equal(new_memory[~real], memory[~real])  # the change took effect
        assert torch.equal(model.decode(tgt, new_memory, model.source_mask(src)), hidden)
        new_memory[~real] = 1000.0
        assert torch.equal(model.decode(tgt, new_memory, model.source_mask(src)), hidden)


@every_kind
def test_real_source_tokens_are_seen_by_every_position(positions: str) -> None:
    model = make(positions=positions)
    src, tgt = random_tokens(5), random_tokens(4)
    with torch.no_grad():
        hidden, memory = model(src, tgt), model.encode(src)
        for position in range(5):
            changed = src.clone()
            changed[:, position] = (src[:, position] - 4 + 7) % (VOCAB - 4) + 4
            assert (model.encode(changed) != memory).any(-1).all()
            assert (model(changed, tgt) != hidden).any(-1).all()


@every_kind
def test_sentences_of_a_batch_do_not_see_each_other(positions: str) -> None:
    model = make(positions=positions)
    src, tgt = random_tokens(6, 6, 2), random_tokens(5, 5, 5)
    with torch.no_grad():
        hidden = model(src, tgt)
        src[1], tgt[1] = random_tokens(6)[0], random_tokens(5)[0]
        new = model(src, tgt)
    assert torch.equal(new[[0, 2]], hidden[[0, 2]])
    assert not torch.equal(new[1], hidden[1])


@every_kind
@both_norms
def test_a_padded_batch_equals_single_sentences(positions: str, norm_position: str) -> None:
    model = make(positions=positions, norm_position=norm_position)
    src_lengths, tgt_lengths = (9, 1, 5, 3), (2, 8, 5, 1)
    src, tgt = random_tokens(*src_lengths), random_tokens(*tgt_lengths)
    targets = torch.randint(4, VOCAB, tgt.shape)
    real = tgt != PAD
    hidden = model(src, tgt)
    together = loss_sums(hidden[real], model.output.weight, targets[real], 0.1).loss
    grads = torch.autograd.grad(together, list(model.parameters()))
    single_loss = torch.zeros(())
    for row, (S, T) in enumerate(zip(src_lengths, tgt_lengths, strict=True)):
        single = model(src[row : row + 1, :S], tgt[row : row + 1, :T])[0]
        close(hidden[row, :T], single)
        single_loss = single_loss + loss_sums(single, model.output.weight, targets[row, :T], 0.1).loss
    close(together, single_loss, 1e-4)
    for ours, theirs in zip(grads, torch.autograd.grad(single_loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# --- every option -----------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[Any]] = {
    "positions": POSITIONS,
    "norm": ["layernorm", "rmsnorm"],
    "norm_position": ["pre", "post"],
    "activation": ["relu", "gelu", "silu", "swiglu"],
    "tie_embeddings": ["three-way", "two-way", "none"],
    "num_kv_heads": [1, 2, 4],
    "shared_layers": [False, True],
    "bias": [True, False],
}


def all_combinations() -> Iterator[dict[str, Any]]:
    for values in itertools.product(*OPTIONS.values()):
        yield dict(zip(OPTIONS, values, strict=True))


def covering_combinations() -> list[dict[str, Any]]:
    """Return combinations that cover every three values of three options."""
    shuffled = list(all_combinations())
    random.Random(1).shuffle(shuffled)
    seen: set[Any] = set()
    chosen = []
    for combination in shuffled:
        triples = set(itertools.combinations(combination.items(), 3))
        if triples - seen:
            chosen.append(combination)
            seen |= triples
    return chosen


def name_of(combination: dict[str, Any]) -> str:
    return "-".join(f"{value}" for value in combination.values())


def check_combination(combination: dict[str, Any]) -> None:
    keys = dict(combination)
    if keys.pop("shared_layers"):
        keys |= {"encoder_layers": 3, "unique_encoder_layers": 2, "unique_decoder_layers": 1}
    torch.manual_seed(len(name_of(combination)))
    config = tiny(**keys, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)
    model = Transformer(config, VOCAB, VOCAB, PAD)
    check_training_step(model.train())
    shake(model)
    check_cached_steps(model.eval())


def check_training_step(model: Transformer) -> None:
    src, tgt = random_tokens(7, 4, 6), random_tokens(6, 6, 6)
    hidden = model(src, tgt)
    sums = loss_sums(hidden.flatten(0, 1), model.output.weight, tgt.flatten(), 0.1, model.output.bias)
    assert math.isfinite(sums.loss.item())
    sums.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@torch.no_grad()
def check_cached_steps(model: Transformer, steps: int = 6, beams: int = 3) -> DecoderState:
    """Check that each step equals `decode`, with random tokens and reorderings and a sentence that is done early."""
    rng = torch.Generator().manual_seed(0)
    src = random_tokens(7, 2, 5)
    memory, mask = model.encode(src), model.source_mask(src)
    state = model.init_state(memory, mask)
    prefixes = torch.empty(len(src), beams, 0, dtype=torch.long)
    for step in range(steps):
        B = len(prefixes)
        tokens = torch.randint(1, VOCAB, (B, beams), generator=rng)
        prefixes = torch.cat([prefixes, tokens[:, :, None]], dim=2)
        logits = model.logits(model.step(tokens, state))
        full = model.decode(
            prefixes.flatten(0, 1), memory.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0)
        )
        close(logits, model.logits(full[:, -1]).view(B, beams, -1))
        if step == 2:  # the second sentence is done
            kept = torch.tensor([0, 2])
            state.keep_rows(kept)
            prefixes, memory, mask = prefixes[kept], memory[kept], mask[kept]
        if step != 1:
            parents = torch.randint(beams, (len(prefixes), beams), generator=rng)
            state.reorder(parents)
            prefixes = prefixes.gather(1, parents[:, :, None].expand_as(prefixes))
    assert state.length == steps
    return state


@pytest.mark.parametrize("combination", covering_combinations(), ids=name_of)
def test_every_three_options_build_train_and_decode(combination: dict[str, Any]) -> None:
    check_combination(combination)


OTHER_OPTIONS: dict[str, list[Any]] = {
    "final_norm": [None, False, True],
    "embedding_norm": [False, True],
    "scale_embeddings": [False, True],
    "output_bias": [False, True],
    "sinusoids": ["concatenated", "interleaved", "fairseq"],
    "position_offset": [0, 2],
    "norm_epsilon": [None, 1e-3],
    "decoder_num_heads": [None, 2],
    "decoder_d_ff": [None, 40],
    "norm_position": ["pre", "post"],
    "norm": ["layernorm", "rmsnorm"],
    "tie_embeddings": ["three-way", "none"],
}
"""Options that models of other toolkits need."""


@pytest.mark.parametrize("seed", range(12))
def test_options_of_other_toolkits_build_train_and_decode_together(seed: int) -> None:
    rng = random.Random(seed)
    keys = {
        name: values[seed % len(values)] if rng.random() < 0.5 else rng.choice(values)
        for name, values in OTHER_OPTIONS.items()
    }
    check_combination(keys | {"shared_layers": False})


def test_sinusoids_are_those_of_each_toolkit() -> None:
    """tensor2tensor's and Marian's (concatenated), the paper's (interleaved), fairseq's."""
    positions, width = torch.arange(50), 12
    for position, row in enumerate(sinusoids(positions, width, "interleaved")):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            assert row[2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert row[2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    for position, row in enumerate(sinusoids(positions, width, "fairseq")):
        for i in range(width // 2):
            angle = position * math.exp(-i * math.log(10000) / (width // 2 - 1))
            assert row[i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert row[width // 2 + i] == pytest.approx(math.cos(angle), abs=1e-5)


def test_embeddings_at_an_offset_unscaled_and_normalized() -> None:
    model = make(position_offset=2, scale_embeddings=False, embedding_norm=True)
    embedding = model.tgt_embedding
    ids = torch.tensor([[4, 7, 9]])
    sums = embedding.weight[ids] + sinusoids(torch.tensor([2, 3, 4]), 16)
    assert isinstance(embedding.norm, LayerNorm)
    close(embedding.embed(ids, torch.arange(3), torch.float32), embedding.norm(sums))


def test_the_output_bias_is_added_to_the_logits() -> None:
    model = make(output_bias=True)
    hidden = torch.randn(2, 3, 16)
    close(model.logits(hidden), hidden @ model.output.weight.T + model.output.bias)


def test_decoder_heads_and_width_of_their_own() -> None:
    model = make(decoder_num_heads=2, decoder_d_ff=40)
    assert model.encoder[0].attention.heads == 4
    assert [layer.heads for layer in (model.decoder[0].attention, model.decoder[0].cross)] == [2, 2]
    assert model.encoder[0].feed_forward.outer.in_features == 24
    assert model.decoder[0].feed_forward.outer.in_features == 40


@pytest.mark.slow
def test_every_combination_builds_trains_and_decodes() -> None:
    for combination in all_combinations():
        check_combination(combination)


@every_kind
def test_decoding_continues_beyond_all_position_tables(positions: str) -> None:
    model = make(positions=positions, max_positions=4, max_relative_distance=2)
    check_cached_steps(model, steps=9)


def test_incremental_decoding_with_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtkit.model.attention.fused_is_faster", lambda x: True)
    for positions in POSITIONS:
        check_cached_steps(make(positions=positions, num_kv_heads=2))


@every_kind
def test_slots_that_no_hypothesis_sees_are_dropped(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtkit.model.incremental.INITIAL_SLOTS", 8)
    steps, beams = 30, 4
    state = check_cached_steps(make(positions=positions), steps, beams)
    dropped = state.num_slots < steps * beams // 2
    assert dropped == (positions != "relative")  # relative positions need every slot


# --- the rest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tied", "matrices"), [("three-way", 1), ("two-way", 2), ("none", 3)])
def test_tied_embeddings_are_one_parameter(tied: str, matrices: int) -> None:
    model = make(tie_embeddings=tied)
    tables = (model.src_embedding.weight, model.tgt_embedding.weight, model.output.weight)
    assert len({id(table) for table in tables}) == matrices
    rest = sum(
        p.numel() for n, p in model.named_parameters() if "embedding" not in n and n != "output.weight"
    )
    assert model.num_parameters() == rest + matrices * VOCAB * 16
    assert (tables[1] is tables[2]) == (tied != "none")


def test_the_config_takes_precedence_in_tying_embeddings() -> None:
    def matrices(configured: str | None, callers: str) -> int:
        model = Transformer(tiny(tie_embeddings=configured), VOCAB, VOCAB, PAD, callers)
        return len({id(model.src_embedding.weight), id(model.tgt_embedding.weight), id(model.output.weight)})

    assert [matrices(None, name) for name in ("three-way", "two-way", "none")] == [1, 2, 3]
    assert [matrices("two-way", name) for name in ("three-way", "two-way", "none")] == [2, 2, 2]


def test_three_way_tying_needs_one_vocabulary() -> None:
    with pytest.raises(ValueError, match="24 and 32"):
        Transformer(tiny(), 24, 32, PAD, "three-way")
    model = Transformer(tiny(), 24, 32, PAD, "two-way")
    assert model.logits(model(random_tokens(3), random_tokens(4))).shape == (1, 4, 32)


def test_number_of_parameters_by_hand() -> None:
    D, ff, vocab = 16, 24, VOCAB
    attention = 4 * (D * D + D)
    feed_forward = D * ff + ff + ff * D + D
    norm = 2 * D
    expected = vocab * D + 2 * (attention + feed_forward + 2 * norm)
    expected += 2 * (2 * attention + feed_forward + 3 * norm) + 2 * norm
    assert make().num_parameters() == expected
    assert make(norm_position="post").num_parameters() == expected - 2 * norm


def test_shared_layers_repeat_in_a_cycle() -> None:
    model = make(encoder_layers=5, unique_encoder_layers=2, decoder_layers=4, unique_decoder_layers=3)
    assert [list(model.encoder).index(layer) for layer in model.encoder_stack()] == [0, 1, 0, 1, 0]
    assert [list(model.decoder).index(layer) for layer in model.decoder_stack()] == [0, 1, 2, 0]
    assert model.num_parameters() == make(encoder_layers=2, decoder_layers=3).num_parameters()


@every_kind
def test_bfloat16_is_close_and_its_gradients_are_float32(positions: str) -> None:
    model = make(positions=positions, norm="rmsnorm", activation="swiglu")
    src, tgt = random_tokens(7, 4), random_tokens(6, 6)
    exact = model(src, tgt)
    model.compute_dtype = torch.bfloat16
    hidden = model(src, tgt)
    assert hidden.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.float(), exact, atol=0.2, rtol=0.1)
    hidden.float().square().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_dropout_is_active_in_training_only() -> None:
    model = make(dropout=0.3)
    src, tgt = random_tokens(7, 4), random_tokens(6, 6)
    assert torch.equal(model(src, tgt), model(src, tgt))
    model.train()
    torch.manual_seed(1)
    first, second = model(src, tgt), model(src, tgt)
    torch.manual_seed(1)
    assert torch.equal(model(src, tgt), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_kind_of_dropout_reaches_both_sides(kind: str) -> None:
    model = make(**{kind: 0.5}).train()
    src, tgt = random_tokens(7, 4), random_tokens(6, 6)
    torch.manual_seed(1)
    assert not torch.equal(model.encode(src), model.encode(src))
    memory = model.encode(src)
    mask = model.source_mask(src)
    assert not torch.equal(model.decode(tgt, memory, mask), model.decode(tgt, memory, mask))


def test_embeddings_are_scaled_by_the_root_of_the_width() -> None:
    model = make(positions="rotary")
    ids = random_tokens(5)
    close(
        model.src_embedding.embed(ids, torch.arange(5), torch.float32),
        4 * F.embedding(ids, model.output.weight),
    )


def test_the_loss_of_an_untrained_model_is_near_that_of_a_guess() -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=64, encoder_layers=2, decoder_layers=2)
    model = Transformer(config, 1000, 1000, PAD).eval()
    src, tgt = torch.randint(4, 1000, (8, 20)), torch.randint(4, 1000, (8, 20))
    with torch.no_grad():
        loss = F.cross_entropy(model.logits(model(src, tgt)).flatten(0, 1), tgt.roll(-1, 1).flatten())
    assert math.log(1000) - 0.1 < loss.item() < math.log(1000) + 1.5


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_the_float32_residual_stream_has_a_smaller_gradient_error_than_one_in_bf16(
    norm_position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix products run in bf16 either way; only the rounding of the sums in the stream differs."""
    monkeypatch.setenv("MTKIT_NATIVE", "none")  # the compiled library has norms of a float32 stream only
    torch.manual_seed(5)
    src, tgt = torch.randint(1, 50, (8, 9)), torch.randint(1, 50, (8, 9))

    def gradient(model: Transformer, dtype: torch.dtype) -> Tensor:
        model.compute_dtype = dtype
        model.zero_grad()
        model.logits(model(src, tgt)).double().log_softmax(-1)[..., 7].sum().backward()
        return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    torch.manual_seed(6)
    shape = tiny(d_model=64, encoder_layers=4, decoder_layers=4, norm_position=norm_position)
    model = Transformer(shape, 50, 50)
    exact = gradient(model, torch.float32)
    own = (gradient(model, torch.bfloat16) - exact).norm()
    monkeypatch.setattr(Transformer, "residual_dtype", torch.bfloat16)
    assert own < 0.9 * (gradient(model, torch.bfloat16) - exact).norm()
