"""The command line: parse, call, print. The only place that ends the process; torch is imported by what needs it.

Exit codes: 0 ok, 1 a bug, 2 usage or config, 3 data, 4 training failed, 5 disk or checkpoint,
130 interrupted, 141 the reader of our output went away, 143 terminated after saving.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from mtkit.errors import ConfigError, DataError, MtkitError, StorageError

if TYPE_CHECKING:
    from rich.console import Console

    from mtkit.config import DecodingConfig
    from mtkit.evaluation.metrics import Score

app = typer.Typer(
    name="mtkit",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train your own machine-translation system: from text pairs to a scored translator.",
    epilog="Example: `mtkit train configs/quickstart.yaml`",
)
config_app = typer.Typer(help="About the YAML itself.", epilog="Example: `mtkit config schema`")
app.add_typer(config_app, name="config")

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file; `-` is stdin.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replace keys, for example `training.max_steps=100`."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
BeamSize = Annotated[int | None, typer.Option(min=1, help="Hypotheses kept at each step; 1 is greedy.")]
T = TypeVar("T")
UsageError: Any = typer.BadParameter.__bases__[
    0
]  # newer typers carry their own click: this is the one in use
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PENALTY_HELP = "alpha of the GNMT length penalty; 0 is off."
LengthPenalty = Annotated[float | None, typer.Option(help=PENALTY_HELP)]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Source pieces x beam in a batch.")]


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from mtkit import __version__

        typer.echo(f"mtkit {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Add the traceback to error messages.")] = False,
) -> None:
    """Options of every command."""


@app.command(epilog="Example: `mtkit train configs/quickstart.yaml training.max_steps=400`")
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier run left in the run folder.")
    ] = False,
) -> None:
    """Train a model, or go on where the run folder stands; then translate and score the test sets."""
    from mtkit.configfile import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.training.signals import Signals

    console = make_console(sys.stdout)
    # of several processes that torchrun started, one speaks
    console.quiet = os.environ.get("RANK", "0") != "0"
    with Signals().handled() as early:  # a signal while torch is loaded, too; it would be lost in an import
        with early.protected():
            from mtkit.training.run import train as run_training

        result = run_training(loaded, fresh=fresh, console=console)
    console.print(
        f"\nThe model is in {result.run}. Next:\n    mtkit translate {shlex.quote(str(result.run))} < input.txt",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command(epilog="Example: `echo 'A dog runs.' | mtkit translate runs/my-run`")
def translate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILES]...", help="Text files; default stdin.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="File instead of stdout.")] = None,
    beam_size: BeamSize = None,
    n_best: Annotated[
        int | None,
        typer.Option(min=1, help="Give so many translations, as `LINE ||| TEXT ||| SCORE`; widens the beam."),
    ] = None,
    length_penalty: LengthPenalty = None,
    max_length_ratio: Annotated[
        float | None, typer.Option(help="Longest translation: ratio x source pieces + 20.")
    ] = None,
    batch_tokens: BatchTokens = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Print score and tab before each translation.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Translate text: one line in, one line out, in order; an empty line stays empty."""
    from mtkit.files import read_lines

    refuse_overwriting(output, files or [])
    lines = chain.from_iterable(read_lines(path) for path in files or ["-"])
    translator = load_translator(
        model, device, precision,
        beam_size=beam_size, n_best=n_best, length_penalty=length_penalty, max_length_ratio=max_length_ratio,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    if not quiet:
        translator.on_batch = Ticker()
    translations = begun(translator.translate_n_best(lines))  # a fault found now leaves an old output alone
    with open_output(output) as out:
        for number, found in enumerate(translations, 1):
            if n_best is not None:
                out.writelines(f"{number} ||| {t.text} ||| {t.score:.6f}\n" for t in found)
            else:
                out.write(f"{found[0].score:.6f}\t{found[0].text}\n" if scores else f"{found[0].text}\n")


@app.command(epilog="Example: `mtkit score runs/my-run source.txt translation.txt`")
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")],
    src: Annotated[str, typer.Argument(metavar="SRC", help="Source lines.")],
    tgt: Annotated[str, typer.Argument(metavar="TGT", help="A translation of each.")],
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Print the model's score of given translations: what `translate --scores` would print for them."""
    from mtkit.files import read_lines

    translator = load_translator(
        model, device, precision, length_penalty=length_penalty, batch_tokens=batch_tokens
    )
    srcs, tgts = list(read_lines(src)), list(read_lines(tgt))
    with open_output(None) as out:
        out.writelines(f"{scored.score:.6f}\n" for scored in translator.score(srcs, tgts))


@app.command(
    epilog="Example: `mtkit evaluate hyps.txt --ref refs.txt`, or `mtkit evaluate --model runs/my-run`"
)
def evaluate(
    hyps: Annotated[
        str | None, typer.Argument(metavar="[HYPS]", help="Translations to score; `-` is stdin.")
    ] = None,
    ref: Annotated[list[str] | None, typer.Option(help="References; repeat the option for several.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Translate with this model instead of reading HYPS.")
    ] = None,
    src: Annotated[str | None, typer.Option(help="Source lines for --model.")] = None,
    test_set: Annotated[
        str | None, typer.Option(help="One of sacreBLEU's test sets, for example wmt20.")
    ] = None,
    langs: Annotated[str | None, typer.Option(help="Languages of the test set, for example en-de.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="bleu, chrf, chrf++, ter; repeat for several.")
    ] = None,
    tokenize: Annotated[str | None, typer.Option(help="sacreBLEU's tokenizer for BLEU.")] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    resamples: Annotated[int, typer.Option(min=0, help="Of the 95 % bootstrap interval; 0 for none.")] = 1000,
    beam_size: BeamSize = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the numbers alone.")] = False,
) -> None:
    """Score translations against references: from a file, or by translating a test set with a model.

    With --model alone, the test sets of the model's own config are translated.
    """
    from mtkit.evaluation import metrics
    from mtkit.files import read_lines

    names = metric or ["bleu", "chrf++", "ter"]
    metrics.check_metrics(names, tokenize=tokenize)
    if (hyps is None) == (model is None):
        raise ConfigError("give either HYPS or --model", hint="mtkit evaluate --help")
    if src is not None and (model is None or not ref):
        raise ConfigError("--src goes with --model and --ref", hint="mtkit evaluate --help")
    if resamples == 1:
        raise ConfigError(
            "1 resample gives no interval", where="--resamples", hint="0 for none; 1000 is usual"
        )
    config = None
    tgt_language = langs.rpartition("-")[2] if langs else None
    if model is not None:
        translator, config = load_translator_and_config(model, device, precision, beam_size=beam_size)
        if not (quiet or as_json):
            translator.on_batch = Ticker()
        langs, tgt_language = langs or f"{config.data.src}-{config.data.tgt}", tgt_language or config.data.tgt
    metrics.check_metrics(names, tokenize=tokenize, tgt=tgt_language)
    results = {}
    for name, srcs, refs in reference_sets(src, ref, test_set, langs, config):
        if hyps is None:
            found = [translation.text for translation in translator.translate(srcs or [])]
        else:
            found = list(read_lines(hyps))
        refuse_unequal(src or hyps or name, found, ref or [name], refs)
        if not found:
            raise DataError("nothing to score", where=src or hyps, hint="it has no lines")
        results[name] = metrics.score(
            found,
            refs,
            names,
            tokenize=tokenize,
            lowercase=lowercase,
            tgt=tgt_language,
            num_bootstrap=resamples,
        )
    print_scores(results, as_json=as_json, quiet=quiet)


References = tuple[str, list[str] | None, list[list[str]]]


def reference_sets(
    src: str | None, ref: list[str] | None, test_set: str | None, langs: str | None, config: Any
) -> list[References]:
    """(name, sources, reference streams) of what is to be evaluated."""
    from mtkit.files import read_lines

    if ref and test_set is not None:
        raise ConfigError("give either --ref or --test-set", hint="mtkit evaluate --help")
    if ref:
        if config is not None and src is None:
            raise ConfigError("--model and --ref need --src: what to translate", hint="mtkit evaluate --help")
        srcs = None if src is None else list(read_lines(src))
        refs = [list(read_lines(path)) for path in ref]
        if src is not None and srcs is not None:
            refuse_unequal(src, srcs, ref, refs)
        return [(ref[0], srcs, refs)]
    if test_set is not None:
        from mtkit.evaluation import metrics

        if langs is None or langs.count("-") != 1:
            raise ConfigError("--test-set needs --langs", hint="for example --langs en-de")
        srcs, refs = metrics.test_set(test_set, *langs.split("-"))
        return [(test_set, srcs, refs)]
    if config is None:
        raise ConfigError("nothing to compare with", hint="give --ref FILE or --test-set NAME")
    from mtkit.data.sources import open_sources, read_sides

    if not config.data.test:
        raise ConfigError("the model's config names no test set", hint="give --src and --ref, or --test-set")
    sides = (
        (source.name, read_sides(source)) for source in open_sources(config.data.test, config.data, "test")
    )
    return [(name, srcs, [tgts]) for name, (srcs, tgts) in sides]


def refuse_unequal(
    name: str, hyps: Sequence[str], ref_names: Sequence[str], refs: Sequence[Sequence[str]]
) -> None:
    """Check that every file of references has a line for each translation. Raises: DataError."""
    for ref_name, stream in zip(ref_names, refs, strict=False):
        if len(stream) != len(hyps):
            what = f"{len(hyps):,} lines, but {len(stream):,} in {ref_name}"
            raise DataError(what, where=name, hint="line n of one goes with line n of the other")


def print_scores(results: dict[str, list[Score]], *, as_json: bool, quiet: bool) -> None:
    """Scores of each test set: JSON, numbers alone, or lines with signatures."""
    if as_json:
        sets = [{"name": name, "scores": [s.as_dict() for s in scores]} for name, scores in results.items()]
        print_text(json.dumps(sets, indent=2, ensure_ascii=False) + "\n")
        return
    for name, scores in results.items():
        if len(results) > 1 and not quiet:
            print_text(f"{name}\n")
        for result in scores:
            print_text(f"{result.value:.2f}\n" if quiet else f"{result.format()}\n")


@app.command(epilog="Example: `mtkit check config.yaml`")
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """See what `train` would do, without training: config, data, tokenizer, model, memory, largest batch, disk."""
    from mtkit.configfile import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.training.check import check_run

    check_run(loaded, make_console(sys.stdout))


@app.command(epilog="Example: `mtkit average runs/my-run --last 5 -o runs/my-run-average`")
def average(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS...", help="A run folder, or checkpoint folders of one run.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The new folder.")],
    last: Annotated[int | None, typer.Option(min=2, help="The newest checkpoints of the run.")] = None,
    best: Annotated[int | None, typer.Option(min=2, help="Those with the best validation.")] = None,
) -> None:
    """Average the weights of checkpoints of one run into a new model folder, with which `translate` works.

    Checkpoints that are to be averaged must be there: see `training.keep_last`, `training.average_last`.
    """
    from mtkit.training.averaging import average as write_average

    made = write_average([Path(model) for model in models], Path(output), last=last, best=best)
    names = ", ".join(str(source) for source in made.sources)
    print_text(f"the average of {len(made.sources)} checkpoints is in {made.folder}: {names}\n")


@config_app.command(epilog="Example: `mtkit config schema > mtkit.schema.json`")
def schema() -> None:
    """Print a JSON Schema of the YAML, with which editors complete and check it."""
    from mtkit.configfile import config_schema

    print_text(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n")


@config_app.command(epilog="Example: `mtkit config show config.yaml training.max_steps=100`")
def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved config: every key with its value."""
    from mtkit.configfile import dump_config, load_config

    print_text(dump_config(load_config(config, overrides or ())))


# --- helpers ------------------------------------------------------------------------------------------------------


def make_console(stream: TextIO) -> Console:
    """Where progress is shown."""
    from rich.console import Console

    class PipeConsole(Console):
        """If the reader goes away, rich would leave without a word; here it is an error like any other."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(file=stream)


def load_translator(model: str, device: str, precision: str, **decoding: Any) -> Any:
    """A translator with the run's own decoding, but for the options that are given."""
    return load_translator_and_config(model, device, precision, **decoding)[0]


def load_translator_and_config(model: str, device: str, precision: str, **decoding: Any) -> tuple[Any, Any]:
    """A translator and the config it was trained with."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(
            f"{precision!r} is no precision", where="--precision", hint="auto, fp32, bf16 or fp16"
        )
    from mtkit.decoding.loading import load_model
    from mtkit.decoding.translator import Translator
    from mtkit.device import choose_device

    chosen = choose_device(device, "--device")
    config, tokenizers, network = load_model(Path(model))
    options = change_decoding(
        config.decoding, {key: value for key, value in decoding.items() if value is not None}
    )
    return Translator.of(config, tokenizers, network, options, chosen, precision), config


def change_decoding(decoding: DecodingConfig, changes: dict[str, Any]) -> DecodingConfig:
    """The section with some keys changed. Raises: ConfigError: a value is out of range."""
    from pydantic import ValidationError

    values = decoding.model_dump() | changes
    if "n_best" in changes and "beam_size" not in changes:
        values["beam_size"] = max(decoding.beam_size, changes["n_best"])
    elif "n_best" not in changes:
        values["n_best"] = 1
    try:
        return type(decoding).model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        option = "--" + "-".join(map(str, detail["loc"])).replace("_", "-") if detail["loc"] else None
        what = detail["msg"].removeprefix("Value error, ")
        raise ConfigError(what, where=option, hint="--help tells the options") from error


@contextmanager
def open_output(path: str | None) -> Iterator[TextIO]:
    """stdout, or a file; what was written is flushed whatever happens. Raises: StorageError, BrokenPipeError."""
    from mtkit.files import storage_errors

    try:
        with storage_errors(path or "stdout"):
            if path is None:
                sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
                yield sys.stdout
                sys.stdout.flush()
            else:
                with open(path, "w", encoding="utf-8", newline="\n") as file:
                    yield file
    except StorageError as error:
        if isinstance(error.__cause__, BrokenPipeError):  # the reader went away: no fault of the disk
            raise BrokenPipeError from error  # without its errno, of which typer would make an exit code of its own
        raise


def print_text(text: str) -> None:
    """Text to stdout. Raises: StorageError, BrokenPipeError."""
    with open_output(None) as out:
        out.write(text)


def refuse_overwriting(output: str | None, inputs: Sequence[str]) -> None:
    """Check that the output is none of the inputs, which it would empty. Raises: ConfigError."""
    if output is not None and os.path.isfile(output):
        for path in inputs:
            if os.path.isfile(path) and os.path.samefile(path, output):
                what = f"{output} is an input too"
                raise ConfigError(what, where="--output", hint="write to another file")


def begun(items: Iterator[T]) -> Iterator[T]:
    """The same items; the first is made now."""
    return chain(list(islice(items, 1)), items)


class Ticker:
    """Says on stderr, every few seconds, how many sentences were translated and how fast."""

    def __init__(self) -> None:
        self.start = self.said = time.monotonic()
        self.done = 0

    def __call__(self, num_sentences: int) -> None:
        """So many more."""
        self.done += num_sentences
        now = time.monotonic()
        if now - self.said > 3:
            speed = self.done / (now - self.start)
            print(f"{self.done:,} sentences, {speed:,.0f} sentences/s", file=sys.stderr)
            self.said = now


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command; every error becomes one line and an exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    try:
        code = app(arguments, prog_name="mtkit", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # what some versions of typer make of a Ctrl-C
            return fail("interrupted", 130, debug)
        return code if isinstance(code, int) else 0
    except MtkitError as error:
        return fail(f"error: {error}", error.exit_code, debug)
    except typer.Abort:
        return fail("interrupted", 130, debug)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "mtkit"
        usage = ConfigError(error.format_message().rstrip("."), hint=f"{command} --help")
        return fail(f"error: {usage}", usage.exit_code, debug)
    except BrokenPipeError:
        return fail("stdout: the reader went away; what it read is complete lines", 141, debug)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        full = StorageError(os.strerror(error.errno).lower(), where="stdout", hint="free some space")
        return fail(f"error: {full}", full.exit_code, debug)
    except KeyboardInterrupt:
        return fail("interrupted", 130, debug)
    except BaseException as error:
        if (code := getattr(error, "exit_code", None)) in (130, 143):  # training's Interrupted
            if getattr(error, "saved", False):
                return fail("stopped after saving: run the same command again to go on", code, debug)
            return fail("stopped before training began: run the same command again", code, debug)
        raise


def fail(message: str, code: int, debug: bool) -> int:
    """One line on stderr, and the traceback if asked for."""
    if debug:
        traceback.print_exc()
    with suppress(OSError):
        print(message, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter, which flushes at its end, must not find out again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    main()
