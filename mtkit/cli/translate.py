"""`mtkit translate`: lines in, translations out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mtkit.cli import options
from mtkit.cli.lines import begun, in_step
from mtkit.cli.rules import TRANSLATE, check_options
from mtkit.cli.terminal import (
    FaultReport,
    Ticker,
    is_terminal,
    open_output,
    open_stdout,
    prompted,
    refuse_compressed,
    refuse_overwriting,
    say,
)
from mtkit.cli.translators import decoding_of, load_translator, refuse_no_symbol
from mtkit.errors import ConfigError, DataError
from mtkit.translation.options import ON_ERROR

if TYPE_CHECKING:
    from mtkit.cli.jobs import Job, Shard
    from mtkit.cli.line_format import LineFormat
    from mtkit.cli.resume_note import ResumeNote
    from mtkit.translation.assembly import Translation
    from mtkit.translation.next_words import Alternative
    from mtkit.translation.options import OnError
    from mtkit.translation.segments import Request


def translate(
    context: typer.Context,
    model: options.ModelPath,
    files: options.Files = None,
    output: options.Output = None,
    resume: options.Resume = False,
    shard: options.Shard = None,
    read_ahead: options.ReadAhead = None,
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
    suppress: options.Suppress = None,
    groups: options.Groups = None,
    diversity: options.Diversity = None,
    sample: options.Sample = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    epsilon: options.Epsilon = None,
    seed: options.Seed = None,
    mbr: options.Mbr = None,
    mbr_candidates: options.MbrCandidates = None,
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
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Translate text: one line in, one line out, in order; an empty line stays empty.

    Output flows: what is there is translated when more input would have to be waited for. Started by torchrun with
    -o OUT, every process translates its part into OUT.1-of-N, OUT.2-of-N …
    """
    from mtkit.cli.line_format import LineFormat
    from mtkit.cli.resume_note import ResumeNote, describe_job

    decoding = decoding_of(model, {
        "beam_size": beam_size, "n_best": n_best, "length_penalty": length_penalty, "penalty_kind": penalty_kind,
        "coverage_penalty": coverage_penalty, "stop": stop, "max_length_ratio": max_length_ratio,
        "min_pieces": min_pieces, "no_repeat_ngram": no_repeat_ngram, "suppress": suppress or None,
        "groups": groups, "diversity": diversity, "sample": sample, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "epsilon": epsilon, "sample_seed": seed, "mbr": mbr, "mbr_candidates": mbr_candidates,
        "batch_tokens": batch_tokens,
    })  # fmt: skip
    check_options(context, TRANSLATE, decoding)
    if alignment not in (None, "pharaoh"):
        raise ConfigError(f"{alignment!r} is no format of alignments", where="--alignment", hint="pharaoh")
    what_to_do = _known_on_error(on_error, alternatives)
    output = _file_of(output, resume)
    part, output, attention = _own_share(shard, output, attention)
    inputs, beside = files or ["-"], [path for path in (prefix, constraints) if path is not None]
    _refuse_outputs(output, attention, [*inputs, *beside])
    _refuse_other_length(inputs, beside)
    line_format = LineFormat(n_best is not None, scores, alignment is not None)
    parts = describe_job(
        [model, *(ensemble or ())], decoding, [*inputs, prefix, constraints],
        {"precision": precision, "tag": tag, "split": split_sentences, "protect": protect, "part": part,
         "max_line_tokens": max_line_tokens},
    ) if resume else {}  # fmt: skip
    job = _plan_job(inputs, part, output if resume else None, line_format)
    note = None if output is None else ResumeNote(Path(output), parts)
    if resume and note is not None and _nothing_is_left(note, job, line_format):
        if not quiet:
            say(f"{output} is finished")
        return

    translator = load_translator(model, decoding, device, precision, ensemble or ())
    if tag is not None:
        refuse_no_symbol(tag, translator)

    from mtkit.files import LineReader
    from mtkit.translation.options import LINES_AT_ONCE, TranslateOptions, ignore_progress

    reader = LineReader(job.files, keep_bad=on_error != "stop")
    report = FaultReport("copied" if on_error == "copy" else "left empty", context.command)
    typed = inputs == ["-"] and is_terminal(sys.stdin)
    asked = TranslateOptions(
        split_sentences=split_sentences,
        max_line_tokens=max_line_tokens,
        keep_links=alignment is not None,
        keep_attention=attention is not None,
        read_ahead=read_ahead or LINES_AT_ONCE,
        is_ready=reader.is_ready,
        first_line=job.first,
        on_error=what_to_do,
        on_fault=report,
        on_progress=ignore_progress if quiet or typed else Ticker(job.total),
    )
    lines = prompted(reader) if typed and not quiet and is_terminal(sys.stderr) else reader
    wanted = requests(job, lines, prefix, constraints, tag, keep_bad=on_error != "stop")
    with report, note.kept(resume) if note is not None else nullcontext():
        if alternatives is not None:
            _write_alternatives(translator.alternatives(wanted, alternatives, asked), job.first + 1, output)
        else:
            translate = translator.translate_protected if protect else translator.translate_n_best
            found = translate(wanted, asked)
            _write_translations(found, job.first + 1, line_format, output, attention, append=resume)


def _known_on_error(on_error: str, alternatives: int | None) -> OnError:
    """The value of --on-error, checked. Raises: ConfigError: it is unknown, or does not go with --alternatives."""
    if on_error not in ON_ERROR:
        raise ConfigError(f"{on_error!r} is nothing to do", where="--on-error", hint=", ".join(ON_ERROR))
    if on_error == "copy" and alternatives is not None:
        hint = "skip gives such a line none"
        raise ConfigError("--on-error copy does not go with --alternatives", hint=hint)
    return on_error


