"""Proof of an export: what the engine translates is what mtkit translates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mtkit.config.sections import Config, DecodingConfig, SourceConfig
from mtkit.data.sources import Split, open_sources, read_sides
from mtkit.data.tokenizer import BYTE_PIECE, Tokenizer, Tokenizers
from mtkit.errors import ConfigError, MtkitError
from mtkit.evaluation.metrics import score
from mtkit.evaluation.significance import paired_difference
from mtkit.translation.engine import Engine
from mtkit.translation.ensemble import Ensemble
from mtkit.translation.loading import load_model
from mtkit.translation.model_folder import data_of_run
from mtkit.translation.segments import Request, Segment
from mtkit.translation.translator import Translator

_NUM_SENTENCES = 200
"""Sentences whose translations are compared one by one."""
_MAX_GAP = 1e-4
"""Log-probability between two tokens that rounding may swap."""
_LONGEST_BUILT_IN = 20
_MAX_SENTENCES = 1000
"""Sentences of a model's own test set that a smaller type is measured on."""


@dataclass(frozen=True)
class ProofText:
    """Text to translate.

    Attributes:
        name: where it is from.
        srcs: source lines.
        refs: a reference of each, if there are any.
    """

    name: str
    srcs: list[str]
    refs: list[str] | None = None


class EngineTokenizer(Protocol):
    """The tokenizer of an exported model."""

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line, eos included."""

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence of ids."""


def own_text(path: Path, config: Config, tokenizers: Tokenizers) -> ProofText:
    """Return a model's own test or validation set if it can still be read, otherwise random text.

    Args:
        path: folder of the model.
        config: its config.
        tokenizers: its tokenizers.
    """
    data = data_of_run(config, path)
    splits: dict[Split, tuple[SourceConfig, ...]] = {"test": data.test, "valid": data.valid}
    for split, configs in splits.items():
        try:
            for source in open_sources(configs, data, split):
                srcs, refs = read_sides(source)
                if srcs:
                    return ProofText(source.name, srcs[:_MAX_SENTENCES], refs[:_MAX_SENTENCES])
        except MtkitError:  # the files are no longer there, as on another machine
            continue
    return random_text(tokenizers)


def random_text(tokenizers: Tokenizers) -> ProofText:
    """Return lines of random tokens of the source vocabulary, for models whose texts are not at hand."""
    return ProofText("lines of random tokens", _random_lines(tokenizers.src))


def _random_rows(tokenizer: Tokenizer) -> list[list[int]]:
    """Return rows of ids out of the whole vocabulary, without special tokens."""
    rng = np.random.default_rng(1)
    special = {tokenizer.pad, tokenizer.unk, tokenizer.bos, tokenizer.eos}
    usable = [i for i in range(tokenizer.num_pieces) if i not in special]
    lengths = rng.integers(1, _LONGEST_BUILT_IN, size=2 * _NUM_SENTENCES)
    return [rng.choice(usable, size=length).tolist() for length in lengths]


def _random_lines(tokenizer: Tokenizer) -> list[str]:
    """Return lines of random tokens."""
    texts = tokenizer.decode(_random_rows(tokenizer))
    return [text.strip() for text in texts if text.strip()][:_NUM_SENTENCES]


def _proof_lines(tokenizers: Tokenizers, text: ProofText) -> list[str]:
    """Return the first lines of a text, filled up with random ones."""
    lines = text.srcs[:_NUM_SENTENCES]
    return lines + random_text(tokenizers).srcs[: _NUM_SENTENCES - len(lines)]


def _greedy(decoding: DecodingConfig) -> DecodingConfig:
    """Return greedy search with the length limits of a model."""
    return DecodingConfig(
        beam_size=1, length_penalty=0.0, penalty_kind="simple", stop="finished", avoid_loops=False,
        max_length_ratio=decoding.max_length_ratio, max_length_extra=decoding.max_length_extra,
    )  # fmt: skip


def prove_equal(
    path: Path, config: Config, text: ProofText, make_engine: Callable[[DecodingConfig], Engine], name: str
) -> str:
    """Compare greedy translations in float32, and return the result as a line of text.

    A difference is explained if the two tokens where it begins have almost the same probability in mtkit.

    Args:
        path: folder of the model.
        config: its config.
        text: text to translate.
        make_engine: returns the engine that searches this way.
        name: name of the engine.

    Raises:
        ConfigError: If another difference is found.
        DataError: If a line cannot be translated.
    """
    decoding = _greedy(config.decoding)
    _, tokenizers, network = load_model(path)
    translator = Translator.of(config, tokenizers, network, decoding, torch.device("cpu"), "fp32")
    lines = translator.segmenter.segment_lines([Request(line) for line in _proof_lines(tokenizers, text)])
    segments = [segment for line in lines for segment in line.segments]
    ours = [hyps[0].ids for hyps in translator.engine.start_search(segments).finish()]
    theirs = [hyps[0].ids for hyps in make_engine(decoding).start_search(segments).finish()]
    gaps = [
        (_gap(translator.ensemble, segment, own, their), segment.line_number)
        for segment, own, their in zip(segments, ours, theirs, strict=True)
        if own != their
    ]
    worst, line = max(gaps, default=(0.0, 0))
    if worst >= _MAX_GAP:
        what = (
            f"{name} translates {len(gaps)} of {len(segments)} sentences otherwise than mtkit, most of all "
            f"line {line + 1}, by {worst:.2g} in log-probability"
        )
        raise ConfigError(
            what, where=text.name, hint="this is a bug: please report it with the model's config"
        )
    explained = f"; the others differ by less than {_MAX_GAP:g} in log-probability" if gaps else ""
    return f"greedy, float32: {len(segments) - len(gaps)} of {len(segments)} sentences equal{explained}"


