"""Work of the stages of a distillation. torch is imported where it is needed, in the processes of the stages."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.checkpoint import ADAPTERS_FILE, MODEL_FILE
from mtkit.config.loading import parse_config
from mtkit.config.sections import Config, DataConfig
from mtkit.data.documents import is_document, read_side, unread_sheets_note
from mtkit.data.readers import Pair
from mtkit.data.sources import Split, open_sources, untagged
from mtkit.errors import ConfigError, DataError
from mtkit.files import make_folder, read_lines, remove_tree
from mtkit.formatting import format_count
from mtkit.languages import is_unspaced
from mtkit.pipelines.corpora import write_corpora
from mtkit.pipelines.resumable_file import ResumableFile
from mtkit.pipelines.stages import Context, Settings, use_threads
from mtkit.pipelines.translation_filter import KEPT, TranslationFilter, summary

if TYPE_CHECKING:
    from mtkit.data.tokenizer import Tokenizers
    from mtkit.interop.exporting import LoadedModel
    from mtkit.interop.proof import ProofText
    from mtkit.training.validation import EvalSet
    from mtkit.translation.options import DecodingOverrides, Parallelism
    from mtkit.translation.segments import Request
    from mtkit.translation.translator import Translator

_MOST_COMPARED = 5_000
"""Lines of a larger test set that are compared: an even sample, which each system translates on the CPU."""
_PER_TOKEN: DecodingOverrides = {"length_penalty": 1.0, "penalty_kind": "simple", "coverage_penalty": 0.0}
"""Settings with which a score is the mean log-probability of the tokens."""

_Lines = Iterator[tuple[str, str | None]]
"""Source lines and their references, if they have any."""


# --- translations -------------------------------------------------------------------------------------------------


def write_targets(settings: Settings, context: Context) -> dict[str, Any]:
    """Translate the training sources, filter and score the translations; return the counts of the filter.

    For each corpus a file of source, target and dual cross-entropy is written.

    Raises:
        DataError: If the file of translations has another number of lines than there are sources.
    """
    from mtkit.training.display import Display
    from mtkit.translation.options import LineProgress

    say, folder, counts = Display(context.console).say, Path(settings["folder"]), Counter[str]()
    make_folder(folder)
    corpora, given = _Corpora(settings), settings["translations"]
    paths = [path for source in corpora.sources for path in source.paths]
    for path in (*paths, *map(Path, filter(None, [*corpora.mono, given]))):
        if note := unread_sheets_note(path):
            say(note)
    total = sum(1 for _ in LineProgress(say, task="counting lines").over(corpora.all_lines()))
    if given is not None:
        _check_length(given, settings["data"]["tgt"], total)
    maker = _TargetMaker(settings, say, total, context.parallelism)
    for name, tag in settings["tags"].items():
        job = dict(settings) | {"name": name}
        with closing(ResumableFile(folder / f"{name}.tsv", job, fresh=context.fresh)) as output:
            maker.write(output, corpora.lines(name), tag)
            counts.update(output.counts)
    say(summary(counts))
    return {"counts": dict(counts)}


def _check_length(path: str, language: str, total: int) -> None:
    """Check that a file has as many translations as there are lines to translate."""
    if (found := sum(1 for _ in _read_text(path, language))) != total:
        what = f"{format_count(found, 'line')}, but the training corpora and `mono` have {total:,}"
        hint = "line n translates line n of them, one after the other"
        raise DataError(what, where=path, hint=hint)


def _read_text(path: str, language: str) -> Iterator[str]:
    """Return the lines of a text; of a document, its side in a language."""
    if is_document(path):
        return (text for _, text in read_side(Path(path), language))
    return read_lines(path)


class _Corpora:
    """The corpora whose sources are translated.

    Args:
        settings: see `write_targets`.
    """

    def __init__(self, settings: Settings) -> None:
        data = DataConfig.model_validate(settings["data"])
        self.sources = open_sources(untagged(data.train), data, "train")
        self.mono, self.names, self.src = settings["mono"], list(settings["tags"]), data.src

    def lines(self, name: str) -> _Lines:
        """Yield the lines of a corpus."""
        number = self.names.index(name)
        if number < len(self.sources):
            return ((pair.src, pair.tgt) for _, pair in self.sources[number].read())
        return ((line, None) for path in self.mono for line in _read_text(path, self.src))

    def all_lines(self) -> _Lines:
        """Yield the lines of all corpora."""
        return chain.from_iterable(map(self.lines, self.names))


class _TargetMaker:
    """Translates lines, or takes their translations from a file, and writes those that pass the filter.

    Args:
        settings: see `write_targets`.
        say: prints a line.
        total: lines of all corpora.
        parallelism: workers and threads of translations.
    """

    def __init__(
        self, settings: Settings, say: Callable[[str], None], total: int, parallelism: Parallelism
    ) -> None:
        from mtkit.translation.mbr import make_utility
        from mtkit.translation.translator import Translator

        use_threads(settings)
        teachers, backward, path = settings["teachers"], settings["backward"], settings["translations"]
        machine: Any = {"device": settings["device"], "precision": settings["precision"]}
        self.closest = settings["closest"]
        tgt = settings["data"]["tgt"]
        # Not all languages without spaces have a tokenizer, and without one a sentence is a single word for BLEU.
        self.closeness = make_utility("chrf" if is_unspaced(tgt) else "bleu", tgt)
        self.given = None if path is None else _read_text(path, tgt)
        self.teacher: Translator | None = None
        self.forward: Translator | None = None
        tokenizers: Tokenizers | None = None
        if teachers:
            members = {"ensemble": teachers[1:], **machine}
            self.forward = Translator.load(teachers[0], **members, **_PER_TOKEN)
            tokenizers = self.forward.tokenizers
            _check_tags(filter(None, settings["tags"].values()), tokenizers)
            if path is None:
                # Null is a value of `mbr` alone: the others are as in the teacher's config then.
                given = settings["decoding"].items()
                changes = {key: value for key, value in given if value is not None or key == "mbr"}
                changes["n_best"] = self.closest
                self.teacher = Translator.load(teachers[0], **members, **changes)
        self.backward = None if backward is None else Translator.load(backward, **machine, **_PER_TOKEN)
        self.translation_filter = TranslationFilter(tokenizers, settings["max_ratio"])
        self.num_lines, self.total, self.say = 0, total, say
        self.parallelism = parallelism

    def write(self, output: ResumableFile, lines: _Lines, tag: str) -> None:
        """Write the targets of a corpus; go on where a job was stopped."""
        from mtkit.data.readers import as_cell
        from mtkit.pipelines.translations import CHUNK_LINES
        from mtkit.translation.options import LineProgress

        done = output.num_lines
        for _ in islice(lines, done):
            pass
        if self.given is not None:
            for _ in islice(self.given, done):
                pass
        self.num_lines += done
        if output.is_finished:
            return
        progress = LineProgress(self.say, self.total, self.num_lines)
        while chunk := list(islice(lines, CHUNK_LINES)):
            counts: Counter[str] = Counter()
            rows = list(self._targets(chunk, tag, output.num_lines, counts, progress))
            text = "".join(f"{as_cell(src)}\t{as_cell(tgt)}\t{entropy:.4f}\n" for src, tgt, entropy in rows)
            output.append(text, len(chunk), counts)
            self.num_lines += len(chunk)
        output.finish()

    def _targets(
        self,
        chunk: Sequence[tuple[str, str | None]],
        tag: str,
        first: int,
        counts: Counter[str],
        progress: Callable[[int], None],
    ) -> Iterator[tuple[str, str, float]]:
        """Yield the pairs that pass the filter, and their dual cross-entropies."""
        texts = self._translate(chunk, tag, first, progress)
        lines = [src for src, _ in chunk]
        reasons = self.translation_filter.reasons(lines, [text or "" for text in texts])
        reasons = [
            "not translated" if text is None else reason for text, reason in zip(texts, reasons, strict=True)
        ]
        kept = [i for i, reason in enumerate(reasons) if reason == KEPT]
        pairs = [(lines[i], str(texts[i])) for i in kept]
        for i, (src, tgt), entropy in zip(kept, pairs, self._cross_entropies(pairs, tag), strict=True):
            if entropy is None:
                reasons[i] = "too long to score"
            else:
                yield src, tgt, entropy
        counts.update(reasons)

    def _translate(
        self,
        chunk: Sequence[tuple[str, str | None]],
        tag: str,
        first: int,
        progress: Callable[[int], None],
    ) -> list[str | None]:
        """Return the target of each line; None for one that cannot be translated."""
        from mtkit.translation.options import TranslateOptions
        from mtkit.translation.segments import Request

        if self.given is not None:
            progress(len(chunk))
            return [*islice(self.given, len(chunk))]
        assert self.teacher is not None
        options = TranslateOptions(
            read_ahead=len(chunk),
            first_line=first,
            on_error="skip",
            on_progress=progress,
            parallelism=self.parallelism,
        )
        requests: list[str | Request] = [Request(src, tag=tag) for src, _ in chunk]
        chosen: list[str | None] = []
        for (_, ref), found in zip(chunk, self.teacher.translate_n_best(requests, options), strict=True):
            hyps = [translation.text for translation in found]
            best = 0
            if len(hyps) > 1 and ref:
                best = int(self.closeness(hyps, [ref])[:, 0].argmax())
            chosen.append(None if found[0].fault is not None else hyps[best])
        return chosen

    def _cross_entropies(self, pairs: Sequence[tuple[str, str]], tag: str) -> Iterator[float | None]:
        """Yield the dual cross-entropy of each pair per token, None if it is too long to be scored.

        With both directions it is |H_f - H_b| + (H_f + H_b) / 2 (Junczys-Dowmunt 2018, "Dual Conditional Cross-Entropy
        Filtering of Noisy Parallel Corpora", eq. 1), with one direction H alone, without any 0.
        """
        swapped = [(tgt, src) for src, tgt in pairs]
        forward = _entropies(self.forward, pairs, tag, self.parallelism)
        backward = _entropies(self.backward, swapped, "", self.parallelism)
        for f, b in zip(forward, backward, strict=True):
            if f is None or b is None:
                yield None
            elif self.forward is None or self.backward is None:
                yield f + b
            else:
                yield abs(f - b) + (f + b) / 2


def _entropies(
    model: Translator | None, pairs: Sequence[tuple[str, str]], tag: str, parallelism: Parallelism
) -> Iterator[float | None]:
    """Yield the cross-entropy per token of each pair, 0 without a model, None for a pair that is too long."""
    if model is None:
        yield from [0.0] * len(pairs)
        return
    for _, scored in model.score_stream(pairs, skip_long=True, tag=tag, parallelism=parallelism):
        yield None if scored is None else -scored.score


def _check_tags(tags: Iterable[str], tokenizers: Tokenizers) -> None:
    """Check that a teacher knows the tags of the corpora, of which it would otherwise translate the letters.

    Raises:
        ConfigError: If it does not.
    """
    for tag in tags:
        if not tokenizers.src.is_single_piece(tag):
            what = f"the teacher does not know the tag {tag!r}"
            raise ConfigError(what, where="data.train", hint="leave this corpus out, or its tag")


# --- choice -------------------------------------------------------------------------------------------------------


def choose_targets(settings: Settings, context: Context) -> dict[str, Any]:
    """Leave out the pairs with the highest cross-entropy, and write the others as parallel files."""
    import numpy as np

    from mtkit.training.display import Display

    source, names = Path(settings["translations"]), settings["names"]
    entropies = np.fromiter((row[2] for name in names for row in _rows(source, name)), np.float64)
    if not len(entropies):
        raise DataError("no translation passed the filter", where=str(source), hint="see the counts above")
    limit = float(np.quantile(entropies, 1 - settings["drop_worst"])) if settings["drop_worst"] else math.inf
    kept = (
        (Pair(src, tgt) for src, tgt, entropy in _rows(source, name) if entropy <= limit) for name in names
    )
    pairs = write_corpora(Path(settings["folder"]), zip(names, kept, strict=True))
    left_out = len(entropies) - sum(pairs.values())
    Display(context.console).say(
        f"{format_count(sum(pairs.values()), 'pair')} to learn from; {left_out:,} more left out, "
        f"with a cross-entropy above {limit:.2f} per token"
        if left_out
        else f"{format_count(sum(pairs.values()), 'pair')} to learn from"
    )
    return {"pairs": pairs, "left_out": left_out, "limit": limit if left_out else None}


def _rows(folder: Path, name: str) -> Iterator[tuple[str, str, float]]:
    """Yield the pairs of a corpus and their cross-entropies."""
    for line in read_lines(folder / f"{name}.tsv"):
        src, tgt, entropy = line.split("\t")
        yield src, tgt, float(entropy)


# --- student ------------------------------------------------------------------------------------------------------


def list_tokens(settings: Settings, context: Context) -> dict[str, Any]:
    """Make the shortlist of the student from the pairs that it learned from; return what it covers.

    The teacher aligns them if it has the tokenizers of the student, otherwise the student itself.
    """
    from mtkit.data.encoding import encode_corpus
    from mtkit.training.display import Display
    from mtkit.translation.loading import load_own_tokenizers
    from mtkit.translation.model_folder import find_checkpoint
    from mtkit.translation.options import LineProgress
    from mtkit.translation.shortlist import (
        MOST_ALIGNED,
        ShortlistSize,
        make_shortlist,
        measure_coverage,
        save_shortlist,
    )
    from mtkit.translation.translator import Translator

    use_threads(settings)
    config, say = parse_config(settings["config"]), Display(context.console).say
    run, teacher = Path(config.run), settings["teacher"]
    tokenizers = load_own_tokenizers(find_checkpoint(run))
    aligner = run
    if teacher is not None:
        theirs = load_own_tokenizers(find_checkpoint(Path(teacher)))
        aligner = Path(teacher) if theirs.fingerprint == tokenizers.fingerprint else run
    model = Translator.load(aligner, device=settings["device"], shortlist=False)
    sources = open_sources(config.data.train, config.data, "train")
    corpus = encode_corpus(sources, tokenizers, config.data, LineProgress(say, task="encoding"), say)
    size = ShortlistSize(settings["first"], settings["best"])
    progress = LineProgress(say, min(len(corpus), MOST_ALIGNED))
    found = make_shortlist(model.ensemble, corpus, size, model.decoding.batch_tokens, progress)
    save_shortlist(run, found, tokenizers)
    coverage = measure_coverage(found, corpus, tokenizers)
    say(f"aligned by {aligner}: {coverage.describe(tokenizers.tgt.num_pieces)}")
    return {"aligner": str(aligner), **coverage._asdict()}


def export_int8(settings: Settings, context: Context) -> None:
    """Write the student in 8 bits, in place of what an earlier call wrote."""
    from mtkit.interop.exporting import export_model
    from mtkit.interop.own import OwnExporter
    from mtkit.interop.proof import own_text
    from mtkit.training.display import Display

    config, folder = parse_config(settings["config"]), Path(settings["folder"])
    remove_tree(folder)

    run, say = Path(config.run), Display(context.console).say

    def find_text(model: LoadedModel) -> ProofText:
        return own_text(run, model.config, model.tokenizers)

    export_model(run, OwnExporter(), folder, find_text, say, type_="int8")


def _held_out(config: Config) -> EvalSet | None:
    """Return the first test set, or else the first validation set, if there is one.

    Raises:
        ConfigError: If a source needs a package that is not installed.
        DataError: If it cannot be read.
    """
    from mtkit.training.inputs import read_set

    splits: tuple[Split, ...] = ("test", "valid")
    for split in splits:
        configs = getattr(config.data, split)
        for source, settings in zip(open_sources(configs, config.data, split), configs, strict=True):
            return read_set(source, settings)
    return None


# --- comparison ---------------------------------------------------------------------------------------------------


def compare_systems(settings: Settings, context: Context) -> dict[str, Any]:
    """Translate a test set on the CPU with the teacher and the student, and return scores, speed and size of each."""
    import torch

    from mtkit.evaluation.significance import compare
    from mtkit.model.cpu.packing import can_multiply_int8
    from mtkit.training.display import Display
    from mtkit.translation.model_folder import find_checkpoint
    from mtkit.translation.options import LineProgress, TranslateOptions
    from mtkit.translation.translator import Translator

    use_threads(settings)
    config = parse_config(settings["config"])
    held_out = _held_out(config)
    if held_out is None:
        Display(context.console).say("there is no test or validation set to compare the systems on")
        return {"systems": []}
    systems: list[tuple[str, str, dict[str, Any]]] = []
    if settings["teachers"]:
        first, *others = settings["teachers"]
        systems.append(("teacher, beam 5", first, {"ensemble": others, "beam_size": 5}))
    else:
        systems.append(
            ("student, fp32, beam 5", config.run, {"precision": "fp32", "beam_size": 5, "shortlist": False})
        )
    precisions = [("fp32", config.run)]
    if can_multiply_int8():
        precisions.append(("int8", settings["small"]))
    for precision, folder in precisions:
        for shortlist in (False, True):
            label = f"student, {precision}, greedy{', shortlist' if shortlist else ''}"
            systems.append((label, folder, {"precision": precision, "beam_size": 1, "shortlist": shortlist}))
    say, total = Display(context.console).say, len(held_out.srcs)
    number = min(total, _MOST_COMPARED)
    if number < total:
        say(
            f"the systems are compared on {number:,} of the {total:,} lines of {held_out.name}, evenly sampled"
        )
        places = [line * total // number for line in range(number)]
        srcs, refs = ([side[place] for place in places] for side in (held_out.srcs, held_out.tgts))
        held_out = replace(held_out, srcs=srcs, tgts=refs)
    requests = held_out.requests()
    found = []
    for label, folder, options in systems:
        translator = Translator.load(
            folder, device="cpu", n_best=1, sample=False, mbr=None, groups=1, **options
        )
        progress = LineProgress(say, 2 * len(requests), task=f"{label} (twice)")
        parallel = TranslateOptions(on_progress=progress, parallelism=context.parallelism)
        # starts the workers; fewer lines would be fewer batches, and start fewer
        list(translator.translate(requests, parallel))
        start = time.perf_counter()
        texts = [translation.text for translation in translator.translate(requests, parallel)]
        seconds = time.perf_counter() - start
        translator.close()
        folders = [folder, *options.get("ensemble", ())]
        size = sum(_weights_size(find_checkpoint(Path(each))) for each in folders)
        found.append((label, texts, len(requests) / seconds, size / 1e6))
    metrics, data = ("bleu", "chrf"), config.data
    scores = compare(
        [texts for _, texts, _, _ in found],
        [held_out.tgts],
        metrics,
        tokenize=config.validation.bleu_tokenizer,
        tgt=data.tgt,
    )
    return {
        "test set": held_out.name,
        "lines": len(requests),
        "threads": torch.get_num_threads(),
        "signatures": [score.signature for score in scores[0]],
        "systems": [
            {
                "system": label,
                **{score.name: score.value for score in own},
                "p": own[0].p_value if own[0].value != scores[0][0].value else None,  # see `compare`
                "sentences/s": speed,
                "MB": size,
            }
            for (label, _, speed, size), own in zip(found, scores, strict=True)
        ],
    }


def _weights_size(folder: Path) -> int:
    """Return the bytes of the weights in a checkpoint."""
    files = (folder / name for name in (MODEL_FILE, ADAPTERS_FILE))
    return sum(file.stat().st_size for file in files if file.exists())
