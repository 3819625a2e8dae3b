"""Diagnoses a run: reads its folder, its data and its best weights, as far as they are there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from mtkit.checkpoint import CONFIG_FILE
from mtkit.config.sections import Config, DataConfig, SourceConfig
from mtkit.data.readers import Pair
from mtkit.data.sources import Split, open_sources
from mtkit.data.tokenizer import BYTE_PIECE, Tokenizer, Tokenizers, load_tokenizers
from mtkit.errors import MtkitError, StorageError
from mtkit.evaluation.history import History, Sample, read_history
from mtkit.evaluation.run_files import METRICS_FILE
from mtkit.evaluation.runs import read_overview
from mtkit.formatting import format_count
from mtkit.training.diagnosis.curves import Levels, find_in_curves
from mtkit.training.diagnosis.finding import Finding
from mtkit.training.diagnosis.outputs import find_in_outputs
from mtkit.training.diagnosis.pairing import find_in_pairing, measure_pairing
from mtkit.training.diagnosis.texts import TokenCounts, TrainingText, find_in_set, find_in_training_text
from mtkit.translation.model_folder import data_of_run, find_checkpoint, read_config
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator

_MAX_TRAINING_PAIRS = 1_000_000
"""Training pairs that are read; the beginning of larger corpora."""
_SAMPLE_PAIRS = 2000
_MAX_SET_PAIRS = 5000
_TRANSLATED = 48
_MAX_CHARACTERS = 300
"""Longer sentences are not translated, to save time."""

_EXPLAINED_BY = {
    "overfitting": {"misaligned-validation", "swapped-sides", "script", "other-language"},
    "misaligned-validation": {"swapped-sides", "script", "other-language", "equal-sides", "source-ignored"},
    "other-language": {"equal-sides"},
    "vocabulary": {"swapped-sides", "script", "other-language", "equal-sides"},
    "copies": {"equal-sides"},
    "short-output": {"chance", "empty-pairs"},
    "same-output": {"chance", "learning-rate-low", "learning-rate-high", "divergence", "source-ignored"},
    "endless-output": {"chance", "learning-rate-low", "learning-rate-high", "divergence"},
    "source-ignored": {"chance", "learning-rate-low", "learning-rate-high", "divergence"},
    "too-few-updates": {"chance", "learning-rate-low", "equal-sides", "empty-pairs", "short-output", "endless-output"},
}  # fmt: skip
"""Findings that are only a consequence of others, which are named before them."""


@dataclass
class Diagnosis:
    """Result of examining a run.

    Attributes:
        run: its folder.
        findings: what is wrong, causes before consequences.
        checked: what was looked at, each in a line.
        unchecked: what could not be looked at, and why.
    """

    run: Path
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note that a part could not be checked if the block raises an error of the user's making."""
        try:
            yield
        except MtkitError as error:
            self.unchecked.append(f"{name}: {' '.join(str(error).split())}")


def diagnose(run: Path) -> Diagnosis:
    """Diagnose a run, running or over.

    Args:
        run: run folder.

    Raises:
        StorageError: If it is not the folder of a run, or its config or log cannot be read.
    """
    if not run.is_dir():
        what = "a file, not a run folder" if run.exists() else "no such folder"
        raise StorageError(what, where=str(run), hint="name a run folder")
    history = read_history(run)
    if not (run / CONFIG_FILE).is_file():
        raise StorageError(
            f"no {CONFIG_FILE}: not a run folder", where=str(run), hint="copy the whole folder"
        )
    config = read_config(run, "it was written by another version of mtkit")
    found = Diagnosis(run)
    _Examination(found, config, history).examine()
    found.findings = _causes_first(found.findings)
    return found


