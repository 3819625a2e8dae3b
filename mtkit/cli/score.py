"""`mtkit score`: what a model thinks of given translations."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import options
from mtkit.cli.lines import begun, in_step
from mtkit.cli.terminal import open_output, open_stdout, say
from mtkit.cli.translators import decoding_of, load_translator, refuse_no_symbol
from mtkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mtkit.translation.assembly import Translation


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
    tag: options.Tag = None,
    split_sentences: options.SplitSentences = None,
    ensemble: options.Ensemble = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Print the model's score of given translations: what `translate --scores` would print for them.

    The same to rounding, to 1e-5 with --precision fp32, given the same --tag and --split-sentences. What counts is the
    text: a translation that the search made of other tokens than training texts are cut into, which it seldom does,
    has another score. A line that `translate` would cut is scored sentence by sentence if its translation has as many
    sentences, else in one piece. With --minimum it filters a corpus, and leaves out pairs that
    are too long or have tabs in them. Any number of lines in constant memory.
    """
    from mtkit.files import count_lines, read_lines

    if minimum is not None and math.isnan(minimum):
        raise ConfigError("nan is no score", where="--minimum", hint="a number, for example -1.5")
    open_stdout()  # if there is none, it is said before the model is loaded
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
    if tag is not None:
        refuse_no_symbol(tag, translator)
    skip_long = minimum is not None
    scored = begun(translator.score_stream(pairs, skip_long, tag=tag or "", split_sentences=split_sentences))
    if minimum is None:
        _write_scores(result.score for _, result in scored if result is not None)
    else:
        _write_pairs(scored, minimum)


def _write_scores(scores: Iterable[float]) -> None:
    """A score a line. Raises: StorageError, BrokenPipeError, and what scoring raises."""
    with open_output(None) as out:
        for score in scores:
            out.write(f"{score:.6f}\n")


def _write_pairs(scored: Iterable[tuple[str, Translation | None]], minimum: float) -> None:
    """The pairs with at least this score, a tab between, and on stderr how many; raises the same.

    Pairs with a tab of their own are left out, for nobody could tell where the target begins; also those without a
    score, which are too long for the model.
    """
    num_pairs = num_kept = num_with_tabs = num_long = 0
    with open_output(None) as out:
        for source, result in scored:
            num_pairs += 1
            if result is None:
                num_long += 1
            elif result.score < minimum:
                continue
            elif "\t" in source or "\t" in result.text:
                num_with_tabs += 1
            else:
                num_kept += 1
                out.write(f"{source}\t{result.text}\n")
    faults = ((num_long, "too long"), (num_with_tabs, "with tabs in them"))
    left_out = ", ".join(f"{number:,} {what}" for number, what in faults if number)
    also = f"; left out whatever their score: {left_out}" if left_out else ""
    say(f"kept {num_kept:,} of {num_pairs:,} pairs{also}")
