"""Scores of translations, each with the signature that says how it was computed.

All numbers come from sacreBLEU (Post 2018, "A Call for Clarity in Reporting BLEU Scores") with its defaults,
so they equal those of the `sacrebleu` command: BLEU (Papineni et al. 2002), chrF (Popović 2015),
chrF++ (Popović 2017), TER (Snover et al. 2006), and the bootstrap intervals of Koehn (2004).
"""

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mtkit.config.choices import METRICS
from mtkit.errors import ConfigError, DataError
from mtkit.languages import BLEU_TOKENIZERS, bleu_can_tokenize, short_code

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

HIGHER_IS_BETTER = {"bleu": True, "chrf": True, "chrf++": True, "ter": False}

_SEED = 12345
"""The seed of bootstrap resampling: sacreBLEU's own default."""

_SEED_VARIABLE = "SACREBLEU_SEED"

_USUAL_TOKENIZER = "13a"


@dataclass(frozen=True)
class Score:
    """The score of a corpus under one metric.

    Attributes:
        name: the metric as sacreBLEU writes it: BLEU, chrF2, chrF2++ or TER.
        value: the score on a scale of 100 (TER can exceed it).
        signature: the conditions under which the score holds; a score is never shown without it.
        mean: the mean over the bootstrap resamples, if they were asked for.
        confidence: half the width of their 95% interval.
        detail: what the metric is made of, if it tells (BLEU: precisions, brevity penalty, lengths).
    """

    name: str
    value: float
    signature: str
    mean: float | None = None
    confidence: float | None = None
    detail: str | None = None

    def format(self, width: int = 2) -> str:
        """One line, as the `sacrebleu` command prints it, with `width` decimals."""
        line = f"{self.name}|{self.signature} = {self.value:.{width}f}"
        if self.mean is not None:
            line += f" (μ = {self.mean:.{width}f} ± {self.confidence:.{width}f})"
        return f"{line} {self.detail}" if self.detail else line

    def as_dict(self) -> dict[str, str | float]:
        """The score for JSON, not rounded; what was not asked for is left out."""
        fields: dict[str, str | float | None] = {
            "name": self.name,
            "score": self.value,
            "mean": self.mean,
            "confidence": self.confidence,
            "detail": self.detail,
            "signature": self.signature,
        }
        return {key: value for key, value in fields.items() if value is not None}


def score(
    hyps: Sequence[str],
    refs: Sequence[Sequence[str | None]],
    metrics: Sequence[str] = ("bleu", "chrf++", "ter"),
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt: str | None = None,
    num_bootstrap: int = 0,
    seed: int = _SEED,
) -> list[Score]:
    """Score detokenized translations against one or more references.

    Args:
        hyps: one translation per sentence.
        refs: one or more streams of references, each as long as `hyps`. A sentence may lack some of its
            references: None there means "missing" (the signature then says `nrefs:var`), "" an empty one.
        metrics: names out of `METRICS`, in small or capital letters.
        tokenize: sacreBLEU's tokenizer for BLEU; None lets `tgt` decide (see `_tokenizer_of`).
        lowercase: ignore case in BLEU and chrF. TER always ignores it, as is its convention.
        tgt: code of the target language.
        num_bootstrap: resamples for the 95% interval (1000 is usual); 0 for none. chrF++ takes about
            100 kB of memory per sentence at 1000 resamples, the others less.
        seed: of the resampling. It alone decides: the variable SACREBLEU_SEED is not read.

    Returns: one score for each of `metrics`, in their order.

    Raises:
        DataError: nothing to score, streams of unequal length, a sentence without any reference,
            a tokenizer model that cannot be downloaded.
        ConfigError: an unknown metric or tokenizer, or one that is not installed; `num_bootstrap` is 1 or
            negative.
    """
    _check_streams(hyps, refs)
    if num_bootstrap < 0 or num_bootstrap == 1:
        raise ConfigError(
            f"{num_bootstrap} bootstrap resamples give no interval",
            hint="0 for none, or at least 2; 1000 is usual",
        )
    built = _build_metrics(metrics, tokenize, lowercase, tgt)
    return [_corpus_score(metric, hyps, refs, num_bootstrap, seed) for metric in built]


