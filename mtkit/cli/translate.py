"""`mtkit translate`: lines in, translations out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mtkit.cli import options
from mtkit.cli.lines import begun, in_step
from mtkit.cli.protected import translate_protected
from mtkit.cli.terminal import Ticker, open_output, refuse_overwriting
from mtkit.cli.translators import load_translator
from mtkit.errors import ConfigError


def translate(
    model: options.ModelPath,
    files: options.Files = None,
    output: options.Output = None,
    resume: options.Resume = False,
    shard: options.Shard = None,
    read_ahead: options.ReadAhead = None,
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
    sample: options.Sample = False,
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
    split_sentences: options.SplitSentences = False,
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

    Output flows while input is read. Started by torchrun with -o OUT, every process translates its part into
    OUT.1-of-N, OUT.2-of-N …
    """
    from mtkit.decoding.jobs import Job, Shard, num_done
    from mtkit.decoding.output import LineFormat

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
    line_format = LineFormat(n_best is not None, scores, alignment is not None)
    job = Job.plan(inputs, part)
    if resume and output is not None:
        job = job.without_first(num_done(output, line_format, job.first + 1))
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
    translator.keeps_attention = protect or alignment is not None or attention is not None
    if not quiet:
        translator.on_batch = Ticker(job.total)
    wanted = requests(job, prefix, constraints, tag, translator)
    if alternatives is not None:
        write_alternatives(translator.alternatives(wanted, alternatives), job.first + 1, output)
        return
    found = translate_protected(translator, wanted) if protect else translator.translate_n_best(wanted)
    translations = begun(found)  # a fault found now leaves an old output alone
    from mtkit.decoding.matrices import MatrixFile

    with MatrixFile(attention) as matrices, open_output(output, append=resume) as out:
        for number, best in enumerate(translations, job.first + 1):
            matrices.add(number, best[0].aligned)
            out.write(line_format.write(number, best))


def write_alternatives(found: Iterator[Any], first: int, output: str | None) -> None:
    """The next words of each line, from line number `first` on."""
    lines = begun(found)  # a fault found now leaves an old output alone
    with open_output(output) as out:
        for number, alternatives in enumerate(lines, first):
            for a in alternatives:
                out.write(f"{number} ||| {a.word} ||| {a.probability:.6f} ||| {a.text}\n")


def requests(job: Any, prefix: str | None, constraints: str | None, tag: str | None, translator: Any) -> Any:
    """The lines of a job with what is demanded of their translations. Raises: ConfigError, DataError."""
    if tag is not None and not translator.tokenizers.src.is_symbol(tag):
        what = f"{tag!r} is no piece of the source vocabulary"
        raise ConfigError(what, where="--tag", hint="train with it among tokenizer.user_symbols")
    lines = job.read() if tag is None else (f"{tag} {line}" if line.strip() else line for line in job.read())
    if prefix is None and constraints is None:
        return lines
    from mtkit.decoding.translator import Request

    columns = [lines, *(job.read([path]) if path else None for path in (prefix, constraints))]
    return (
        Request(line or "", beginning or "", parse_constraints(wanted or ""))
        for line, beginning, wanted in in_step(columns, ["the input", prefix, constraints], job.first + 1)
    )


def parse_constraints(line: str) -> tuple[tuple[str, ...], ...]:
    """What must appear, from tab-separated text; alternatives are divided by `|`."""
    wanted = (tuple(filter(None, map(str.strip, part.split("|")))) for part in line.split("\t"))
    return tuple(filter(None, wanted))
