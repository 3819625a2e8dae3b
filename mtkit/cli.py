"""The command line: parse, call, print. The only place that ends the process; torch is imported by what needs it.

Exit codes: 0 ok, 1 a bug, 2 usage or config, 3 data, 4 training failed, 5 disk or checkpoint,
130 interrupted, 141 the reader of our output went away, 143 terminated after saving.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar, cast

import typer

from mtkit.errors import ConfigError, DataError, MtkitError, StorageError

if TYPE_CHECKING:
    from rich.console import Console

    from mtkit.config import DecodingConfig
    from mtkit.decoding.translation import Translation
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
benchmark_app = typer.Typer(
    help="How fast mtkit is on this machine.", epilog="Example: `mtkit benchmark train configs/small.yaml`"
)
app.add_typer(benchmark_app, name="benchmark")

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
EXPECTED_CODES = (130, 143)
"""Of ends that were asked for: of several processes one says so."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PENALTY_HELP = "alpha of the length penalty; 0 is off."
LengthPenalty = Annotated[float | None, typer.Option(help=PENALTY_HELP)]
PenaltyKind = Annotated[
    str | None, typer.Option(help="gnmt: ((5 + length) / 6) ** alpha; simple: length ** alpha.")
]
Ensemble = Annotated[
    list[str] | None,
    typer.Option(help="A further model with the same vocabulary, whose vote counts too; repeat for several."),
]
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
    console.quiet = not is_main_process()
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the output of a stopped job ends (needs -o).")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Translate one part of the files' lines: 2/8 is the second of eight.")
    ] = None,
    read_ahead: Annotated[
        int | None, typer.Option(min=1, help="Lines read before they are translated together; 4096.")
    ] = None,
    beam_size: BeamSize = None,
    n_best: Annotated[
        int | None,
        typer.Option(min=1, help="Give so many translations, as `LINE ||| TEXT ||| SCORE`; widens the beam."),
    ] = None,
    length_penalty: LengthPenalty = None,
    penalty_kind: PenaltyKind = None,
    coverage_penalty: Annotated[
        float | None, typer.Option(min=0, help="beta of the coverage penalty; 0 is off.")
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option(
            help="End a sentence when a beam of hypotheses has `finished`; when also the best of them is "
            "`unbeaten` by live ones; or when it is `certain` that none can win."
        ),
    ] = None,
    max_length_ratio: Annotated[
        float | None, typer.Option(help="Longest translation: ratio x source pieces + 20.")
    ] = None,
    min_pieces: Annotated[int | None, typer.Option(min=0, help="Shortest translation, in pieces.")] = None,
    no_repeat_ngram: Annotated[
        int | None, typer.Option(min=0, help="No sequence of so many pieces comes twice; 0 is off.")
    ] = None,
    suppress: Annotated[
        list[str] | None, typer.Option(help="A text whose pieces never appear; repeat for several.")
    ] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Groups of diverse beam search.")] = None,
    diversity: Annotated[
        float | None, typer.Option(min=0, help="Cost of a piece that an earlier group chose.")
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw translations from the model instead of searching.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Of samples: below 1 sharper.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Samples take the best so many pieces.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Samples take pieces of this probability in all.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Samples take no piece less probable.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of samples.")] = None,
    mbr: Annotated[
        str | None, typer.Option(help="Minimum Bayes risk with bleu, chrf, chrf++ or ter as utility.")
    ] = None,
    mbr_candidates: Annotated[
        int | None, typer.Option(min=2, help="Samples, or hypotheses, among which --mbr chooses.")
    ] = None,
    ensemble: Ensemble = None,
    prefix: Annotated[
        str | None, typer.Option(help="File with the beginning of each line's translation.")
    ] = None,
    alternatives: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Give so many next words behind each line's --prefix (or first words), each with the best translation "
            "that goes on so, as `LINE ||| WORD ||| PROBABILITY ||| TRANSLATION`; no word is the end.",
        ),
    ] = None,
    constraints: Annotated[
        str | None,
        typer.Option(
            help="File with what must appear, tab-separated for each line; `a|b` is one or the other."
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Target-language tag before each source line, a piece such as `<2de>`.")
    ] = None,
    split_sentences: Annotated[
        bool, typer.Option("--split-sentences", help="Lines are paragraphs: translate sentence by sentence.")
    ] = False,
    protect: Annotated[
        bool, typer.Option("--protect", help="Numbers, URLs and mark-up tags come through as they are.")
    ] = False,
    alignment: Annotated[
        str | None,
        typer.Option(help="`pharaoh` adds ` ||| 0-0 1-2`: which source word, from 0, became which word."),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="File (.npz) of the attention of each line: layers x target x source.")
    ] = None,
    batch_tokens: BatchTokens = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Print score and tab before each translation.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Translate text: one line in, one line out, in order; an empty line stays empty.

    Output flows while input is read. Started by torchrun with -o OUT, every process translates its part into
    OUT.1-of-N, OUT.2-of-N …
    """
    from mtkit.decoding.jobs import Job, Shard, num_done

    part = Shard.parse(shard) if shard else Shard.of_process(os.environ)
    if shard is None and part.count > 1:
        if output is None:
            raise ConfigError(
                "several processes need -o", where="--output", hint="each writes a file of its own"
            )
        output = part.output(output)
        attention = None if attention is None else part.output(attention)
    if alignment not in (None, "pharaoh"):
        raise ConfigError(f"{alignment!r} is no format of alignments", where="--alignment", hint="pharaoh")
    if resume and attention is not None:
        raise ConfigError("--attention cannot be resumed", where="--attention", hint="leave out --resume")
    if alternatives is not None:
        others = {
            "--constraints": constraints, "--n-best": n_best, "--sample": sample, "--mbr": mbr, "--protect": protect,
            "--alignment": alignment, "--attention": attention, "--scores": scores, "--resume": resume,
            "--split-sentences": split_sentences,
        }  # fmt: skip
        for option, value in others.items():
            if value:
                raise ConfigError(
                    f"{option} does not go with --alternatives", where=option, hint="leave it out"
                )
    if resume and output is None:
        raise ConfigError("--resume needs -o: what was written says where to go on", where="--resume")
    inputs = [*(files or ["-"])]
    read = [*inputs, *filter(None, [prefix, constraints])]
    refuse_overwriting(output, read)
    refuse_overwriting(attention, [*read, *filter(None, [output])], "--attention")
    job = Job.plan(inputs, part, num_done(output, n_best is not None) if resume and output else 0)
    translator = load_translator(
        model, device, precision, ensemble=ensemble,
        beam_size=beam_size, n_best=n_best, length_penalty=length_penalty, max_length_ratio=max_length_ratio,
        batch_tokens=batch_tokens, penalty_kind=penalty_kind, coverage_penalty=coverage_penalty, stop=stop,
        min_pieces=min_pieces, no_repeat_ngram=no_repeat_ngram, suppress=tuple(suppress) if suppress else None,
        groups=groups, diversity=diversity, sample=sample or None, temperature=temperature, top_k=top_k,
        top_p=top_p, epsilon=epsilon, sample_seed=seed, mbr=mbr, mbr_candidates=mbr_candidates,
    )  # fmt: skip
    translator.first_number, translator.lines_at_once = job.first, read_ahead
    translator.split = split_sentences
    translator.keeps_links, translator.keeps_attention = alignment is not None, attention is not None
    if not quiet:
        translator.on_batch = Ticker(job.total)
    wanted = requests(job, prefix, constraints, tag, translator)
    if alternatives is not None:
        write_alternatives(translator.alternatives(wanted, alternatives), job.first + 1, output)
        return
    from mtkit.decoding.protected import translate_protected

    found = translate_protected(translator, wanted) if protect else translator.translate_n_best(wanted)
    translations = begun(found)  # a fault found now leaves an old output alone
    from mtkit.decoding.matrices import MatrixFile

    with MatrixFile(attention) as matrices, open_output(output, append=resume) as out:
        for number, best in enumerate(translations, job.first + 1):
            matrices.add(number, best[0].aligned)
            texts = [with_links(t) for t in best] if alignment is not None else [t.text for t in best]
            if n_best is not None:
                rows = zip(texts, best, strict=True)
                out.write("".join(f"{number} ||| {text} ||| {t.score:.6f}\n" for text, t in rows))
            else:
                out.write(f"{best[0].score:.6f}\t{texts[0]}\n" if scores else f"{texts[0]}\n")


def with_links(translation: Translation) -> str:
    """The text and which source word, from 0, became which word of it, in Pharaoh's format."""
    links = " ".join(f"{s}-{t}" for s, t in translation.links)
    return f"{translation.text} ||| {links}".rstrip()