@torch.inference_mode()
def _gap(ensemble: Ensemble, segment: Segment, ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Return how much more probable the first token is that differs in our translation than in theirs."""
    eos = ensemble.tokenizers.tgt.eos
    own, other = [*ours, eos], [*theirs, eos]
    place = next(i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    prefix = np.array(own[:place], dtype=np.int32)
    hidden = ensemble.hidden(ensemble.sources([segment.ids]), ensemble.targets_in([prefix]))
    log_probs = ensemble.log_probs([h[:, -1] for h in hidden])[0]
    return abs(float(log_probs[own[place]] - log_probs[other[place]]))


def prove_tokenizer(tokenizers: Tokenizers, text: ProofText, tokenizer: EngineTokenizer, name: str) -> str:
    """Compare tokens of lines and texts of tokens, and return the result as a line of text.

    Raises:
        ConfigError: If they differ.
    """
    lines = _proof_lines(tokenizers, text)
    own = [[*ids.tolist(), tokenizers.src.eos] for ids in tokenizers.src.encode(lines)]
    different = [line for line, a, b in zip(lines, own, tokenizer.encode(lines), strict=True) if a != b]
    refs = text.refs if text.refs is not None else _random_lines(tokenizers.tgt)
    tgt = tokenizers.tgt
    rows = [ids.tolist() for ids in tgt.encode(refs[:_NUM_SENTENCES])]
    targets = [ids for ids in rows if tgt.unk not in ids]  # the search generates no unk
    # No text becomes the tokens of a vocabulary that its SentencePiece model lacks, but the search generates them.
    # Random bytes are no characters.
    without_text = {i for i in range(tgt.num_pieces) if BYTE_PIECE.fullmatch(tgt.piece(i))} | {*tgt.special}
    targets += [[i for i in ids if i not in without_text] for ids in _random_rows(tgt)]
    texts = zip(tgt.decode(targets), tokenizer.decode(targets), strict=True)
    different += [a for a, b in texts if a.strip() != b]
    if different:
        what = f"{name} has other tokens for {len(different)} lines, first of all {different[0]!r:.60}"
        raise ConfigError(
            what, where=text.name, hint="name other text with `src` if this is not a usual line"
        )
    return f"tokens of {len(lines)} lines: equal"


def prove_loss(
    config: Config,
    hyps: Sequence[str],
    before: Sequence[str],
    text: ProofText,
    type_: str,
    computed_in: str,
    max_loss: float | None,
) -> Iterator[str]:
    """Yield what the translations of a smaller type lose against those in float32, as lines of text.

    Args:
        config: config of the model.
        hyps: translations in this type.
        before: translations in float32.
        text: text that was translated.
        type_: type of the weights.
        computed_in: type in which this machine computed them.
        max_loss: most BLEU that it may lose.

    Raises:
        ConfigError: If it loses more.
    """
    same = 100 * sum(a == b for a, b in zip(hyps, before, strict=True)) / len(hyps)
    computed = (
        "" if computed_in == type_ else f", computed in {computed_in} because this machine lacks {type_}"
    )
    yield f"{type_}: {same:.1f} % of {len(hyps):,} translations as in float32{computed}"
    tokenize, tgt = config.validation.bleu_tokenizer, config.data.tgt
    if text.refs is None:
        [chrf] = score(hyps, [before], ["chrf"])
        yield f"{type_}: chrF {chrf.value:.1f} between them; there are no references to measure a loss with"
        return
    for metric in ("bleu", "chrf"):
        found = paired_difference(before, hyps, [text.refs], metric, tokenize=tokenize, tgt=tgt)
        yield (
            f"{type_}: {found.name} {found.before:.2f} in float32, {found.after:.2f} in {type_}: {found.value:+.2f} "
            f"(95 % interval {found.low:+.2f} to {found.high:+.2f}; {found.signature})"
        )
        if metric == "bleu" and max_loss is not None and -found.value > max_loss:
            what = f"{type_} loses {-found.value:.2f} BLEU, more than {max_loss:g}"
            raise ConfigError(what, where="`max_loss`", hint="choose a larger type")