def _file_of(output: str | None, resume: bool) -> str | None:
    """The file to write to; None for stdout. Checked before the model is loaded.

    Raises:
        ConfigError: the name is that of a compressed file, or stdout is to be resumed.
        StorageError: stdout is closed.
    """
    if output not in (None, "-"):
        refuse_compressed(output)
        return output
    if resume:
        hint = "stdout does not say how far it got"
        raise ConfigError("--resume needs a file", where="--output", hint=hint)
    open_stdout()
    return None


def _own_share(
    shard: str | None, output: str | None, attention: str | None
) -> tuple[Shard, str | None, str | None]:
    """Which part of the lines this process translates, and the files it writes: of several, each has its own.

    Raises:
        ConfigError: no part, or several processes without a file.
    """
    from mtkit.cli.jobs import Shard

    if shard is not None:
        return Shard.parse(shard), output, attention
    part = Shard.of_process()
    if part.count == 1:
        return part, output, attention
    if output is None:
        what = "several processes need -o"
        raise ConfigError(what, where="--output", hint="each writes a file of its own")
    return part, part.output(output), None if attention is None else part.output(attention)


def _refuse_outputs(output: str | None, attention: str | None, read: Sequence[str]) -> None:
    """Check that the files to be written take no other's place. Raises: ConfigError."""
    refuse_overwriting(output, read)
    refuse_overwriting(attention, [*read, *filter(None, [output])], "--attention")


def _refuse_other_length(files: Sequence[str], others: Sequence[str]) -> None:
    """Check that files that go with the input line by line have as many lines, where they can be counted.

    Raises:
        DataError: they have not; a file cannot be read.
    """
    from mtkit.cli.jobs import count_all

    num_lines = count_all(files) if others else None
    for path in others:
        found = count_all([path])
        if None not in (num_lines, found) and found != num_lines:
            what = f"{found:,} lines, but the input has {num_lines:,}"
            raise DataError(what, where=path, hint="line n of one goes with line n of the other")


def _plan_job(files: Sequence[str], part: Shard, resumed: str | None, line_format: LineFormat) -> Job:
    """The lines to translate: of the part, those that the output to be resumed, if any, lacks.

    Raises:
        ConfigError: the output is of another job.
        DataError: an input cannot be read.
    """
    from mtkit.cli.jobs import Job, num_done

    job = Job.plan(files, part)
    if resumed is not None:
        job = job.without_first(num_done(resumed, line_format, job.first + 1))
    return job


def _nothing_is_left(note: ResumeNote, job: Job, line_format: LineFormat) -> bool:
    """Whether the output of a job to be resumed is finished; if not, a partial line at its end is cut off.

    Raises:
        ConfigError: the output is of another job.
        StorageError, DataError: it cannot be read or cut.
    """
    from mtkit.cli.jobs import cut_off_incomplete

    note.refuse_other()
    if note.is_finished() and job.total is not None:
        return True
    cut_off_incomplete(note.output, line_format)
    return False


def requests(
    job: Job,
    every: Iterator[str],
    prefix: str | None,
    constraints: str | None,
    tag: str | None,
    *,
    keep_bad: bool,
) -> Iterator[Request]:
    """The lines of a job with what is demanded of their translations.

    Args:
        every: all lines of the input.
        keep_bad: see `LineReader`.

    Raises:
        DataError: a file cannot be read, or is shorter than another.
    """
    from mtkit.files import BadLine, LineReader
    from mtkit.translation.segments import Request

    readers = [LineReader([path], keep_bad=keep_bad) if path else None for path in (prefix, constraints)]
    columns = [job.of(every), *(reader and job.of(reader) for reader in readers)]
    for row in in_step(columns, ["the input", prefix, constraints], job.first + 1):
        line, beginning, wanted = row
        fault = next((text.fault for text in row if isinstance(text, BadLine)), None)
        yield Request(line, beginning, _parse_constraints(wanted), fault=fault, tag=tag or "")


def _parse_constraints(line: str) -> tuple[tuple[str, ...], ...]:
    """What must appear, from tab-separated text; alternatives are divided by `|`."""
    wanted = (tuple(filter(None, map(str.strip, part.split("|")))) for part in line.split("\t"))
    return tuple(filter(None, wanted))


def _write_alternatives(found: Iterator[list[Alternative]], first: int, output: str | None) -> None:
    """The next words of each line, from line number `first` on. Raises: StorageError, BrokenPipeError."""
    lines = begun(found)  # a fault found now leaves an old output alone
    with open_output(output) as out:
        for number, alternatives in enumerate(lines, first):
            for a in alternatives:
                out.write(f"{number} ||| {a.word} ||| {a.probability:.6f} ||| {a.text}\n")


def _write_translations(
    found: Iterator[list[Translation]],
    first: int,
    line_format: LineFormat,
    output: str | None,
    attention: str | None,
    *,
    append: bool,
) -> None:
    """The translations of each line, from line number `first` on. Raises: StorageError, BrokenPipeError."""
    from mtkit.cli.attention_file import AttentionFile

    lines = begun(found)  # a fault found now leaves an old output alone
    with AttentionFile(attention) as matrices, open_output(output, append=append) as out:
        for number, translations in enumerate(lines, first):
            matrices.add(number, translations[0].aligned)
            out.write(line_format.lines(number, translations))