def write_alternatives(found: Iterator[Any], first: int, output: str | None) -> None:
    """The next words of each line, from line number `first` on."""
    lines = begun(found)  # a fault found now leaves an old output alone
    with open_output(output) as out:
        for number, alternatives in enumerate(lines, first):
            for a in alternatives:
                out.write(f"{number} ||| {a.word} ||| {a.probability:.6f} ||| {a.text}\n")


def requests(job: Any, prefix: str | None, constraints: str | None, tag: str | None, translator: Any) -> Any:
    """The lines of a job with what is demanded of their translations. Raises: ConfigError, DataError."""
    if tag is not None and (len(ids := translator.tokenizers.src.encode([tag])[0]) > 2 or not len(ids)):
        what = f"{tag!r} is no piece of the source vocabulary"
        raise ConfigError(what, where="--tag", hint="train with it among tokenizer.user_symbols")
    lines = job.read() if tag is None else (f"{tag} {line}" if line.strip() else line for line in job.read())
    if prefix is None and constraints is None:
        return lines
    from mtkit.decoding.requests import Request

    columns = [lines, *(job.read([path]) if path else None for path in (prefix, constraints))]
    return (
        Request(line or "", beginning or "", parse_constraints(wanted or ""))
        for line, beginning, wanted in in_step(columns, ["the input", prefix, constraints], job.first + 1)
    )


