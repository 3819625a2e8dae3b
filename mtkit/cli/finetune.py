"""`mtkit finetune`: write a config that continues from a model on other data, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.cli import options
from mtkit.cli.terminal import print_stderr, print_stdout
from mtkit.cli.train import train_and_report
from mtkit.errors import ConfigError, DataError, StorageError
from mtkit.formatting import format_count
from mtkit.torchrun import is_main_process

if TYPE_CHECKING:
    from mtkit.training.finetuning import FineTuning


def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Run or model folder, or a model on the Hugging Face hub: Helsinki-NLP/opus-mt-en-fr.",
        ),
    ],
    overrides: options.Overrides = None,
    *,
    data: Annotated[
        list[str],
        typer.Option(help="Pairs to learn: .tmx, .xlf, .tsv, .csv, .xlsx, …; repeat for two parallel files."),
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="General pairs against forgetting; at most as many in each epoch as of --data, always other ones."
        ),
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option(
            help="Validation pairs; repeat for two parallel files. Default: valid… or dev… next to --data."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Test pairs; repeat for more. Default: test… next to --data."),
    ] = None,
    tag: Annotated[
        str,
        typer.Option(
            help="Token before each source line of --data, --valid and --test, e.g. `>>fra<<`; added if it is new."
        ),
    ] = "",
    keep_tag: Annotated[
        str | None,
        typer.Option(help="Token before each source line of --keep. Default: that of --tag; '' for none."),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Run folder; the config becomes RUN.yaml.")],
    fresh: options.Fresh = False,
) -> None:
    """Fine-tune a model on a translation memory or other pairs: write a config for that, and train.

    3 epochs with a weight decay of 0.01 and a learning rate of 2e-5, more for models narrower than 512, at most 5e-4;
    more epochs for a few hundred pairs, a validation after each. The same command resumes a run that was interrupted.
    """
    from mtkit.checkpoint import CONFIG_FILE
    from mtkit.config.loading import load_config
    from mtkit.files import make_folder, write_text
    from mtkit.interop.initial import find_model
    from mtkit.training.finetuning import WRITTEN_BY, FineTuningData, make_finetuning

    if keep_tag is not None and not keep:
        raise ConfigError("--keep-tag needs --keep", hint="mtkit finetune --help")
    keep_tag = tag if keep_tag is None else keep_tag
    for option, value in (("--tag", tag), ("--keep-tag", keep_tag)):
        if value and value.split() != [value]:
            raise ConfigError(f"{value!r} is blank or has a space", where=option, hint="give one token")
    files = FineTuningData(data, keep or (), valid or (), test or (), tag, keep_tag)
    say = print_stderr if is_main_process() else lambda line: None
    made = make_finetuning(model, files, output, overrides or (), find_model, say)
    path = Path(f"{output.rstrip('/')}.yaml")
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if before is not None and before != made.text:
        if WRITTEN_BY not in before:
            hint = "move it away, or choose another run folder"
            raise ConfigError("not written by `mtkit finetune`", where=str(path), hint=hint)
        if not fresh:
            hint = "choose another run folder, resume that run with `mtkit train`, or start over with --fresh"
            raise ConfigError("a config of another run", where=str(path), hint=hint)
    make_folder(path.parent)
    write_text(path, made.text)
    if is_main_process():
        _report(made, path)
    run_config = Path(output) / CONFIG_FILE
    run_config_before = run_config.read_bytes() if run_config.is_file() else None
    try:
        train_and_report(load_config(path), fresh=fresh)
    except (ConfigError, DataError, StorageError):
        if before is None:
            # A config that cannot be trained would refuse the corrected command.
            if not (Path(output) / "checkpoints").exists():
                path.unlink(missing_ok=True)
        elif (
            is_main_process()
            and run_config_before is not None
            and run_config.read_bytes() == run_config_before
        ):
            # Nothing was started over: the earlier run is still there, and this is its config.
            write_text(path, before)
        raise


def _report(made: FineTuning, path: Path) -> None:
    """Print what will be trained."""
    kept = f" and {made.num_kept:,} general ones" if made.num_kept else ""
    pairs, epochs = format_count(made.num_pairs, "pair"), format_count(made.num_epochs, "epoch")
    print_stdout(f"{path}: {pairs}{kept} in each of {epochs}\n")
    for note in made.notes:
        print_stdout(f"{note}\n")
    for tag in made.new_tags:
        print_stdout(f"{tag} is not in the vocabulary of the model: it is added as a new token\n")
    if "valid" in made.missing:
        print_stdout(
            "no validation pairs found next to the data (name some with --valid): the last weights are kept\n"
        )