def check_metrics(metrics: Sequence[str], *, tokenize: str | None = None, tgt: str | None = None) -> None:
    """Raise now what `score` would otherwise raise about its options at the first validation."""
    _build_metrics(metrics, tokenize, lowercase=False, tgt=tgt)


def _tokenizer_of(tgt: str | None) -> str:
    """sacreBLEU's tokenizer for BLEU in a language if nobody chooses another: its own if it has one, else 13a.

    Japanese and Korean need packages for theirs. Without them BLEU counts characters.
    """
    from sacrebleu import BLEU

    own = BLEU_TOKENIZERS.get(short_code(tgt), _USUAL_TOKENIZER)
    try:
        BLEU(tokenize=own)
    except RuntimeError:
        return "char"
    return own


def bleu_warning(metrics: Sequence[str], tgt: str | None, *, tokenize: str | None = None) -> str | None:
    """What a user should know of BLEU in a language where nobody chose its tokenizer; None if there is nothing."""
    if "bleu" not in metrics or tokenize is not None:
        return None
    language, chosen = short_code(tgt), _tokenizer_of(tgt)
    if chosen == "char":
        return (
            f"BLEU counts characters (tok:char), for {BLEU_TOKENIZERS[language]} is not installed: run "
            f'`pip install "sacrebleu[{language}]"`, or choose validation.bleu_tokenizer'
        )
    if not bleu_can_tokenize(tgt):
        return (
            f"BLEU means nothing in {tgt}, where {chosen} finds no words: go by chrF, or choose "
            "validation.bleu_tokenizer char or flores200"
        )
    return None


def is_better(metric: str, a: float, b: float) -> bool:
    """Whether a score of `a` is strictly better than one of `b` under `metric`, one of `METRICS`."""
    return a > b if HIGHER_IS_BETTER[metric] else a < b


def load_test_set(name: str, src: str, tgt: str) -> tuple[list[str], list[list[str]]]:
    """One of the test sets that sacreBLEU knows by name, such as wmt20 or multi30k/2016.

    sacreBLEU downloads a set on its first use into the folder that the environment variable SACREBLEU names,
    by default ~/.sacrebleu.

    Args:
        name: as in `sacrebleu --list`.
        src: code of the language to translate from.
        tgt: code of the language to translate into.

    Returns: the source sentences, and one or more streams of references, each of the same length.

    Raises:
        ConfigError: no such set, or the set lacks this language pair.
        DataError: the set cannot be downloaded, or its files are damaged.
    """
    import sacrebleu

    if name not in sacrebleu.DATASETS:
        hint = f"{_did_you_mean(name, sacrebleu.DATASETS)}`sacrebleu --list` shows all"
        raise ConfigError(f"sacreBLEU has no test set {name!r}", hint=hint)
    pair = f"{src}-{tgt}"
    pairs = sacrebleu.get_langpairs_for_testset(name)
    if pair not in pairs:
        raise ConfigError(
            f"the test set {name} has no language pair {pair}", hint=f"it has {', '.join(pairs)}"
        )

    folder = _cache_folder() / name
    try:
        # Sorted: sacreBLEU lists the translators of its XML sets in an order that changes from run to run.
        paths = [sacrebleu.get_source_file(name, pair), *sorted(sacrebleu.get_reference_files(name, pair))]
        sources, *refs = [_read_lines(path) for path in paths]
    except _unreadable() as error:
        raise DataError(
            f"cannot get the test set: {_one_line(error)}",
            where=f"{name} {pair}",
            hint=f"without a network, run `sacrebleu --download {name} -l {pair}` on a machine that has one "
            f"and copy its ~/.sacrebleu/{name} to {folder}; with one, delete {folder} and try again",
        ) from error
    if not refs or any(len(stream) != len(sources) for stream in refs):
        counts = " and ".join(str(len(stream)) for stream in refs) or "no"
        raise DataError(
            f"{len(sources)} sources but {counts} references",
            where=f"{name} {pair}",
            hint=f"delete {folder} and try again",
        )
    return sources, refs


