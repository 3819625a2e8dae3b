"""Commands in the order of `mtkit --help`, each with the example at the end of its own help."""

from __future__ import annotations

from typing import Annotated

import typer

from mtkit.cli.backtranslate import backtranslate
from mtkit.cli.benchmark import benchmark_data, benchmark_train, benchmark_translate
from mtkit.cli.calibrate import calibrate
from mtkit.cli.config import schema, show
from mtkit.cli.diagnose import diagnose
from mtkit.cli.distill import distill
from mtkit.cli.diversify import diversify
from mtkit.cli.evaluate import evaluate
from mtkit.cli.explain import explain
from mtkit.cli.export import export
from mtkit.cli.finetune import finetune
from mtkit.cli.import_model import import_model
from mtkit.cli.init import init
from mtkit.cli.report import report
from mtkit.cli.runs import runs
from mtkit.cli.score import score
from mtkit.cli.shortlist import shortlist
from mtkit.cli.sweep import sweep
from mtkit.cli.train import average, check, merge, train
from mtkit.cli.translate import translate


def _print_version(value: bool) -> None:
    """Print the version and exit, if --version is given."""
    if value:
        from mtkit import __version__

        typer.echo(f"mtkit {__version__}")
        raise typer.Exit


def _main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Add the traceback to error messages.")] = False,
) -> None:
    """Define the options of `mtkit` itself."""


app = typer.Typer(
    name="mtkit",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train your own machine-translation system: from sentence pairs to a scored translator.",
    epilog="Example: `mtkit train configs/quickstart.yaml`",
    callback=_main_options,
)
_config_app = typer.Typer(
    help="Print the schema of configs, or a config with the value of every key.",
    epilog="Example: `mtkit config schema`",
)
_benchmark_app = typer.Typer(
    help="Measure the speed of mtkit on this machine.",
    epilog="Example: `mtkit benchmark train configs/small.yaml`",
)

app.command(epilog="Example: `mtkit train configs/quickstart.yaml training.max_steps=400`")(train)
app.command(epilog="Example: `echo 'A dog runs.' | mtkit translate runs/my-run`")(translate)
app.command(epilog="Example: `mtkit score runs/my-run source.txt translation.txt`")(score)
app.command(
    epilog="Example: `mtkit evaluate hyps.txt --ref refs.txt`, or `mtkit evaluate --model runs/my-run`"
)(evaluate)
app.command(epilog="Example: `mtkit explain runs/my-run 'A dog runs.'`")(explain)
app.command(epilog="Example: `mtkit calibrate runs/my-run`")(calibrate)
app.command(epilog="Example: `mtkit report runs/my-run`, or `mtkit report runs/a runs/b -o compare.html`")(
    report
)
app.command(epilog="Example: `mtkit runs --sort best`")(runs)
app.command(epilog="Example: `mtkit diagnose runs/my-run`")(diagnose)
app.command(epilog="Example: `mtkit check config.yaml`")(check)
app.command(
    epilog="Example: `mtkit sweep my.yaml training.learning_rate=0.001,0.002,0.004 model.dropout=0.1,0.2,0.3`"
)(sweep)
app.command(epilog="Example: `mtkit init data/train.en.gz data/train.de.gz -o my.yaml`")(init)
app.command(epilog="Example: `mtkit average runs/my-run --last 5 -o runs/my-run-average`")(average)

app.command("import", epilog="Example: `mtkit import Helsinki-NLP/opus-mt-en-fr -o models/en-fr`")(
    import_model
)

app.command(epilog="Example: `mtkit finetune models/en-fr --data client.tmx -o runs/client`")(finetune)
app.command(epilog="Example: `mtkit backtranslate runs/de-en mono.de --tag '<bt>' -o bt.tsv`")(backtranslate)
app.command(epilog="Example: `mtkit diversify config.yaml --models 3 -o runs/diverse`")(diversify)
app.command(epilog="Example: `mtkit merge runs/client -o models/client`")(merge)
app.command(epilog="Example: `mtkit export runs/my-run --to ctranslate2 --type int8 -o my-run-int8`")(export)

app.command(epilog="Example: `mtkit distill runs/teacher --student configs/student.yaml -o runs/student`")(
    distill
)
app.command(epilog="Example: `mtkit shortlist runs/my-run`")(shortlist)

app.add_typer(_config_app, name="config")
_config_app.command(epilog="Example: `mtkit config schema > mtkit.schema.json`")(schema)
_config_app.command(epilog="Example: `mtkit config show config.yaml training.max_steps=100`")(show)

app.add_typer(_benchmark_app, name="benchmark")
_benchmark_app.command("data", epilog="Example: `mtkit benchmark data config.yaml --pairs 10000000`")(
    benchmark_data
)
_benchmark_app.command(
    "train", epilog="Example: `mtkit benchmark train configs/base.yaml --synthetic --against torch`"
)(benchmark_train)
_benchmark_app.command(
    "translate", epilog="Example: `mtkit benchmark translate runs/my-run test.en --against ctranslate2`"
)(benchmark_translate)
