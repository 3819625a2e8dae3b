"""Scores of translations, each with the signature that says how it was computed.

All numbers come from sacreBLEU (Post 2018, "A Call for Clarity in Reporting BLEU Scores") with its defaults and
equal those of the `sacrebleu` command: BLEU (Papineni et al. 2002), chrF (Popović 2015),
chrF++ (Popović 2017), TER (Snover et al. 2006), and the bootstrap intervals of Koehn (2004).
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mtkit.config.choices import DEFAULT_METRICS, METRICS
from mtkit.errors import ConfigError, DataError
from mtkit.languages import BLEU_TOKENIZERS, bleu_can_tokenize, short_code

if TYPE_CHECKING:
    from sacrebleu import TER
    from sacrebleu.metrics.base import Metric
    from sacrebleu.metrics.base import Score as SacrebleuScore

HIGHER_IS_BETTER = {"bleu": True, "chrf": True, "chrf++": True, "ter": False}

NAMES = {"BLEU": "bleu", "chrF2": "chrf", "chrF2++": "chrf++", "TER": "ter"}
"""Names of metrics by sacreBLEU's names for them."""

ERROR_RATES = ("TER",)
"""sacreBLEU's names of the metrics of which less is better."""

MOSES_BLEU = "bleu-moses"
"""BLEU of lower-cased text, tokenized by Moses; see `mtkit.evaluation.moses`."""

DEFAULT_SEED = 12345
"""Seed for resampling; sacreBLEU's default."""

_SEED_VARIABLE = "SACREBLEU_SEED"

_DEFAULT_TOKENIZER = "13a"


@dataclass(frozen=True)
class Score:
    """Corpus score under one metric.

    Attributes:
        name: sacreBLEU's name of the metric: BLEU, chrF2, chrF2++ or TER.
        value: the score, from 0 to 100 (TER can be larger).
        signature: sacreBLEU's signature: how the score was computed. A score is never shown without it.
        mean: mean over the bootstrap resamples, if requested.
        confidence: half the width of their 95% interval, if requested.
        detail: components of the score, if the metric has any (BLEU: precisions, brevity penalty, lengths).
        p_value: of the difference from a baseline, if there is one; see `mtkit.evaluation.significance`.
        higher_is_better: whether a larger value is better.
        decimals: digits after the point that are shown.
    """

    name: str
    value: float
    signature: str
    mean: float | None = None
    confidence: float | None = None
    detail: str | None = None
    p_value: float | None = None
    higher_is_better: bool = True
    decimals: int = 2

    def format(self, width: int | None = None) -> str:
        """Return one line as the `sacrebleu` command prints it, with `width` decimals or as many as are usual."""
        width = self.decimals if width is None else width
        line = f"{self.name}|{self.signature} = {self.value:.{width}f}"
        if self.mean is not None:
            line += f" (μ = {self.mean:.{width}f} ± {self.confidence:.{width}f})"
        return f"{line} {self.detail}" if self.detail else line

    def as_dict(self) -> dict[str, str | float]:
        """Return the unrounded score for JSON, without the fields that were not requested."""
        fields: dict[str, str | float | None] = {
            "name": self.name,
            "score": self.value,
            "mean": self.mean,
            "confidence": self.confidence,
            "p_value": self.p_value,
            "detail": self.detail,
            "signature": self.signature,
        }
        return {key: value for key, value in fields.items() if value is not None}