def _check_streams(hyps: Sequence[str], refs: Sequence[Sequence[str | None]]) -> None:
    if isinstance(hyps, str):
        raise DataError("hyps is one text, not a list of translations", hint="put it in brackets: [hyps]")
    if not hyps:
        raise DataError("there are no hypotheses to score")
    if not refs:
        raise DataError("there are no references to score against")
    for number, stream in enumerate(refs, 1):
        if isinstance(stream, str):
            raise DataError(
                "refs is a list of sentences, not of streams", hint="put a single stream in brackets: [refs]"
            )
        if len(stream) != len(hyps):
            which = f" in stream {number} of {len(refs)}" if len(refs) > 1 else ""
            raise DataError(f"{len(hyps)} hypotheses but {len(stream)} references{which}")
    for number, of_sentence in enumerate(zip(*refs, strict=True), 1):
        if all(ref is None for ref in of_sentence):
            raise DataError("the sentence has no reference", where=f"sentence {number}")


def _build_metrics(
    names: Sequence[str], tokenize: str | None, lowercase: bool, tgt: str | None
) -> list["Metric"]:
    """sacreBLEU's metrics, ready to compute; every mistake in the options surfaces here."""
    from sacrebleu import BLEU, CHRF, TER

    if tokenize is not None and tokenize not in BLEU.TOKENIZERS:
        hint = f"{_did_you_mean(tokenize, BLEU.TOKENIZERS)}one of {', '.join(BLEU.TOKENIZERS)}"
        raise ConfigError(f"sacreBLEU has no tokenizer {tokenize!r}", hint=hint)
    built: list[Metric] = []
    for name in names:
        match name.lower():
            case "bleu":
                wanted = tokenize or _tokenizer_of(tgt)
                with _tokenizer_errors(wanted):
                    built.append(BLEU(lowercase=lowercase, tokenize=wanted))
            case "chrf":
                built.append(CHRF(lowercase=lowercase))
            case "chrf++":
                built.append(CHRF(lowercase=lowercase, word_order=2))
            case "ter":
                built.append(TER())
            case _:
                hint = f"{_did_you_mean(name, METRICS)}one of {', '.join(METRICS)}"
                raise ConfigError(f"unknown metric {name!r}", hint=hint)
    return built


def _corpus_score(
    metric: "Metric", hyps: Sequence[str], refs: Sequence[Sequence[str | None]], num_bootstrap: int, seed: int
) -> Score:
    # sacreBLEU takes None for a missing reference; its type hints do not say so.
    streams = cast(list[list[str]], [list(stream) for stream in refs])
    if num_bootstrap:
        with _bootstrap_seed(seed):
            result = metric.corpus_score(list(hyps), streams, n_bootstrap=num_bootstrap)
    else:
        result = metric.corpus_score(list(hyps), streams)
    signature = metric.get_signature().format()

    # sacreBLEU publishes the interval in its JSON only, where it is absent if the mean is zero.
    told = json.loads(result.format(width=12, signature=signature, is_json=True))
    return Score(
        name=result.name,
        value=float(result.score),
        signature=signature,
        mean=told.get("confidence_mean", 0.0) if num_bootstrap else None,
        confidence=told.get("confidence_var", 0.0) if num_bootstrap else None,
        detail=told.get("verbose_score"),
    )


@contextmanager
def _bootstrap_seed(seed: int) -> Iterator[None]:
    """Set the environment variable from which sacreBLEU takes its seed, the only way to give it one."""
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
def _tokenizer_errors(wanted: str) -> Iterator[None]:
    """Tell in one line why sacreBLEU could not load the tokenizer `wanted`."""
    causes: tuple[type[BaseException], ...] = (RuntimeError, *_unreadable())
    try:
        yield
    except causes as error:
        if wanted in ("ja-mecab", "ko-mecab"):
            language = wanted.partition("-")[0]
            raise ConfigError(
                f"the tokenizer {wanted} is not installed",
                hint=f'run `pip install "sacrebleu[{language}]"`, or choose another tokenizer, such as char',
            ) from error
        raise DataError(
            f"cannot load the model of sacreBLEU's tokenizer {wanted!r}: {_one_line(error)}",
            hint=f"without a network, fill {_cache_folder() / 'models'} from that of a machine that has one",
        ) from error


def _cache_folder() -> Path:
    from sacrebleu import SACREBLEU_DIR

    return Path(SACREBLEU_DIR)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(known))
    return f"did you mean {' or '.join(close)}? " if close else ""


def _unreadable() -> tuple[type[BaseException], ...]:
    """What sacreBLEU lets through when it cannot download, unpack or read a file.

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
