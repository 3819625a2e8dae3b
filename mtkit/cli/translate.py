"""`mtkit translate`: lines in, translations out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mtkit.cli import options
from mtkit.cli.document_output import DocumentOutput, check_document_output
from mtkit.cli.inputs import ReadDocument, count_input_lines, open_inputs, texts_of, warn_about_sheets
from mtkit.cli.jobs import truncate_unfinished
from mtkit.cli.line_format import LineFormat, format_alternatives
from mtkit.cli.lines import prefetch_first, zip_lines
from mtkit.cli.plan import Plan, make_plan
from mtkit.cli.rules import TRANSLATE, check_options
from mtkit.cli.terminal import (
    FaultReport,
    is_terminal,
    open_output,
    print_stderr,
    prompt_for_lines,
)
from mtkit.cli.translators import (
    check_shortlist,
    check_tag,
    choose_parallelism,
    load_exported,
    load_translator,
    resolve_decoding,
)
from mtkit.data.documents import is_document
from mtkit.errors import ConfigError
from mtkit.files import BadLine, LineReader
from mtkit.translation.options import LINES_AT_ONCE, ON_ERROR, LineProgress, TranslateOptions, ignore_progress

if TYPE_CHECKING:
    from mtkit.translation.alignment import SegmentAttention
    from mtkit.translation.confidence import Confidence
    from mtkit.translation.line_translator import LineTranslator
    from mtkit.translation.options import OnError
    from mtkit.translation.segments import Request


def translate(
    context: typer.Context,
    model: options.ModelPath,
    files: options.Files = None,
    columns: options.Columns = None,
    output: options.Output = None,
    resume: options.Resume = False,
    shard: options.Shard = None,
    read_ahead: options.ReadAhead = LINES_AT_ONCE,
    on_error: options.OnError = "stop",
    beam_size: options.BeamSize = None,
    n_best: options.NBest = None,
    length_penalty: options.LengthPenalty = None,
    penalty_kind: options.PenaltyKind = None,
    coverage_penalty: options.CoveragePenalty = None,
    stop: options.Stop = None,
    max_length_ratio: options.MaxLengthRatio = None,
    min_pieces: options.MinPieces = None,
    no_repeat_ngram: options.NoRepeatNgram = None,
    avoid_loops: options.AvoidLoops = None,
    suppress: options.Suppress = None,
    groups: options.Groups = None,
    diversity: options.Diversity = None,
    sample: options.Sample = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    epsilon: options.Epsilon = None,
    sample_seed: options.Seed = None,
    mbr: options.Mbr = None,
    mbr_candidates: options.MbrCandidates = None,
    shortlist: options.Shortlist = None,
    truecase: options.Truecase = None,
    ensemble: options.Ensemble = None,
    prefix: options.Prefix = None,
    alternatives: options.Alternatives = None,
    constraints: options.Constraints = None,
    tag: options.Tag = None,
    split_sentences: options.SplitSentences = None,
    max_line_tokens: options.MaxLineTokens = None,
    protect: options.Protect = False,
    alignment: options.Alignment = None,
    attention: options.Attention = None,
    batch_tokens: options.BatchTokens = None,
    scores: options.Scores = False,
    confidence: options.Confidence = False,
    as_json: options.LinesAsJson = False,
    engine: options.Engine = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Translate text: one line in, one line out, in order; an empty line stays empty.

    Of a document (.tmx, .xlf, .xlsx), each unit or row is a line. Lines are translated as they arrive, before the end
    of the input; a document with -o OUT.tmx, OUT.xlf or OUT.xlsx is written at the end. Under torchrun with -o OUT,
    each process translates its shard of the input and writes OUT.1-of-N, OUT.2-of-N, ….
    """
    decoding = resolve_decoding(model, context.params)  # options named like keys of `decoding` override them
    check_options(context, TRANSLATE, decoding)
    action = _check_values(alignment, on_error, alternatives)
    parallelism = choose_parallelism(workers, threads)
    if shortlist:
        check_shortlist(model)
    line_format = LineFormat(
        n_best is not None,
        scores=scores,
        confidence=confidence,
        json=as_json,
        alignment=alignment is not None,
    )
    calibrated = _load_confidence(model, ensemble or ()) if confidence else None
    files = files or ["-"]
    document, read_document = None, _document_reader(model, files, columns)
    unlike_text = LineFormat(n_best=True) if alternatives is not None else line_format
    if check_document_output(files, [prefix, constraints, attention], output, shard, unlike_text):
        languages = columns or _languages_of(model)
        document = DocumentOutput(Path(files[0]), Path(str(output)), languages, protect, resume)
        output, read_document = str(document.lines), document.read
    count = partial(count_input_lines, read_document=read_document)
    plan = make_plan(files, count, prefix, constraints, output, attention, shard, line_format, resume)
    note = plan.resume_note([model, *(ensemble or ())], decoding, {
        "precision": precision, "tag": tag, "split": split_sentences, "protect": protect,
        "max_line_tokens": max_line_tokens, **({"columns": columns} if columns else {}),
        **({"confidence": calibrated} if calibrated else {}),
    })  # fmt: skip
    if document is not None and note is not None and document.is_finished(note.job):
        if not quiet:
            print_stderr(f"{document.path} is complete")
        return
    if resume and note is not None:
        # This also raises an error if the output is that of another job.
        is_finished = note.is_finished()
        if is_finished and plan.job.total is not None:
            if document is not None:
                document.write(note.job)
            elif not quiet:
                print_stderr(f"{plan.output} is complete")
            return

    translator: LineTranslator
    if engine is None:
        translator = load_translator(model, decoding, device, precision, ensemble or ())
    else:
        translator = load_exported(model, engine, decoding, device, precision, parallelism)
    check_tag(tag, translator)
    if not quiet:
        warn_about_sheets(files)
    reader = open_inputs(plan.job.files, read_document, keep_bad=on_error != "stop")
    report = FaultReport("copied" if on_error == "copy" else "left empty", context.command)
    translate_options = TranslateOptions(
        split_sentences=split_sentences, max_line_tokens=max_line_tokens, keep_links=alignment is not None,
        keep_attention=attention is not None, keep_log_probs=confidence, read_ahead=read_ahead,
        is_ready=reader.is_ready, first_line=plan.job.first, on_error=action, on_fault=report,
        on_progress=_progress(plan, quiet), parallelism=parallelism,
    )  # fmt: skip
    requests = _read_requests(plan, reader, tag, on_error, quiet)
    with document.temporary_lines() if document is not None else nullcontext():
        with report, note.recorded() if note is not None else nullcontext():
            results = _translate(
                translator, requests, plan, translate_options, alternatives, protect, calibrated
            )
            _write(results, plan)
        if document is not None and note is not None:
            document.write(note.job)


