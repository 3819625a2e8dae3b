"""`mtkit score`: what a model thinks of given translations."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Iterable
from typing import Annotated

import typer

from mtkit.cli import options
from mtkit.cli.lines import begun, in_step
from mtkit.cli.terminal import open_output
from mtkit.cli.translators import decoding_of, load_translator
from mtkit.errors import ConfigError, DataError


def score(
    model: options.ModelPath,
    src: Annotated[str, typer.Argument(metavar="SRC", help="Source lines.")],
    tgt: Annotated[str, typer.Argument(metavar="TGT", help="A translation of each.")],
    length_penalty: options.LengthPenalty = None,
    penalty_kind: options.PenaltyKind = None,
    coverage_penalty: options.CoveragePenalty = None,
    minimum: Annotated[
        float | None,
        typer.Option(
            help="Print the pairs with at least this score, `SRC tab TGT`, instead of scores (none that hold a tab)."
        ),
    ] = None,
    ensemble: options.Ensemble = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Print the model's score of given translations: what `translate --scores` would print for them.

    The same to rounding: to 1e-5 with --precision fp32. With --minimum it filters a corpus, and leaves out pairs
    with tabs in them. Any number of lines in constant memory.
    """
    from mtkit.files import count_lines, read_lines

    if minimum is not None and math.isnan(minimum):
        raise ConfigError("nan is no score", where="--minimum", hint="a number, for example -1.5")
    decoding = decoding_of(model, {
        "length_penalty": length_penalty, "penalty_kind": penalty_kind, "coverage_penalty": coverage_penalty,
        "batch_tokens": batch_tokens,
    })  # fmt: skip
    translator = load_translator(model, decoding, device, precision, ensemble or ())
    counts = [count_lines(path) if os.path.isfile(path) else None for path in (src, tgt)]
    if None not in counts and counts[0] != counts[1]:
        for path in (src, tgt):
            deque(read_lines(path), maxlen=0)  # if they are no text, that is why
        what = f"{counts[0]:,} source lines, but {counts[1]:,} target lines"
        raise DataError(what, hint="line n goes with line n")
    pairs = in_step([iter(read_lines(src)), iter(read_lines(tgt))], [src, tgt])
    scored = begun(translator.score_stream(pairs))
    if minimum is None:
        write_scores(result.score for _, result in scored)
    else:
        write_pairs(((source, result.text, result.score) for source, result in scored), minimum)


def write_scores(scores: Iterable[float]) -> None:
    """A score a line. Raises: StorageError, BrokenPipeError, and what scoring raises."""
    with open_output(None) as out:
        for score in scores:
            out.write(f"{score:.6f}\n")


def write_pairs(scored: Iterable[tuple[str, str, float]], minimum: float) -> None:
    """The pairs with at least this score, a tab between, and on stderr how many; raises the same.

    Pairs with a tab of their own are left out, for nobody could tell where the target begins.
    """
    num_pairs = num_kept = num_with_tabs = 0
    with open_output(None) as out:
        for source, target, score in scored:
            num_pairs += 1
            if score < minimum:
                continue
            if "\t" in source or "\t" in target:
                num_with_tabs += 1
                continue
            num_kept += 1
            out.write(f"{source}\t{target}\n")
    print(f"kept {num_kept:,} of {num_pairs:,} pairs", file=sys.stderr)
    if num_with_tabs:
        print(f"left out {num_with_tabs:,} pairs with tabs in them", file=sys.stderr)