def score(
    hyps: Sequence[str],
    refs: Sequence[Sequence[str | None]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt: str | None = None,
    num_bootstrap: int = 0,
    seed: int = DEFAULT_SEED,
) -> list[Score]:
    """Score detokenized translations against one or more references.

    Args:
        hyps: one translation per sentence.
        refs: one or more streams of references, each as long as `hyps`. None is a missing reference (the signature
            then says `nrefs:var`), "" an empty one.
        metrics: names from `METRICS`, or `MOSES_BLEU`, in any case.
        tokenize: sacreBLEU's tokenizer for BLEU; by default that of the target language (see `default_tokenizer`).
        lowercase: ignore case in BLEU and chrF. TER always ignores it, by convention, and so does `MOSES_BLEU`.
        tgt: code of the target language.
        num_bootstrap: resamples for the 95% interval, usually 1000; 0 computes none.
        seed: seed for the resampling. The environment variable SACREBLEU_SEED is ignored.

    Returns:
        One score per metric, in the order of `metrics`.

    Raises:
        DataError: If there is nothing to score, streams differ in length, a sentence has no reference, or a model of
            a tokenizer cannot be downloaded.
        ConfigError: If a metric or tokenizer is unknown or not installed, or `num_bootstrap` is 1 or negative.
    """
    check_streams(hyps, refs)
    if num_bootstrap < 0 or num_bootstrap == 1:
        raise ConfigError(
            f"{num_bootstrap} bootstrap resamples give no interval",
            hint="use 0 for no interval, else at least 2; 1000 is usual",
        )
    return [
        corpus_score(metric, hyps, refs, num_bootstrap, seed)
        for metric in build_metrics(metrics, tokenize, lowercase, tgt)
    ]


@dataclass(frozen=True)
class SentenceScores:
    """Scores of single sentences under one metric.

    Attributes:
        name: sacreBLEU's name of the metric.
        values: score of each sentence.
        signature: sacreBLEU's signature.
    """

    name: str
    values: list[float]
    signature: str


def score_sentences(
    hyps: Sequence[str],
    refs: Sequence[Sequence[str | None]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt: str | None = None,
) -> list[SentenceScores]:
    """Score each sentence by itself, as `sacrebleu --sentence-level` does: BLEU with effective order.

    See `score` for arguments and errors.
    """
    check_streams(hyps, refs)
    scored = []
    for metric in build_metrics(metrics, tokenize, lowercase, tgt, effective_order=True):
        results = [
            metric.sentence_score(hyp, cast(list[str], list(of_hyp)))
            for hyp, *of_hyp in zip(hyps, *refs, strict=True)
        ]
        values = [float(result.score) for result in results]
        signature = metric.get_signature().format()
        if len({sum(ref is not None for ref in own) for own in zip(*refs, strict=True)}) > 1:
            signature = re.sub(r"nrefs:\d+", "nrefs:var", signature)  # it is that of the last sentence
        scored.append(SentenceScores(results[0].name, values, signature))
    return scored


def check_metrics(metrics: Sequence[str], *, tokenize: str | None = None, tgt: str | None = None) -> None:
    """Check the options of `score`, so that an error surfaces before training and not at the first validation.

    Raises:
        ConfigError: If a metric or tokenizer is unknown or not installed.
        DataError: If a model of a tokenizer cannot be downloaded.
    """
    build_metrics(metrics, tokenize, lowercase=False, tgt=tgt)


def default_tokenizer(tgt: str | None) -> str:
    """Return sacreBLEU's default tokenizer for BLEU in a language: the language's own if there is one, else 13a.

    Those of Japanese and Korean are separate packages; without them the default is to count characters.
    """
    from sacrebleu import BLEU

    own = BLEU_TOKENIZERS.get(short_code(tgt), _DEFAULT_TOKENIZER)
    try:
        BLEU(tokenize=own)
    except RuntimeError:
        return "char"
    return own


def bleu_warning(metrics: Sequence[str], tgt: str | None, *, tokenize: str | None = None) -> str | None:
    """Return a warning if BLEU with the default tokenizer is not what users expect in a language, or None."""
    if "bleu" not in metrics or tokenize is not None:
        return None
    language, chosen = short_code(tgt), default_tokenizer(tgt)
    if chosen == "char":
        return (
            f"BLEU counts characters (tok:char) because {BLEU_TOKENIZERS[language]} is not installed: run "
            f'`pip install "sacrebleu[{language}]"`, or set validation.bleu_tokenizer'
        )
    if not bleu_can_tokenize(tgt):
        return (
            f"BLEU is meaningless for {tgt}, which {chosen} cannot split into words: use chrF, or set "
            "validation.bleu_tokenizer to char or flores200"
        )
    return None


def is_better(metric: str, a: float, b: float) -> bool:
    """Return whether score `a` is strictly better than `b` under a metric from `METRICS`."""
    return a > b if HIGHER_IS_BETTER[metric] else a < b


def load_test_set(name: str, src: str, tgt: str) -> tuple[list[str], list[list[str]]]:
    """Return one of sacreBLEU's test sets, such as wmt20 or multi30k/2016.

    sacreBLEU downloads a set on first use to the folder in the environment variable SACREBLEU, by default
    ~/.sacrebleu.

    Args:
        name: name as in `sacrebleu --list`.
        src: code of the source language.
        tgt: code of the target language.

    Returns:
        The source sentences, and one or more streams of references of the same length.

    Raises:
        ConfigError: If there is no such set, or it lacks this language pair.
        DataError: If the set cannot be downloaded, or its files are damaged.
    """
    import sacrebleu

    if name not in sacrebleu.DATASETS:
        hint = f"{_did_you_mean(name, sacrebleu.DATASETS)}`sacrebleu --list` lists all"
        raise ConfigError(f"sacreBLEU has no test set {name!r}", hint=hint)
    pair = f"{src}-{tgt}"
    pairs = sacrebleu.get_langpairs_for_testset(name)
    if pair not in pairs:
        raise ConfigError(
            f"the test set {name} has no language pair {pair}", hint=f"it has {', '.join(pairs)}"
        )

    folder = _cache_folder() / name
    try:
        # Sorted, because the order in which sacreBLEU lists the references of its XML sets differs between runs.
        paths = [sacrebleu.get_source_file(name, pair), *sorted(sacrebleu.get_reference_files(name, pair))]
        sources, *refs = [_read_lines(path) for path in paths]
    except _load_errors() as error:
        raise DataError(
            f"cannot get the test set: {_one_line(error)}",
            where=f"{name} {pair}",
            hint=f"offline, run `sacrebleu --download {name} -l {pair}` on a machine with a network "
            f"and copy its ~/.sacrebleu/{name} to {folder}; otherwise delete {folder} and try again",
        ) from error
    if not refs or any(len(stream) != len(sources) for stream in refs):
        counts = " and ".join(str(len(stream)) for stream in refs) or "no"
        raise DataError(
            f"{len(sources)} sources but {counts} references",
            where=f"{name} {pair}",
            hint=f"delete {folder} and try again",
        )
    return sources, refs


def check_streams(hyps: Sequence[str], refs: Sequence[Sequence[str | None]]) -> None:
    """Check that there are hypotheses, and references of the same length.

    Raises:
        DataError: If not.
    """
    if isinstance(hyps, str):
        raise DataError("hyps is a string, not a list of translations", hint="put it in brackets: [hyps]")
    if not hyps:
        raise DataError("no hypotheses to score")
    if not refs:
        raise DataError("no references to score against")
    for number, stream in enumerate(refs, 1):
        if isinstance(stream, str):
            raise DataError(
                "refs is a list of sentences, not of streams", hint="put a single stream in brackets: [refs]"
            )
        if len(stream) != len(hyps):
            which = f" in stream {number} of {len(refs)}" if len(refs) > 1 else ""
            raise DataError(f"{len(hyps)} hypotheses but {len(stream)} references{which}")
    for number, sentence_refs in enumerate(zip(*refs, strict=True), 1):
        if all(ref is None for ref in sentence_refs):
            raise DataError("no reference", where=f"sentence {number}")


def build_metrics(
    names: Sequence[str],
    tokenize: str | None,
    lowercase: bool,
    tgt: str | None,
    effective_order: bool = False,
) -> list[Metric]:
    """Build sacreBLEU's metrics.

    Args:
        names: see `score`, as are `tokenize`, `lowercase` and `tgt`.
        tokenize: tokenizer for BLEU.
        lowercase: whether to ignore case.
        tgt: code of the target language.
        effective_order: let BLEU leave out the orders of n-grams that a sentence is too short for, as for single
            sentences.

    Raises:
        ConfigError: If a metric or tokenizer is unknown or not installed.
        DataError: If a model of a tokenizer cannot be downloaded.
    """
    from sacrebleu import BLEU, CHRF

    if tokenize is not None and tokenize not in BLEU.TOKENIZERS:
        hint = f"{_did_you_mean(tokenize, BLEU.TOKENIZERS)}one of {', '.join(BLEU.TOKENIZERS)}"
        raise ConfigError(f"sacreBLEU has no tokenizer {tokenize!r}", hint=hint)
    built: list[Metric] = []
    for name in names:
        match name.lower():
            case "bleu":
                tokenizer = tokenize or default_tokenizer(tgt)
                with _tokenizer_errors(tokenizer):
                    built.append(
                        BLEU(lowercase=lowercase, tokenize=tokenizer, effective_order=effective_order)
                    )
            case "chrf":
                built.append(CHRF(lowercase=lowercase))
            case "chrf++":
                built.append(CHRF(lowercase=lowercase, word_order=2))
            case "ter":
                built.append(make_ter(tgt))
            case "bleu-moses":
                from mtkit.evaluation.moses import MosesBleu

                built.append(MosesBleu(tgt, effective_order))
            case _:
                known = (*METRICS, MOSES_BLEU)
                hint = f"{_did_you_mean(name, known)}one of {', '.join(known)}"
                raise ConfigError(f"unknown metric {name!r}", hint=hint)
    return built


def make_ter(tgt: str | None) -> TER:
    """Return sacreBLEU's TER, which takes each letter of Chinese and Japanese for a word."""
    from sacrebleu import TER

    is_asian = short_code(tgt) in ("zh", "ja")
    return TER(normalized=is_asian, asian_support=is_asian)


def _resampled_in_one_type(metric: Metric) -> Metric:
    """Return the metric; its scores of resamples are all of one type.

    Those of chrF and TER are float32, but without any match a plain 0.0, and sacreBLEU's mean fails on a mixture.
    """
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    compute = metric._compute_score_from_stats
    if not isinstance(metric, CHRF | TER):
        return metric

    def compute_in_one_type(stats: Any) -> Any:
        score = compute(stats)
        if not isinstance(stats, list):  # an array: of a resample
            score.score = stats.dtype.type(score.score)
        return score

    metric._compute_score_from_stats = compute_in_one_type  # type: ignore[method-assign]
    return metric


def resample(stats: Any, metric: Metric, number: int, seed: int) -> list[SacrebleuScore]:
    """Return the scores of bootstrap resamples of sentences.

    They are those of sacreBLEU, bit for bit. It holds the statistics of all resamples in memory, up to 100 kB per
    sentence; here each resample is drawn when it is scored.

    Args:
        stats: statistics of each sentence, of the metric.
        metric: the metric.
        number: number of resamples.
        seed: seed of the resamples.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    array = np.array(stats, dtype=np.float32)
    size = len(array)
    return [metric._compute_score_from_stats(array[rng.choice(size, size)].sum(0)) for _ in range(number)]


def corpus_score(
    metric: Metric, hyps: Sequence[str], refs: Sequence[Sequence[str | None]], num_bootstrap: int, seed: int
) -> Score:
    """Compute one metric, with its signature and interval."""
    # sacreBLEU accepts None for a missing reference, although its type hints do not say so.
    streams = cast(list[list[str]], [list(stream) for stream in refs])
    if num_bootstrap:
        stats = metric._extract_corpus_statistics(list(hyps), streams)
        result = metric._aggregate_and_compute(stats)
        result.estimate_ci(resample(stats, _resampled_in_one_type(metric), num_bootstrap, seed))
        metric.n_bootstrap, metric.seed = num_bootstrap, str(seed)  # for the signature
    else:
        result = metric.corpus_score(list(hyps), streams)
    signature = metric.get_signature().format()

    # sacreBLEU's JSON lacks the interval if the mean is not above zero, so it is read from the attributes.
    fields = json.loads(result.format(width=12, signature=signature, is_json=True))
    return Score(
        name=result.name,
        value=float(result.score),
        signature=signature,
        mean=float(result._mean) if num_bootstrap > 1 else None,
        confidence=float(result._ci) if num_bootstrap > 1 else None,
        detail=fields.get("verbose_score"),
        higher_is_better=result.name not in ERROR_RATES,
    )


@contextmanager
def bootstrap_seed(seed: int) -> Iterator[None]:
    """Set the environment variable that sacreBLEU reads its seed from; there is no other way to pass one."""
    before = os.environ.get(_SEED_VARIABLE)
    os.environ[_SEED_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SEED_VARIABLE]
        else:
            os.environ[_SEED_VARIABLE] = before


@contextmanager
def _tokenizer_errors(tokenizer: str) -> Iterator[None]:
    """Translate errors of sacreBLEU when it loads a tokenizer.

    Raises:
        ConfigError: If the package of the tokenizer is not installed.
        DataError: If its model cannot be downloaded or read.
    """
    causes: tuple[type[BaseException], ...] = (RuntimeError, *_load_errors())
    try:
        yield
    except causes as error:
        if tokenizer in ("ja-mecab", "ko-mecab"):
            language = tokenizer.partition("-")[0]
            raise ConfigError(
                f"the tokenizer {tokenizer} is not installed",
                hint=f'run `pip install "sacrebleu[{language}]"`, or choose another tokenizer such as char',
            ) from error
        raise DataError(
            f"cannot load the model of sacreBLEU's tokenizer {tokenizer!r}: {_one_line(error)}",
            hint=f"offline, copy {_cache_folder() / 'models'} from a machine with a network",
        ) from error


def _cache_folder() -> Path:
    from sacrebleu import SACREBLEU_DIR

    return Path(SACREBLEU_DIR)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(known))
    return f"did you mean {' or '.join(close)}? " if close else ""


def _load_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that escape sacreBLEU when it cannot download, unpack or read a file.

    It exits the process on a wrong checksum, and lxml's error for damaged XML is a SyntaxError.
    """
    import tarfile
    import zipfile
    import zlib
    from http.client import HTTPException

    unpacking = (EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
    return (OSError, HTTPException, SystemExit, *unpacking, UnicodeDecodeError, SyntaxError)


def _read_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", newline="\n") as file:
        return [line.removesuffix("\n").removesuffix("\r") for line in file]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