def parse_constraints(line: str) -> tuple[tuple[str, ...], ...]:
    """What must appear, from tab-separated text; alternatives are divided by `|`."""
    wanted = (tuple(filter(None, map(str.strip, part.split("|")))) for part in line.split("\t"))
    return tuple(filter(None, wanted))


def in_step(
    columns: Sequence[Iterator[str] | None], names: Sequence[str | None], first: int = 1
) -> Iterator[list[str | None]]:
    """Line by line through several files, of which some may be missing. Raises: DataError: one ends too early.

    Args:
        first: number of the first line, for the message.
    """
    for number in count(first):
        row = [next(column, None) if column is not None else "" for column in columns]
        if row[0] is None and all(value in (None, "") for value in row):
            return
        for value, name in zip(row, names, strict=True):
            if value is None:
                what = f"ends before line {number:,} of the others"
                raise DataError(what, where=name, hint="line n of one goes with line n of the other")
        yield row


@app.command(epilog="Example: `mtkit score runs/my-run source.txt translation.txt`")
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")],
    src: Annotated[str, typer.Argument(metavar="SRC", help="Source lines.")],
    tgt: Annotated[str, typer.Argument(metavar="TGT", help="A translation of each.")],
    length_penalty: LengthPenalty = None,
    penalty_kind: PenaltyKind = None,
    coverage_penalty: Annotated[
        float | None, typer.Option(min=0, help="beta of the coverage penalty; 0 is off.")
    ] = None,
    minimum: Annotated[
        float | None,
        typer.Option(help="Print the pairs with at least this score, `SRC tab TGT`, instead of scores."),
    ] = None,
    ensemble: Ensemble = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Print the model's score of given translations: what `translate --scores` would print for them.

    The same to rounding: to 1e-5 with --precision fp32. With --minimum it filters a corpus, and leaves out pairs that
    are too long. Any number of lines in constant memory.
    """
    from mtkit.files import count_lines, read_lines

    if minimum is not None and math.isnan(minimum):
        raise ConfigError("nan is no score", where="--minimum", hint="a number, for example -1.5")
    translator = load_translator(
        model, device, precision, ensemble=ensemble, length_penalty=length_penalty, penalty_kind=penalty_kind,
        coverage_penalty=coverage_penalty, batch_tokens=batch_tokens,
    )  # fmt: skip
    counts = [count_lines(path) if os.path.isfile(path) else None for path in (src, tgt)]
    if None not in counts and counts[0] != counts[1]:
        for path in (src, tgt):
            deque(read_lines(path), maxlen=0)  # if they are no text, that is why
        what = f"{counts[0]:,} source lines, but {counts[1]:,} target lines"
        raise DataError(what, hint="line n goes with line n")
    pairs = in_step([iter(read_lines(src)), iter(read_lines(tgt))], [src, tgt])
    scored = begun(translator.score_stream(pairs, skip_long=minimum is not None))
    num_kept = num_pairs = num_long = 0
    with open_output(None) as out:
        for source, result in scored:
            num_pairs += 1
            if result is None:
                num_long += 1
            elif minimum is None:
                out.write(f"{result.score:.6f}\n")
            elif result.score >= minimum:
                num_kept += 1
                out.write(f"{source}\t{result.text}\n")
    if num_long:
        which = "pair that is" if num_long == 1 else "pairs that are"
        print(f"left out {num_long:,} {which} too long", file=sys.stderr)
    if minimum is not None:
        print(f"kept {num_kept:,} of {num_pairs:,} pairs", file=sys.stderr)


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


@benchmark_app.command(
    "train", epilog="Example: `mtkit benchmark train configs/base.yaml --synthetic --against torch`"
)
def benchmark_train(
    config: ConfigPath,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another loop on the same batches, in turn with mtkit: torch (nn.Transformer), compile (mtkit "
            "with torch.compile) or transformers (Hugging Face's Marian); repeat for several."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Updates to measure, after a warm-up.")] = 20,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Measure for so long instead.")] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Random pieces in sentences as long as news; needs no corpus.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure training: speed, shares of an update, memory, FLOP/s. The run folder stays as it is."""
    from mtkit.configfile import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.benchmark.train import benchmark_train as benchmark

    progress = make_console(sys.stderr)
    result = benchmark(
        loaded,
        against=tuple(against or ()),
        num_updates=steps,
        minutes=minutes,
        synthetic=synthetic,
        say=lambda line: progress.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    if as_json:
        print_text(json.dumps(result.as_dict(), indent=2) + "\n")
    else:
        make_console(sys.stdout).print(result.table())


@benchmark_app.command(
    "translate", epilog="Example: `mtkit benchmark translate runs/my-run test.en --against ctranslate2`"
)
def benchmark_translate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Lines to translate.")],
    ref: Annotated[str | None, typer.Option(help="Their references, for BLEU.")] = None,
    against: Annotated[
        str | None, typer.Option(help="`ctranslate2`: the same weights in CTranslate2, in turn with mtkit.")
    ] = None,
    compute_type: Annotated[
        list[str] | None,
        typer.Option(help="CTranslate2's types; repeat for several. Default: float32 and int8."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each translates everything.")] = 3,
    beam_size: BeamSize = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast a model translates: sentences and tokens a second, shares of the time, peak memory."""
    from mtkit.files import read_lines

    if against not in (None, "ctranslate2"):
        raise ConfigError(f"{against!r} is nothing to compare with", where="--against", hint="ctranslate2")
    lines, refs = list(read_lines(file)), None if ref is None else list(read_lines(ref))
    if not lines:
        raise DataError("nothing to translate", where=file, hint="it has no lines")
    if refs is not None:
        refuse_unequal(file, lines, [ref or ""], [refs])
    from mtkit.benchmark.translate import benchmark

    kind, stop = ("simple", "finished") if against else (None, None)  # what CTranslate2 has
    report = benchmark(
        model,
        lines,
        refs,
        lambda: load_translator_and_config(
            model,
            device,
            precision,
            beam_size=beam_size,
            batch_tokens=batch_tokens,
            penalty_kind=kind,
            stop=stop,
        ),
        compute_types=(compute_type or ["float32", "int8"]) if against else (),
        rounds=rounds,
    )
    if as_json:
        print_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        print_text("".join(f"{line}\n" for line in report.lines()))


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


def load_translator_and_config(
    model: str, device: str, precision: str, ensemble: Sequence[str] | None = None, **decoding: Any
) -> tuple[Any, Any]:
    """A translator and the config it was trained with."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(
            f"{precision!r} is no precision", where="--precision", hint="auto, fp32, bf16 or fp16"
        )
    from mtkit.decoding.loading import load_model, load_others
    from mtkit.decoding.translator import Translator
    from mtkit.device import choose_device

    number = os.environ.get("LOCAL_RANK", "0")  # of several processes that torchrun started, each has its GPU
    chosen = choose_device(device, "--device", int(number) if number.isdecimal() else 0)
    config, tokenizers, network = load_model(Path(model))
    options = change_decoding(
        config.decoding, {key: value for key, value in decoding.items() if value is not None}
    )
    others = load_others(ensemble or (), tokenizers, model)
    return Translator.of(config, tokenizers, network, options, chosen, precision, others), config


def change_decoding(decoding: DecodingConfig, changes: dict[str, Any]) -> DecodingConfig:
    """The section with some keys changed. Raises: ConfigError: a value is out of range."""
    from pydantic import ValidationError

    values = decoding.model_dump() | changes
    if "n_best" in changes and "beam_size" not in changes:
        wanted = max(decoding.beam_size, changes["n_best"])
        values["beam_size"] = -(-wanted // values["groups"]) * values["groups"]
    elif "n_best" not in changes:
        values["n_best"] = 1
    try:
        return type(decoding).model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        option = "--" + "-".join(map(str, detail["loc"])).replace("_", "-") if detail["loc"] else None
        option = "--seed" if option == "--sample-seed" else option
        what = detail["msg"].removeprefix("Value error, ")
        raise ConfigError(what, where=option, hint="--help tells the options") from error


@contextmanager
def open_output(path: str | None, append: bool = False) -> Iterator[TextIO]:
    """stdout, or a file; what was written is flushed whatever happens. Raises: StorageError, BrokenPipeError.

    Files are written line by line: whatever ends the process, no more than a part of a line is lost or left.
    """
    from mtkit.files import storage_errors

    try:
        with storage_errors(path or "stdout"):
            if path is None:
                sys.stdout.reconfigure(encoding="utf-8", newline="\n", line_buffering=True)  # type: ignore[union-attr]
                yield sys.stdout
                sys.stdout.flush()
            else:
                mode = "a" if append else "w"
                with open(path, mode, encoding="utf-8", newline="\n", buffering=1) as file:
                    yield cast(TextIO, file)
    except StorageError as error:
        if isinstance(error.__cause__, BrokenPipeError):  # the reader went away: no fault of the disk
            raise BrokenPipeError from error  # without its errno, of which typer would make an exit code of its own
        raise


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun may have started."""
    return os.environ.get("RANK", "0") == "0"


def print_text(text: str) -> None:
    """Text to stdout. Raises: StorageError, BrokenPipeError."""
    with open_output(None) as out:
        out.write(text)


def refuse_overwriting(output: str | None, others: Sequence[str], option: str = "--output") -> None:
    """Check that an output is none of the other files, which it would empty. Raises: ConfigError: at the option."""
    for path in others if output is not None else ():
        both = os.path.isfile(path) and os.path.isfile(str(output))
        if os.path.abspath(path) == os.path.abspath(str(output)) or (
            both and os.path.samefile(path, str(output))
        ):
            what = f"{output} is another file of this command too"
            raise ConfigError(what, where=option, hint="write to another file")


def begun(items: Iterator[T]) -> Iterator[T]:
    """The same items; the first is made now."""
    return chain(list(islice(items, 1)), items)


class Ticker:
    """Says on stderr, every few seconds, how many lines were translated, how fast, and when all will be.

    Args:
        total: how many there are, if that is known.
    """

    def __init__(self, total: int | None = None) -> None:
        self.start = self.said = time.monotonic()
        self.total, self.done = total, 0

    def __call__(self, num_lines: int) -> None:
        """So many more."""
        self.done += num_lines
        now = time.monotonic()
        if now - self.said > 3:
            speed = self.done / (now - self.start)
            of_all = f" of {self.total:,}" if self.total else ""
            left = f", time left {duration((self.total - self.done) / speed)}" if self.total else ""
            print(f"{self.done:,}{of_all} lines, {speed:,.0f} lines/s{left}", file=sys.stderr)
            self.said = now


def duration(seconds: float) -> str:
    """Such as 2 h 05 min."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


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
    if code not in EXPECTED_CODES or is_main_process():
        with suppress(OSError):
            print(message, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter, which flushes at its end, must not find out again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    main()
