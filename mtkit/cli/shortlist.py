"""`mtkit shortlist`: make the table of target tokens among which a model's search chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import options
from mtkit.cli.terminal import open_stdout, print_stderr, print_stdout
from mtkit.cli.translators import load_translator, resolve_decoding
from mtkit.errors import ConfigError
from mtkit.formatting import format_count
from mtkit.translation.options import LineProgress

if TYPE_CHECKING:
    from mtkit.config.sections import DataConfig


def shortlist(
    model: options.ModelPath,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs to align: .tsv, .tmx, …; repeat for two parallel files. Default: those that the model was "
            "trained on."
        ),
    ] = None,
    first: Annotated[
        int, typer.Option(min=0, help="Most frequent target tokens, which every sentence may use.")
    ] = 100,
    best: Annotated[int, typer.Option(min=1, help="Most probable target tokens of each source token.")] = 100,
    aligner: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model with the same tokenizers that aligns better than MODEL."),
    ] = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Make a model's shortlist: the target tokens that each source token may become, for a faster search.

    The pairs, of more than 2 million an even sample, are aligned by the attention of the model. A sentence may use the
    --first most frequent target tokens, the --best of each of its source tokens, and what a prefix or constraint needs.
    The table is written beside the tokenizers of the model; `mtkit translate` then uses it unless --no-shortlist is
    given.
    """
    open_stdout()  # if it is closed, fail before anything is aligned
    decoding = resolve_decoding(model, {"batch_tokens": batch_tokens, "shortlist": False})
    translator = load_translator(aligner or model, decoding, device, "auto")
    from mtkit.data.encoding import encode_corpus
    from mtkit.data.sources import open_sources
    from mtkit.translation.loading import load_own_tokenizers
    from mtkit.translation.model_folder import data_of_run, find_checkpoint, read_model_config
    from mtkit.translation.shortlist import (
        MOST_ALIGNED,
        ShortlistSize,
        make_shortlist,
        measure_coverage,
        save_shortlist,
    )

    folder = find_checkpoint(Path(model))
    tokenizers = load_own_tokenizers(folder)
    if aligner is not None and translator.tokenizers.fingerprint != tokenizers.fingerprint:
        what = f"its tokenizer differs from that of {model}"
        raise ConfigError(what, where="--aligner", hint="leave it out; then the model itself aligns")
    config = read_model_config(Path(model), folder, "name another model", to_translate=True)
    data = data_of_run(config, Path(model))
    say = (lambda line: None) if quiet else print_stderr
    data = _with_pairs(data, pairs, say) if pairs else data
    sources = open_sources(data.train, data, "train")
    corpus = encode_corpus(sources, tokenizers, data, LineProgress(say, task="encoding"), say)
    num_aligned = min(len(corpus), MOST_ALIGNED)
    report = LineProgress(say, num_aligned)
    size = ShortlistSize(first, best)
    found = make_shortlist(translator.ensemble, corpus, size, decoding.batch_tokens, report)
    file = save_shortlist(Path(model), found, tokenizers)
    coverage = measure_coverage(found, corpus, tokenizers)
    of_all = "" if num_aligned == len(corpus) else f" of {len(corpus):,}"
    print_stdout(
        f"{format_count(num_aligned, 'pair')}{of_all}: {coverage.describe(tokenizers.tgt.num_pieces)}\n"
        f"written to {file}\n"
    )


def _with_pairs(data: DataConfig, paths: Sequence[str], say: Callable[[str], None]) -> DataConfig:
    """Return the data section of a config with other training pairs.

    Raises:
        ConfigError: If the columns of a file cannot be recognized.
        DataError: If a file cannot be read.
    """
    from mtkit.config.sections import SourceConfig
    from mtkit.data.recognize import recognize

    found = recognize(paths, (data.src, data.tgt))
    for note in found.notes:
        say(note)
    train = tuple(SourceConfig.model_validate(entry) for entry in found.entries)
    return data.model_copy(update={"train": train, "root": str(Path.cwd())})
