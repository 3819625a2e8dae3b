"""`mtkit score`: score given translations with a model."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import options
from mtkit.cli.lines import MATCH_HINT, prefetch_first, zip_lines
from mtkit.cli.terminal import check_stdin_once, open_output, open_stdout, print_stderr
from mtkit.cli.translators import check_tag, choose_parallelism, load_translator, resolve_decoding
from mtkit.errors import ConfigError, DataError
from mtkit.formatting import format_count
from mtkit.translation.options import LineProgress

if TYPE_CHECKING:
    from mtkit.data.alignments import WordLinks
    from mtkit.translation.assembly import Translation


def score(
    model: options.ModelPath,
    src: Annotated[str, typer.Argument(metavar="SRC", help="Source lines.")],
    tgt: Annotated[str, typer.Argument(metavar="TGT", help="Their translations.")],
    length_penalty: options.LengthPenalty = None,
    penalty_kind: options.PenaltyKind = None,
    coverage_penalty: options.CoveragePenalty = None,
    minimum: Annotated[
        float | None,
        typer.Option(
            help="Instead of scores, print the pairs with at least this score, as source, tab, target."
        ),
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(
            help="Instead of scores, `pharaoh` prints `0-0 1-2`: pairs of source and target words, from 0."
        ),
    ] = None,
    tag: options.Tag = None,
    split_sentences: options.SplitSentences = None,
    ensemble: options.Ensemble = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Score given translations: print for each the score that `translate --scores` would print.

    With --precision fp32 and the same --tag and --split-sentences, both agree to 1e-5, unless `translate` has a
    shortlist, puts a line into its usual case (--no-shortlist and --no-truecase there), or renormalizes (the config's
    decoding.renormalize). The translation is tokenized
    anew: in the rare case that the search generated it from other tokens, the scores differ.
    A line that `translate` would split is scored sentence by sentence if its translation has as many sentences,
    otherwise as one segment.

    With --minimum, this filters a corpus; pairs that have an empty side, contain tabs or are too long for the model
    are dropped. Memory does not grow with the number of lines.

    With --alignment, this aligns the words of a corpus, for `alignments` in a config (training.guided_alignment): each
    pair as one segment, without links if it is too long for the model.
    """
    from mtkit.files import read_lines

    if minimum is not None and math.isnan(minimum):
        raise ConfigError("nan is not a score", where="--minimum", hint="a number, for example -1.5")
    if alignment not in (None, "pharaoh"):
        raise ConfigError(
            f"unknown format {alignment!r}", where="--alignment", hint="pharaoh is the only one"
        )
    if alignment is not None and minimum is not None:
        raise ConfigError("--alignment cannot be combined with --minimum", hint="filter first, then align")
    parallelism = choose_parallelism(workers, threads)
    check_stdin_once([src, tgt])
    open_stdout()  # if it is closed, fail before the model is loaded
    decoding = resolve_decoding(model, {
        "length_penalty": length_penalty, "penalty_kind": penalty_kind, "coverage_penalty": coverage_penalty,
        "batch_tokens": batch_tokens,
    })  # fmt: skip
    translator = load_translator(model, decoding, device, precision, ensemble or ())
    say = (lambda line: None) if quiet else print_stderr
    progress = LineProgress(say, _check_lengths(src, tgt))
    check_tag(tag, translator)
    pairs = zip_lines([iter(read_lines(src)), iter(read_lines(tgt))], [src, tgt])
    if alignment is not None:
        aligned = prefetch_first(translator.align(pairs, tag=tag or "", parallelism=parallelism))
        _write_alignments(progress.over(aligned))
        return
    skip_long = minimum is not None
    scored = translator.score_stream(
        pairs, skip_long, tag=tag or "", split_sentences=split_sentences, parallelism=parallelism
    )
    scored = progress.over(prefetch_first(scored))
    if minimum is None:
        _write_scores(result.score for _, result in scored if result is not None)
    else:
        _write_pairs(scored, minimum)


def _check_lengths(src: str, tgt: str) -> int | None:
    """Check that two files, as far as they are files, have as many lines, and return how many; None if neither is one.

    Raises:
        DataError: If they do not, or if one is not text.
    """
    from mtkit.files import count_lines, read_lines

    num_src, num_tgt = (count_lines(path) if os.path.isfile(path) else None for path in (src, tgt))
    if num_src is not None and num_tgt is not None and num_src != num_tgt:
        for path in (src, tgt):
            deque(read_lines(path), maxlen=0)  # raises if the file is not text, which would explain it
        raise DataError(f"{num_src:,} source lines, but {num_tgt:,} target lines", hint=MATCH_HINT)
    return num_tgt if num_src is None else num_src


def _write_scores(scores: Iterable[float]) -> None:
    """Write one score a line to stdout."""
    with open_output(None) as out:
        for score in scores:
            out.write(f"{score:.6f}\n")


def _write_alignments(alignments: Iterable[WordLinks]) -> None:
    """Write the links of one pair a line to stdout."""
    with open_output(None) as out:
        for links in alignments:
            out.write(" ".join(f"{s}-{t}" for s, t in links) + "\n")


def _write_pairs(scored: Iterable[tuple[str, Translation | None]], minimum: float) -> None:
    """Write the pairs with at least a score to stdout, tab-separated, and print to stderr how many were kept.

    Pairs without a score are too long for the model. Those with an empty side are dropped, because they are no pairs,
    and those that contain a tab, because the output could not be split again.
    """
    num_pairs = num_kept = num_with_tabs = num_long = num_empty = 0
    with open_output(None) as out:
        for source, result in scored:
            num_pairs += 1
            if result is None:
                num_long += 1
            elif not source.strip() or not result.text.strip():
                num_empty += 1
            elif result.score < minimum:
                continue
            elif "\t" in source or "\t" in result.text:
                num_with_tabs += 1
            else:
                num_kept += 1
                out.write(f"{source}\t{result.text}\n")
    faults = ((num_long, "too long"), (num_empty, "empty"), (num_with_tabs, "with tabs"))
    dropped = ", ".join(f"{number:,} {fault}" for number, fault in faults if number)
    also = f"; dropped whatever their score: {dropped}" if dropped else ""
    print_stderr(f"kept {num_kept:,} of {format_count(num_pairs, 'pair')}{also}")
