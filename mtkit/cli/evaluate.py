"""`mtkit evaluate`: score translations against references, and compare systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mtkit.cli import completion, options
from mtkit.cli.analysis_inputs import Analyzed, find_overlaps, open_training, read_alignments, read_labels
from mtkit.cli.analysis_tables import NUM_SENTENCES, SetAnalysis, render_analyses
from mtkit.cli.evaluation_checks import (
    check_analysis,
    check_combination,
    check_format,
    check_paired,
    check_robustness,
)
from mtkit.cli.evaluation_scores import Scoring, add_intervals, score_systems, write_segments
from mtkit.cli.evaluation_tables import FORMATS, SetScores, render
from mtkit.cli.external_scores import metric_commands, score_elsewhere
from mtkit.cli.inputs import warn_about_sheets
from mtkit.cli.robustness import evaluate_robustness
from mtkit.cli.systems import (
    choose_systems,
    config_of,
    translate_sets,
    warn_about_languages,
    warn_about_translations,
)
from mtkit.cli.terminal import (
    check_not_compressed,
    check_not_overwriting,
    print_stderr,
    print_stdout,
)
from mtkit.cli.test_sets import TestSet, load_test_sets, read_hyps, split_pair
from mtkit.cli.translators import choose_parallelism, resolve_decoding
from mtkit.config.choices import DEFAULT_METRICS, METRICS
from mtkit.data.readers import Columns
from mtkit.errors import ConfigError, MtkitError
from mtkit.evaluation.run_files import HYPS_SUFFIX

if TYPE_CHECKING:
    from mtkit.cli.external_scores import ExternalScores
    from mtkit.config.sections import DataConfig
    from mtkit.evaluation.external_metrics import ExternalScore

COMPARED, ANALYZED, PRINTED = "Comparing systems", "Analysis", "Output"
"""Panels of options in `mtkit evaluate --help`."""


def evaluate(
    hyps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HYPS]...",
            help="Translations to score, a file of each system; `-` is stdin. Of several test sets, one after the "
            "other in the file; or a folder with NAME.hyps.txt for each.",
        ),
    ] = None,
    ref: Annotated[
        list[str] | None,
        typer.Option(help="File of references, text or a document (.tmx, .xlf, .xlsx); may be repeated."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Score the translations of this model too; may be repeated.")
    ] = None,
    src: Annotated[
        str | None, typer.Option(help="Source lines, or a document, for --model and metrics.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            help="Test set: a file of pairs (.tmx, .xlf, .xlsx, .tsv, .csv, .jsonl or .parquet), or text files of "
            "source and references, separated by commas; may be repeated."
        ),
    ] = None,
    columns: options.Columns = None,
    test_set: Annotated[
        list[str] | None, typer.Option(help="Test set of sacreBLEU, e.g. wmt20; may be repeated.")
    ] = None,
    langs: Annotated[str | None, typer.Option(help="Languages of the test set, e.g. en-de.")] = None,
    tag: options.Tag = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="bleu, chrf, chrf++, ter, or bleu-moses: BLEU of lower-cased text that sacremoses tokenized, as in "
            "much of the literature; or comet, metricx, FILE.py or PACKAGE.MODULE, each [:MODEL], which run in the "
            "environment of --metric-env; may be repeated.",
            autocompletion=completion.one_of(*METRICS, "bleu-moses", "comet", "metricx"),
        ),
    ] = None,
    metric_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METRIC=]PATH",
            help="Python environment of comet, metricx and other such metrics; METRIC=PATH is for one of them. Without "
            "it they run in that of mtkit.",
        ),
    ] = None,
    metric_timeout: Annotated[
        float,
        typer.Option(min=1, help="Seconds without a sign of life after which a metric's process is stopped."),
    ] = 600,
    tokenize: Annotated[
        str | None,
        typer.Option(help="Tokenizer of sacreBLEU for BLEU.", autocompletion=completion.bleu_tokenizers),
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples for the 95 % confidence interval; 0 for none.")
    ] = 1000,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="File or model that the others are compared with; by default the first file, or else model.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    paired: Annotated[
        str | None,
        typer.Option(
            help="Paired test of each system against the baseline: `bs`, bootstrap resampling (default), `ar`, "
            "approximate randomization, or `none`.",
            autocompletion=completion.one_of("bs", "ar", "none"),
            rich_help_panel=COMPARED,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials of approximate randomization.", rich_help_panel=COMPARED)
    ] = 10_000,
    resample_seed: Annotated[
        int, typer.Option("--seed", min=1, help="Seed of resamples and trials.", rich_help_panel=COMPARED)
    ] = 12345,
    analysis: Annotated[
        bool,
        typer.Option(
            "--analysis",
            help="Break the scores down by length, label and frequency in training; count kinds of errors; show single "
            "sentences and the overlap with training.",
            rich_help_panel=ANALYZED,
        ),
    ] = False,
    train: Annotated[
        list[str] | None,
        typer.Option(
            help="Training data for --analysis: a file of pairs, or SRC,TGT; may be repeated. By default that of the "
            "first --model.",
            rich_help_panel=ANALYZED,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="File with a label of each sentence, such as its domain, for --analysis.",
            rich_help_panel=ANALYZED,
        ),
    ] = None,
    alignments: Annotated[
        list[str] | None,
        typer.Option(
            help="File with word alignments (`0-0 1-2`, as of `mtkit translate --alignment pharaoh`) for --analysis; "
            "one for each HYPS, then one for the file of --baseline.",
            rich_help_panel=ANALYZED,
        ),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Translate changed copies of the test sets (all capitals, typos, single words and others) with each "
            "--model, and tell what becomes of them.",
            rich_help_panel=ANALYZED,
        ),
    ] = False,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="text (default), json, latex or markdown.",
            autocompletion=completion.one_of(*FORMATS),
            rich_help_panel=PRINTED,
        ),
    ] = None,
    segments: Annotated[
        str | None,
        typer.Option(help="Write the scores of each sentence to a file (.tsv).", rich_help_panel=PRINTED),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same as --format json.", rich_help_panel=PRINTED)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the numbers.", rich_help_panel=PRINTED)
    ] = False,
    beam_size: options.BeamSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = "auto",
    threads: options.Threads = None,
) -> None:
    """Score translations against references: those in files, and those of models. Several systems are compared.

    With --model and without references, the test sets in the model's own config are translated.
    """
    from mtkit.evaluation import metrics
    from mtkit.evaluation.metric_commands import is_external

    hyps, ref, model, test, test_set, train, alignments = (
        each or [] for each in (hyps, ref, model, test, test_set, train, alignments)
    )
    output_format = check_format(output_format, as_json)
    names = [name.lower() for name in metric or DEFAULT_METRICS if not is_external(name)]
    commands = metric_commands([name for name in metric or [] if is_external(name)], metric_env or [])
    systems = choose_systems(hyps, model, baseline)
    models = [system.name for system in systems if system.is_model]
    for_models = {
        "--beam-size": beam_size,
        "--tag": tag,
        # metrics that run elsewhere use it too
        "--device": None if commands else device,
        "--precision": precision,
        "--workers": workers,
        "--threads": threads,
    }
    check_combination(
        hyps, ref, models, src, test, test_set,
        [option for option, value in for_models.items() if value not in (None, "auto")],
        reads_source=bool(commands) or analysis,
    )  # fmt: skip
    check_analysis(analysis, train, labels, alignments, quiet=quiet and output_format == "text")
    if robustness:
        others = {
            "HYPS": len(models) < len(systems),
            "--analysis": analysis,
            "--segments": segments,
            "--paired": paired,
            "--quiet": quiet and output_format == "text",
            **{f"--metric {command.label}": True for command in commands},
        }
        check_robustness(models, [option for option, is_used in others.items() if is_used])
        names = names if metric else ["bleu", "chrf"]
    paired = check_paired(paired, len(systems), resamples)
    check_not_compressed(segments, "--segments")
    folder = Path(segments or "").absolute().parent
    if segments is not None and (segments == "-" or Path(segments).is_dir() or not folder.is_dir()):
        hint = "name a file in a folder that exists; stdout has the scores"
        raise ConfigError(f"{segments} cannot be written", where="--segments", hint=hint)
    read = [*hyps, *ref, *alignments, *filter(None, [src, baseline, labels])]
    read += [str(path) for folder in hyps for path in Path(folder).glob(f"*{HYPS_SUFFIX}")]
    read += [path for paths in [*test, *train] for path in (paths, *paths.split(","))]
    check_not_overwriting(segments, read, "--segments")
    decodings = {name: resolve_decoding(name, {"beam_size": beam_size}) for name in models}
    # the baseline comes first in the tables, but what --model names decides what is evaluated
    in_order = [*model, *(name for name in models if name not in model)]
    sides, langs, tgt, tokenize, data = _settings(columns, langs, tokenize, in_order)
    if metrics.MOSES_BLEU in names and not tgt:
        raise ConfigError(f"{metrics.MOSES_BLEU} needs the target language", hint="for example --langs en-de")
    metrics.check_metrics(names, tokenize=tokenize, tgt=tgt)
    warning = metrics.bleu_warning(names, tgt, tokenize=tokenize)
    if warning is not None and not quiet:
        print_stderr(warning.replace("validation.bleu_tokenizer", "--tokenize"))
    parallelism = choose_parallelism(workers, threads)
    sets = load_test_sets(src, ref, test, test_set, sides, langs, tag, data, quiet=quiet)
    analyzed = None
    if analysis:
        # before anything is translated, so that a mistake in an option costs no time
        of_baseline = [each.name for each in systems if not each.is_model and each.name not in hyps]
        analyzed = Analyzed(
            read_labels(labels, sets),
            read_alignments(alignments, hyps, of_baseline, sets),
            open_training(train, sides) if train else [],
            data,
        )

    scoring = Scoring(names, tokenize, lowercase, tgt, paired, resamples, trials, resample_seed)
    is_silent = quiet or output_format != "text"
    translate = partial(
        translate_sets, tag=tag, device=device, precision=precision, parallelism=parallelism, quiet=is_silent
    )
    if robustness:
        evaluate_robustness(decodings, sets, scoring, translate, output_format, quiet=is_silent)
        return
    hyps_of = {system.name: read_hyps(system.name, sides, sets) for system in systems if not system.is_model}
    fault = None
    for name, decoding in decodings.items():
        try:
            hyps_of[name] = translate(name, decoding, sets)
        except MtkitError as error:
            if not hyps_of:
                raise
            fault = error  # what is there is scored first
            break
    if not quiet:
        warn_about_sheets(dict.fromkeys(read))
        warn_about_languages(in_order)
        warn_about_translations(hyps_of, sets)
    if systems[0].name not in hyps_of:
        scoring = scoring._replace(paired="none")
    ordered = {system.name: hyps_of[system.name] for system in systems if system.name in hyps_of}
    elsewhere = partial(score_elsewhere, commands, ordered, sets, device, metric_timeout, quiet=quiet)
    analyze = partial(_analyze, ordered, sets, scoring, analyzed, quiet=is_silent)
    _score_and_print(ordered, sets, scoring, elsewhere, analyze, segments, output_format, quiet=quiet)
    if fault is not None:
        raise fault


class _Settings(NamedTuple):
    """Values that options and the config of the first model give for the test sets.

    Attributes:
        sides: languages of both sides, if they are known.
        langs: languages of the test sets of sacreBLEU, such as en-de, if they are known.
        tgt: code of the target language, if it is known.
        tokenize: tokenizer of sacreBLEU for BLEU; None for that of the language.
        data: data section of the model's config, if there is a model.
    """

    sides: Columns | None
    langs: str | None
    tgt: str | None
    tokenize: str | None
    data: DataConfig | None


def _settings(
    columns: tuple[str, str] | None, langs: str | None, tokenize: str | None, models: Sequence[str]
) -> _Settings:
    """Return the settings that the options name; what they do not name is that of the first model.

    Raises:
        ConfigError: If `langs` names one language.
        StorageError: If there is no such model, or its config cannot be read.
    """
    pair = None if langs is None else split_pair(langs)
    if models:
        from mtkit.translation.model_folder import data_of_run

        config = config_of(models[0])
        languages = config.data.src, config.data.tgt
        return _Settings(
            Columns(columns, languages),
            langs or "-".join(languages),
            pair[1] if pair else config.data.tgt,
            tokenize or config.validation.bleu_tokenizer,
            data_of_run(config, Path(models[0])),
        )
    sides = None
    if columns is not None:
        sides = Columns(columns, columns)
    elif pair is not None:
        sides = Columns(None, pair)
    return _Settings(sides, langs, pair[1] if pair else None, tokenize, None)


def _score_and_print(
    hyps_of: Mapping[str, list[list[str]]],
    sets: Sequence[TestSet],
    scoring: Scoring,
    elsewhere: Callable[[], ExternalScores],
    analyze: Callable[[], list[SetAnalysis]],
    segments: str | None,
    output_format: str,
    *,
    quiet: bool,
) -> None:
    """Print the scores of each system on each test set; those computed before an error are printed too.

    Raises:
        ConfigError: If a metric that runs elsewhere cannot be started.
        DataError: If a sentence cannot be scored, or a metric that runs elsewhere fails.
        StorageError: If an output cannot be written.
    """
    results: list[SetScores] = []
    external: list[list[list[ExternalScore]]] = []
    faults: list[MtkitError] = []
    analyses: list[SetAnalysis] = []
    try:
        for number, test in enumerate(sets):
            systems = [hyps[number] for hyps in hyps_of.values()]
            scores = score_systems(systems, test.refs, scoring)
            results.append(SetScores(test.name, len(test.refs[0]), list(hyps_of), scores))
        external, faults = elsewhere()
        for of_metric in external:
            for result, of_set in zip(results, of_metric, strict=True):
                for scores_of_system, score in zip(
                    result.scores, add_intervals(of_set, scoring), strict=True
                ):
                    scores_of_system.append(score)
        try:
            analyses = analyze()
        except MtkitError as error:
            faults.append(error)
    finally:
        as_dicts = [of_set.breakdown.as_dict(NUM_SENTENCES) for of_set in analyses]
        if results and (results[0].scores[0] or (as_dicts and output_format == "json")):
            print_stdout(render(results, output_format, quiet=quiet, analyses=as_dicts))
    if output_format != "json":
        print_stdout(render_analyses(analyses, output_format))
    if segments is not None and results[0].scores[0]:
        write_segments(segments, hyps_of, sets, scoring, external)
    for fault in faults[:-1]:
        print_stderr(f"error: {fault}")
    if faults:
        raise faults[-1]


def _analyze(
    hyps_of: Mapping[str, list[list[str]]],
    sets: Sequence[TestSet],
    scoring: Scoring,
    analyzed: Analyzed | None,
    *,
    quiet: bool,
) -> list[SetAnalysis]:
    """Return the analysis of each test set; none if it was not asked for.

    Raises:
        DataError: If training data cannot be read, or a sentence cannot be scored.
    """
    from mtkit.evaluation.analysis import first_references
    from mtkit.translation.breakdown import break_down

    if analyzed is None:
        return []
    overlaps = find_overlaps(analyzed, sets, hyps_of, quiet=quiet)
    found = []
    for number, test in enumerate(sets):
        systems = {name: hyps[number] for name, hyps in hyps_of.items()}
        srcs = test.src_texts
        breakdown = break_down(
            systems, test.refs, srcs=srcs,
            labels=analyzed.labels[number], alignments=analyzed.alignments[number], overlap=overlaps[number],
            metric=scoring.metrics[0] if scoring.metrics else "chrf++",
            tokenize=scoring.tokenize, lowercase=scoring.lowercase, tgt=scoring.tgt, num_sentences=NUM_SENTENCES,
        )  # fmt: skip
        found.append(
            SetAnalysis(test.name, srcs, list(systems.values()), first_references(test.refs), breakdown)
        )
    return found