def _document_reader(model: str, files: Sequence[str], columns: tuple[str, str] | None) -> ReadDocument:
    """Return what reads the documents of the input, in the source language of the model or of `columns`.

    Raises:
        ConfigError: If --columns is given but no document.
        StorageError: If the languages of the model are needed and cannot be read.
    """
    if not any(map(is_document, files)):
        if columns is not None:
            what = "--columns needs a document"
            raise ConfigError(what, hint="the input is text: name a .tmx, .xlf or .xlsx file")
        return texts_of("")
    return texts_of((columns or _languages_of(model))[0])


def _load_confidence(model: str, ensemble: Sequence[str]) -> Confidence:
    """Return the confidence of a model or ensemble.

    Raises:
        StorageError: If it was not calibrated.
    """
    from mtkit.translation.confidence import Confidence

    return Confidence.load(model, ensemble)


def _languages_of(model: str) -> tuple[str, str]:
    """Return the languages of a model.

    Raises:
        StorageError: If they cannot be read.
    """
    from mtkit.translation.model_folder import read_languages

    return read_languages(Path(model))


def _check_values(alignment: str | None, on_error: str, alternatives: int | None) -> OnError:
    """Check options that take one of several words, and return the value of --on-error.

    Raises:
        ConfigError: If a word is unknown, or --on-error cannot be combined with --alternatives.
    """
    if alignment not in (None, "pharaoh"):
        raise ConfigError(
            f"unknown format {alignment!r}", where="--alignment", hint="pharaoh is the only one"
        )
    if on_error not in ON_ERROR:
        raise ConfigError(f"unknown action {on_error!r}", where="--on-error", hint=", ".join(ON_ERROR))
    if on_error == "copy" and alternatives is not None:
        what = "--on-error copy cannot be combined with --alternatives"
        raise ConfigError(what, hint="skip leaves such a line without alternatives")
    return on_error