def _causes_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings that others explain to the end."""
    kinds = {finding.kind for finding in findings}
    return sorted(findings, key=lambda finding: bool(_EXPLAINED_BY.get(finding.kind, set()) & kinds))


class _Examination:
    """The steps of a diagnosis, each of which adds to it."""

    def __init__(self, found: Diagnosis, config: Config, history: History) -> None:
        self.found, self.config, self.history = found, config, history
        self.training = TrainingText()
        self.first_pairs: list[Pair] = []
        self.valid: list[Pair] = []
        self.tokenizers: Tokenizers | None = None
        self.state = read_overview(found.run).state

    def examine(self) -> None:
        """Look at everything that is there."""
        with self.found.part("the tokenizers"):
            self.tokenizers = load_tokenizers(self.found.run)
        self._texts()
        self._curves()
        self._model()

    # --- text -----------------------------------------------------------------------------------------------------

    def _texts(self) -> None:
        run, config = self.found.run, self.config
        data = config.data
        with self.found.part("where the data is"):
            data = data_of_run(config, run)
        with self.found.part("the training pairs"):
            self.training, self.first_pairs = _read_training(data)
            what = "all" if self.training.num_read < _MAX_TRAINING_PAIRS else "the first"
            self.found.checked.append(f"{what} {format_count(self.training.num_read, 'training pair')}")
        if self.tokenizers is None or not self.training.sample:
            return
        count_src, count_tgt = map(_token_counter, (self.tokenizers.src, self.tokenizers.tgt))
        self.found.findings += find_in_training_text(
            self.training, count_src, count_tgt, drops_duplicates=data.drop_duplicates
        )
        splits: list[tuple[Split, str, Sequence[SourceConfig]]] = [
            ("valid", "validation set", data.valid),
            ("test", "test set", data.test),
        ]
        for split, noun, configs in splits:
            with self.found.part(f"the {noun}s"):
                for number, source in enumerate(open_sources(configs, data, split)):
                    pairs = [pair for _, pair in islice(source.read(), _MAX_SET_PAIRS)]
                    name, key = f"{noun} {source.name}", f"data.{split}.{number}"
                    tag = configs[number].tag or ""
                    self.found.findings += find_in_set(
                        name, key, pairs, self.training, count_src, count_tgt, tag
                    )
                    self.found.checked.append(f"{noun} {source.name}, {format_count(len(pairs), 'pair')}")
                    if split == "valid":
                        self.valid += pairs

    # --- log ------------------------------------------------------------------------------------------------------

    def _curves(self) -> None:
        history = self.history
        vocab_size, frequencies = self.config.tokenizer.vocab_size, None
        if self.tokenizers is not None:
            vocab_size = self.tokenizers.tgt.num_pieces
            frequencies = _entropy(self.tokenizers.tgt, [pair.tgt for pair in self.training.sample])
        levels = Levels(vocab_size, frequencies)
        self.found.findings += find_in_curves(history, self.config, levels, has_ended=self.state == "ended")
        validations = format_count(len(history.validations), "validation")
        if history.num_damaged:
            lines = f"{format_count(history.num_damaged, 'line')} of {METRICS_FILE}"
            verb = "is" if history.num_damaged == 1 else "are"
            self.found.unchecked.append(f"{lines}, which {verb} damaged")
        self.found.checked.append(f"the log: {format_count(history.last_step, 'update')}, {validations}")

    # --- model ----------------------------------------------------------------------------------------------------

    def _model(self) -> None:
        with self.found.part("the model"):
            checkpoint = find_checkpoint(self.found.run)
            # with these, the score of a translation is the mean log-probability of its tokens
            scoring = {"length_penalty": 1.0, "penalty_kind": "simple", "coverage_penalty": 0.0}
            decoding = self.config.validation_decoding.model_copy(update=scoring)
            device = "cpu" if self.state == "running" else "auto"  # its GPU may have no room
            translator = Translator.load(checkpoint, decoding=decoding, device=device)
            pairs, name = (self.valid, "validation") if self.valid else (self.training.sample, "training")
            short = [pair for pair in pairs if pair.src.strip() and max(map(len, pair)) <= _MAX_CHARACTERS]
            chosen = short[:: max(1, len(short) // _TRANSLATED)][:_TRANSLATED]
            if not chosen:
                return
            hyps = translator.translate([Request(pair.src) for pair in chosen])
            samples = [Sample(*pair, hyp.text) for pair, hyp in zip(chosen, hyps, strict=True)]
            self.found.findings += find_in_outputs(samples)
            where = checkpoint.name
            self.found.checked.append(f"translations of {len(samples)} {name} sentences by {where}")

            def score(srcs: Sequence[str], tgts: Sequence[str]) -> list[float]:
                return [scored.score for scored in translator.score(srcs, tgts)]

            training, valid = (
                measure_pairing(_without_long(each, translator), score)
                for each in (self.first_pairs, self.valid)
            )
            self.found.findings += find_in_pairing(training, valid, self.history.last_step)
            if training is not None:
                of_valid = "" if valid is None else f" and {valid.num_targets} validation"
                self.found.checked.append(
                    f"whether {training.num_targets} training{of_valid} targets fit their source better than others"
                )


def _without_long(pairs: Sequence[Pair], translator: Translator) -> list[Pair]:
    """Return the pairs, with an empty one in the place of each that has more tokens than the model can score."""
    limit = translator.max_source_tokens
    tgt_limit = translator.decoding.max_length(limit)
    srcs = translator.tokenizers.src.encode([pair.src for pair in pairs])
    tgts = translator.tokenizers.tgt.encode([pair.tgt for pair in pairs])
    return [
        pair if len(src) <= limit and len(tgt) <= tgt_limit else Pair("", "")
        for pair, src, tgt in zip(pairs, srcs, tgts, strict=True)
    ]


def _read_training(data: DataConfig) -> tuple[TrainingText, list[Pair]]:
    """Read the training pairs, or the beginning of a large corpus. Returns what is known of them, and the first ones.

    Raises:
        ConfigError: If a source needs a package that is not installed.
        DataError: If a source is missing or cannot be read.
    """
    text, rng = TrainingText(), random.Random(1)
    first: list[Pair] = []
    sources = zip(data.train, open_sources(data.train, data, "train"), strict=True)
    pairs = ((pair, config.tag or "") for config, source in sources for _, pair in source.read())
    for pair, tag in islice(pairs, _MAX_TRAINING_PAIRS):
        text.add(pair, tag)
        if len(first) < _SAMPLE_PAIRS:
            first.append(pair)
            text.sample.append(pair)
        elif (place := rng.randrange(text.num_read)) < _SAMPLE_PAIRS:  # reservoir sampling
            text.sample[place] = pair
    return text, first


def _token_counter(tokenizer: Tokenizer) -> Callable[[Sequence[str]], TokenCounts]:
    """Return a function that counts the tokens of lines, and those that are unknown or spell a byte."""
    spelled = {i for i in range(tokenizer.num_pieces) if BYTE_PIECE.fullmatch(tokenizer.piece(i))}

    def count(lines: Sequence[str]) -> TokenCounts:
        ids = Counter(int(i) for row in tokenizer.encode(lines) for i in row)
        return TokenCounts(ids.total(), ids[tokenizer.unk], sum(ids[i] for i in spelled))

    return count


def _entropy(tokenizer: Tokenizer, lines: Sequence[str]) -> float | None:
    """Return the entropy of the tokens of lines, ends included, in nats; None without lines."""
    if not lines:
        return None
    rows = tokenizer.encode(lines)
    counts = np.bincount(np.concatenate(rows), minlength=tokenizer.vocab_size).astype(float)
    counts[tokenizer.eos] += len(rows)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
