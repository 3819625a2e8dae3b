"""The inside of a translation: attention, probabilities with their runners-up, contributions of the source tokens.

The translation is decoded again, all tokens at once as in training, in float32. Step t is given the tokens before
token t and predicts token t, so its row of a matrix tells how token t came about.

Shapes: L layers, H heads, S source length, T target length with eos, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtkit.config.sections import DecodingConfig
from mtkit.data.batching import Ids
from mtkit.device import out_of_memory_errors
from mtkit.errors import DataError
from mtkit.model.attention import MultiHeadAttention, causal_mask
from mtkit.model.transformer import Transformer
from mtkit.translation.alignment import SegmentAttention
from mtkit.translation.loading import load_model
from mtkit.translation.model_folder import override_decoding, read_decoding
from mtkit.translation.options import TranslateOptions
from mtkit.translation.segments import Request, Segment
from mtkit.translation.translator import Translator

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RunnerUp:
    """A token that the model might have chosen instead.

    Attributes:
        piece: the token.
        probability: its probability.
    """

    piece: str
    probability: float


@dataclass(frozen=True)
class OutputToken:
    """A token of the translation.

    Attributes:
        piece: the token.
        probability: its probability, given the source and the tokens before it.
        rank: 1 if no token of the vocabulary is more probable, and so on.
        runners_up: the most probable other tokens, best first.
        source: index of the source token that it is aligned with (see `SegmentAttention.source_indices`).
    """

    piece: str
    probability: float
    rank: int
    runners_up: tuple[RunnerUp, ...]
    source: int


@dataclass(frozen=True)
class Explanation:
    """A sentence, its translation, and how the model computed it.

    Attributes:
        text: the sentence.
        translation: its translation, as text.
        score: what `mtkit score` says of the translation.
        log_prob: sum of the natural log-probabilities of its tokens.
        src: source tokens, as the encoder reads them.
        inputs: what the decoder is given at each step: bos and the tokens of the translation.
        outputs: what it predicts there: the tokens of the translation and eos.
        encoder_attention: [L, H, S, S]; like all attention, each row sums to 1.
        decoder_attention: [L, H, T, T]; rows belong to `outputs`, columns to `inputs`.
        cross_attention: [L, H, T, S].
        contributions: [T, S], gradient x input (see `explain_ids`); the absolute values of a row sum to 1.
    """

    text: str
    translation: str
    score: float
    log_prob: float
    src: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[OutputToken, ...]
    encoder_attention: Array
    decoder_attention: Array
    cross_attention: Array
    contributions: Array

    def as_json(self) -> dict[str, Any]:
        """Return the same as plain lists and dicts, numbers rounded to six decimals."""
        return {
            "text": self.text,
            "translation": self.translation,
            "score": round(self.score, 6),
            "log_prob": round(self.log_prob, 6),
            "src": list(self.src),
            "inputs": list(self.inputs),
            "outputs": [
                {
                    "piece": token.piece,
                    "probability": round(token.probability, 6),
                    "rank": token.rank,
                    "runners_up": [[other.piece, round(other.probability, 6)] for other in token.runners_up],
                    "source": token.source,
                }
                for token in self.outputs
            ],
            "encoder_attention": _rounded(self.encoder_attention),
            "decoder_attention": _rounded(self.decoder_attention),
            "cross_attention": _rounded(self.cross_attention),
            "contributions": _rounded(self.contributions),
        }


def _rounded(array: Array) -> Any:
    return np.round(array.astype(np.float64), 6).tolist()


def load_to_explain(path: Path, decoding: DecodingConfig, device: torch.device) -> Translator:
    """Load a model in float32 with its matrices as they were trained, not packed for a CPU.

    Args:
        path: run folder or checkpoint folder.
        decoding: how the best translation is searched for.
        device: device to compute on.

    Raises:
        StorageError: If the folder or a file in it is missing or damaged.
    """
    config, tokenizers, model = load_model(path)
    data = config.data
    return Translator(model.to(device).eval(), tokenizers, decoding, data.max_length, tgt=data.tgt)


def explain(
    translator: Translator, text: str, tgt: str | None = None, *, num_runners_up: int = 5, tag: str = ""
) -> Explanation:
    """Explain the best translation of a sentence, or a given one.

    Args:
        translator: what `load_to_explain` returns; a model whose matrices are packed has no gradients.
        text: the sentence.
        tgt: the translation; None for the one that the search finds.
        num_runners_up: how many for each token.
        tag: target-language tag before the sentence.

    Raises:
        DataError: If the sentence is empty, a side is too long for the model, or the vocabulary lacks characters of the
            translation.
    """
    segment = _only_segment(translator, Request(text, tag=tag))
    if tgt is None:
        [[best, *_]] = translator.batched_search.search_segments([segment])
        ids = np.array(best.ids, dtype=np.int32)
    else:
        ids = _encode_translation(translator, tgt)
    with out_of_memory_errors("explain a shorter sentence"):
        return explain_ids(translator, text, segment.ids, ids, num_runners_up)


def attention_of_sentences(path: Path, texts: Sequence[str], max_weights: int) -> list[dict[str, Any]]:
    """Return the attention in the best translations of sentences: fields of `Explanation.as_json`, weights in percent.

    A sentence that the model cannot read whole, or has more weights than are left, is skipped.

    Args:
        path: run folder or checkpoint folder.
        texts: the sentences, with their tags.
        max_weights: most weights in all.

    Raises:
        StorageError: If the folder or a file in it is missing or damaged.
    """
    decoding = override_decoding(read_decoding(path), {"n_best": 1, "sample": False, "mbr": None})
    translator = load_to_explain(path, decoding, torch.device("cpu"))
    found: list[dict[str, Any]] = []
    left = max_weights
    for text in texts:
        try:
            explanation = explain(translator, text, num_runners_up=0)
        except DataError:
            continue
        names = ("encoder_attention", "decoder_attention", "cross_attention")
        weights: dict[str, Array] = {name: getattr(explanation, name) for name in names}
        num_weights = sum(array.size for array in weights.values())
        if num_weights > left:
            continue
        left -= num_weights
        fields = ("text", "translation", "src", "inputs", "outputs")
        plain = explanation.as_json()
        found.append(
            {name: plain[name] for name in fields}
            | {name: np.rint(100 * array).astype(int).tolist() for name, array in weights.items()}
        )
    return found


def _only_segment(translator: Translator, request: Request) -> Segment:
    """Return a sentence as the one segment that it must be.

    Raises:
        DataError: If it is empty or too long.
    """
    unsplit = TranslateOptions(split_sentences=False)
    [line] = translator.segmenter.segment_lines([replace(request, keep_case=True)], options=unsplit)
    if line.fault is not None:
        raise line.fault
    if not line.segments:
        raise DataError("the sentence is empty", hint="there is nothing to explain")
    if len(line.segments) > 1:
        num_tokens = sum(len(segment.ids) - segment.num_tag_tokens for segment in line.segments)
        limit = translator.max_source_tokens - line.segments[0].num_tag_tokens
        what = f"the sentence has {num_tokens:,} tokens, but the model holds {limit:,}"
        raise DataError(what, hint="explain a part of it")
    return line.segments[0]


def _encode_translation(translator: Translator, text: str) -> Ids:
    """Return the tokens of a given translation.

    Raises:
        DataError: If it is too long, or the vocabulary lacks some of its characters.
    """
    tokenizer = translator.tokenizers.tgt
    [ids] = tokenizer.encode([text])
    spans = tokenizer.spans(text)
    unknown = [text[slice(*span)].strip() for i, span in zip(ids, spans, strict=True) if i == tokenizer.unk]
    if unknown:
        what = f"the vocabulary lacks {', '.join(map(repr, dict.fromkeys(unknown)))}"
        raise DataError(what, where="the translation", hint="the model could not have written it")
    limit = translator.decoding.max_length(translator.max_source_tokens)
    if len(ids) > limit:
        what = f"{len(ids):,} tokens, but a translation may have {limit:,}"
        raise DataError(what, where="the translation", hint="explain a part of it")
    return ids


def explain_ids(
    translator: Translator, text: str, src_ids: Ids, tgt_ids: Ids, num_runners_up: int = 5
) -> Explanation:
    """Explain given tokens.

    The contribution of source token s to output token t is gradient x input (Shrikumar et al. 2016; Denil et al. 2014
    for words): the scalar product of the embedding of s, scaled but without its position, and of the gradient of
    log p(t) with respect to it. That is the derivative of log p(t) by a factor of this embedding: positive if the token
    speaks for t, negative if against it. Each row is divided by the sum of its absolute values.

    Args:
        translator: as for `explain`.
        text: the sentence.
        src_ids: tokens of the source, without eos.
        tgt_ids: tokens of the translation, without eos.
        num_runners_up: how many for each token.
    """
    ensemble, tokenizers = translator.ensemble, translator.tokenizers
    model = ensemble.models[0]
    src_1S, tgt_in_1T = ensemble.sources([src_ids]), ensemble.targets_in([tgt_ids])
    tgt_out_T = ensemble.targets_out([tgt_ids])[0]
    with torch.enable_grad(), _embeddings_as_inputs(model) as embeddings:
        with _attention_inputs(model) as calls:
            memory_1SD, mask = model.encode(src_1S), model.source_mask(src_1S)
            hidden_1TD = model.decode(tgt_in_1T, memory_1SD, mask)
        log_probs_TV = ensemble.log_probs([hidden_1TD])[0]
        log_probs_T = log_probs_TV.gather(1, tgt_out_T[:, None])[:, 0]
        contributions_TS = _gradient_x_input(log_probs_T, embeddings[0])
    with torch.inference_mode():
        encoder, decoder, cross = _attention_weights(model, calls, mask, memory_1SD)
        log_probs_TV, log_probs_T = log_probs_TV.detach(), log_probs_T.detach()
        ranks = (log_probs_TV > log_probs_T[:, None]).sum(1) + 1
        others_TV = log_probs_TV.scatter(1, tgt_out_T[:, None], float("-inf"))
        best = others_TV[:, : tokenizers.tgt.num_pieces].topk(
            min(num_runners_up, tokenizers.tgt.num_pieces - 1)
        )
    piece = tokenizers.tgt.piece
    src_pieces = tuple(map(tokenizers.src.piece, src_1S[0].tolist()))
    tgt_pieces = tuple(map(piece, tgt_ids.tolist()))
    head = None if model.alignment_layer is None else cross[model.alignment_layer, 0]
    aligned = SegmentAttention(src_pieces, (*tgt_pieces, piece(tokenizers.tgt.eos)), cross.mean(axis=1), head)
    outputs = tuple(
        OutputToken(
            name,
            probability,
            rank,
            tuple(RunnerUp(piece(i), p) for i, p in zip(ids, probabilities, strict=True)),
            source,
        )
        for name, probability, rank, ids, probabilities, source in zip(
            aligned.tgt,
            log_probs_T.exp().tolist(),
            ranks.tolist(),
            best.indices.tolist(),
            best.values.exp().tolist(),
            aligned.source_indices(),
            strict=True,
        )
    )
    [score] = translator.scorer.score_ids([src_ids], [tgt_ids])
    return Explanation(
        text=text,
        translation=tokenizers.tgt.decode([tgt_ids])[0],
        score=score,
        log_prob=float(log_probs_T.sum()),
        src=src_pieces,
        inputs=tuple(map(piece, tgt_in_1T[0].tolist())),
        outputs=outputs,
        encoder_attention=encoder,
        decoder_attention=decoder,
        cross_attention=cross,
        contributions=contributions_TS,
    )


@contextmanager
def _embeddings_as_inputs(model: Transformer) -> Iterator[list[Tensor]]:
    """Make the source embeddings of the block variables of their own: what it yields is filled with them."""
    embeddings: list[Tensor] = []

    def detach(module: Any, ids: Any, output: Tensor) -> Tensor:
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    hook = model.src_embedding.register_forward_hook(detach)
    try:
        yield embeddings
    finally:
        hook.remove()


def _gradient_x_input(log_probs_T: Tensor, embeddings_1SD: Tensor) -> Array:
    """Return the contribution of each source token to each output token: [T, S]."""
    rows = []
    for log_prob in log_probs_T:
        [gradient_1SD] = torch.autograd.grad(log_prob, embeddings_1SD, retain_graph=True)
        rows.append((gradient_1SD * embeddings_1SD.detach())[0].sum(-1))
    contributions_TS = torch.stack(rows)
    totals_T1 = contributions_TS.abs().sum(1, keepdim=True)
    return (contributions_TS / totals_T1.clamp(min=1e-30)).cpu().numpy()


@contextmanager
def _attention_inputs(model: Transformer) -> Iterator[list[tuple[MultiHeadAttention, Tensor]]]:
    """Record the queries' input [1, T, D] of every attention of the block, in the order of the calls."""
    calls: list[tuple[MultiHeadAttention, Tensor]] = []
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = []
    for attention in attentions:

        def record(projection: Any, inputs: Any, attention: MultiHeadAttention = attention) -> None:
            calls.append((attention, inputs[0].detach()))

        hooks.append((attention.q if attention.cross else attention.qkv).register_forward_pre_hook(record))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _attention_weights(
    model: Transformer, calls: list[tuple[MultiHeadAttention, Tensor]], mask: Tensor, memory_1SD: Tensor
) -> tuple[Array, Array, Array]:
    """Return the weights of the encoder [L, H, S, S], of the decoder [L, H, T, T] and of cross-attention [L, H, T, S].

    Args:
        model: the model.
        calls: each attention and its input; the encoder's come first, then the two of each decoder layer.
        mask: of the source.
        memory_1SD: output of the encoder.
    """
    depth = model.encoder_depth

    def self_weights(calls: list[tuple[MultiHeadAttention, Tensor]], mask: Tensor) -> Array:
        positions = torch.arange(calls[0][1].shape[1], device=mask.device)
        return torch.cat([a.self_weights(x, mask, positions) for a, x in calls]).cpu().numpy()

    encoder, decoder = calls[:depth], calls[depth::2]
    cross = [a.memory_weights(x, memory_1SD, mask) for a, x in calls[depth + 1 :: 2]]
    causal = causal_mask(decoder[0][1].shape[1], mask.device)
    return self_weights(encoder, mask), self_weights(decoder, causal), torch.cat(cross).cpu().numpy()