def _is_typed(plan: Plan) -> bool:
    """Return whether the input is typed at a terminal."""
    return plan.job.files == ("-",) and is_terminal(sys.stdin)


def _progress(plan: Plan, quiet: bool) -> Callable[[int], None]:
    """Return what reports progress; nothing does for typed input."""
    return ignore_progress if quiet or _is_typed(plan) else LineProgress(print_stderr, plan.job.total)


def _read_requests(
    plan: Plan, reader: LineReader, tag: str | None, on_error: str, quiet: bool
) -> Iterator[Request]:
    """Yield the lines of a job, each with its prefix and constraints.

    Args:
        plan: plan of the command.
        reader: all lines of the input.
        tag: target-language tag of each line.
        on_error: with "stop", a line that is not valid text raises its fault; otherwise its request holds it.
        quiet: do not prompt for typed input.

    Raises:
        DataError: If a file cannot be read, or ends before another.
    """
    from mtkit.translation.segments import Request

    prompting = _is_typed(plan) and not quiet and is_terminal(sys.stderr)
    lines = prompt_for_lines(reader) if prompting else reader
    others = [
        LineReader([path], keep_bad=on_error != "stop") if path else None
        for path in (plan.prefix, plan.constraints)
    ]
    columns = [plan.job.select(lines), *(other and plan.job.select(other) for other in others)]
    for row in zip_lines(columns, ["the input", plan.prefix, plan.constraints], plan.job.first + 1):
        line, prefix, constraints = row
        fault = next((text.fault for text in row if isinstance(text, BadLine)), None)
        yield Request(line, prefix, _parse_constraints(constraints), fault=fault, tag=tag or "")


def _parse_constraints(line: str) -> tuple[tuple[str, ...], ...]:
    """Parse tab-separated constraints; `|` separates the alternatives of one."""
    constraints = (tuple(filter(None, map(str.strip, part.split("|")))) for part in line.split("\t"))
    return tuple(filter(None, constraints))


def _translate(
    translator: LineTranslator,
    requests: Iterator[Request],
    plan: Plan,
    translate_options: TranslateOptions,
    alternatives: int | None,
    protect: bool,
    calibrated: Confidence | None,
) -> Iterator[tuple[str, Sequence[SegmentAttention]]]:
    """Yield the output text of each line, and the attention of its segments if it is kept."""
    first = plan.job.first + 1
    if alternatives is not None:
        from mtkit.translation.translator import Translator

        assert isinstance(translator, Translator)  # see the rules about --engine
        for number, words in enumerate(
            translator.alternatives(requests, alternatives, translate_options), first
        ):
            yield format_alternatives(number, words), ()
        return
    translate = translator.translate_protected if protect else translator.translate_n_best
    for number, translations in enumerate(translate(requests, translate_options), first):
        confidence = calibrated.of(translations[0]) if calibrated is not None else None
        yield plan.line_format.format(number, translations, confidence), translations[0].aligned


def _write(results: Iterator[tuple[str, Sequence[SegmentAttention]]], plan: Plan) -> None:
    """Write the output of each line.

    Raises:
        StorageError: If an output cannot be written.
        BrokenPipeError: If the reader of stdout has closed it.
    """
    from mtkit.cli.attention_file import AttentionFile

    results = prefetch_first(results)  # an error in the first batch leaves an old output as it is
    if plan.resume and plan.output is not None:
        truncate_unfinished(plan.output, plan.line_format)
    with AttentionFile(plan.attention) as matrices, open_output(plan.output, append=plan.resume) as out:
        for number, (text, aligned) in enumerate(results, plan.job.first + 1):
            matrices.add(number, aligned)
            out.write(text)
