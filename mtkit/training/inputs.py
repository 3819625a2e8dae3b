"""Inputs of a run: tokenizers, encoded training pairs, validation pairs and test sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import sentencepiece
import torch

from mtkit.config.sections import Config, DataConfig, SourceConfig
from mtkit.data.augmentation import change_case
from mtkit.data.cache import cache_errors, open_cache
from mtkit.data.corpus import Corpus
from mtkit.data.documents import unread_sheets_note
from mtkit.data.encoding import encode_corpus
from mtkit.data.sources import Source, Split, open_sources, read_sides
from mtkit.data.tokenizer import Tokenizers, load_tokenizers, make_tokenizers
from mtkit.device import (
    check_float8,
    choose_device,
    choose_dtype,
    configure_malloc,
    dtype_name,
    limit_kernel_caches,
    limit_threads,
    processor_name,
    use_deterministic_algorithms,
)
from mtkit.errors import ConfigError, StorageError
from mtkit.evaluation import metrics
from mtkit.files import publish_folder, temporary_folder
from mtkit.model.cuda_graphs import are_wanted
from mtkit.model.packed import suits_packed_kernel
from mtkit.torchrun import read_ranks
from mtkit.training.compiling import check_compiler
from mtkit.training.distillation import Teachers, load_teachers
from mtkit.training.initial import InitialModel
from mtkit.training.progress import import_tensorboard
from mtkit.training.results import TEST_METRICS, check_test_names
from mtkit.training.validation import EvalSet, TextCorpus
from mtkit.training.wandb_log import import_wandb
from mtkit.translation.options import LineProgress

_PACKING_CAPABILITY = (8, 0)
"""CUDA compute capability from which GPUs run the kernel of packed sentences."""

_MAX_EXAMPLE_LENGTH = 120
"""Longest sentence, in characters, that is suggested for trying the model."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run.

    Attributes:
        tokenizers: tokenizers of both sides.
        corpus: the encoded training pairs.
        valid: the validation pairs, or None.
        tests: the test sets.
        teachers: the models to learn from, or None.
        teachers_fingerprint: a hash of their weights; empty without them.
    """

    tokenizers: Tokenizers
    corpus: Corpus
    valid: TextCorpus | None
    tests: list[EvalSet]
    teachers: Teachers | None = None
    teachers_fingerprint: str = ""

    def example(self) -> str | None:
        """Return a source sentence of a test or validation set that is easy to type, or None."""
        sets = [test.srcs for test in self.tests] + ([self.valid.srcs] if self.valid else [])
        return next((line for srcs in sets for line in srcs if _is_easy_to_type(line)), None)


def _is_easy_to_type(line: str) -> bool:
    """Return whether a line is short and, once quoted, reaches the `echo` of every shell unchanged."""
    return (
        0 < len(line) <= _MAX_EXAMPLE_LENGTH
        and line.isprintable()
        and "\\" not in line
        and line[0] not in "- "
    )


def configure_process(config: Config) -> torch.device:
    """Configure memory allocation and threads, and check everything that would fail only later.

    Args:
        config: config of the run.

    Returns:
        Device of the process.

    Raises:
        ConfigError: If a metric, its tokenizer, the device, the compiler or a package is not available, or a variable
            of the environment has an unknown value.
    """
    limit_kernel_caches()
    configure_malloc(one_arena=True)
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    else:
        limit_threads()
    names = (*config.validation.metrics, *TEST_METRICS)
    metrics.check_metrics(names, tokenize=config.validation.bleu_tokenizer, tgt=config.data.tgt)
    device = choose_device(config.training.device, local_rank=read_ranks(communicates=True).local_rank)
    are_wanted(device)  # an unknown value of its variable would stop the run when test sets are translated
    is_deterministic = config.training.deterministic and device.type == "cuda"
    if is_deterministic and config.decoding.sample and config.data.test:
        what = "a GPU has no deterministic algorithm to draw the samples of test sets with (decoding.sample)"
        raise ConfigError(what, where="training.deterministic", hint="leave out one of the two")
    use_deterministic_algorithms(is_deterministic)
    if config.training.compile:
        check_compiler(device)
    if config.training.precision == "fp8":
        check_float8(device)
    if config.training.pack:
        _check_packing(config, device)
    if config.training.tensorboard:
        import_tensorboard()
    if config.training.wandb:
        import_wandb()
    return device


def _check_packing(config: Config, device: torch.device) -> None:
    """Check that attention between packed sentences has a kernel.

    Raises:
        ConfigError: If it has none.
    """
    dtype = choose_dtype(config.training.precision, device)
    hint = "set it to false"
    if device.type != "cuda" or dtype == torch.float32:
        what = f"packed sentences need a GPU and half precision, not {dtype_name(dtype)} on {device}"
    elif torch.cuda.get_device_capability(device) < _PACKING_CAPABILITY:
        what = f"packed sentences need an NVIDIA GPU of Ampere or newer, not {processor_name(device)}"
    elif not all(
        suits_packed_kernel(own.d_model // own.heads) for own in (config.model, config.model.decoder)
    ):
        what = "packed sentences need heads of at most 256 columns, in a multiple of 8"
    else:
        return
    raise ConfigError(what, where="training.pack", hint=hint)


def load_inputs(
    config: Config,
    folder: Path,
    *,
    has_tokenizers: bool,
    say: Callable[[str], None],
    initial: InitialModel | None = None,
) -> Inputs:
    """Read all sources, train or load the tokenizers, and encode the training pairs.

    Validation and test sets are read first, so that a mistake in them is found before any time is spent.

    Args:
        config: config of the run.
        folder: folder of the tokenizers.
        has_tokenizers: whether to load them from there; otherwise they are trained and saved there.
        say: shows a line.
        initial: model that the run starts from, whose tokenizers it uses.

    Raises:
        ConfigError: If the config names data that does not exist, or settings that do not suit it.
        DataError: If a corpus is missing, malformed or empty.
        StorageError: If the tokenizers are damaged or the disk fails.
    """
    splits = open_splits(config.data)
    for source in chain.from_iterable(splits.values()):
        for note in filter(None, map(unread_sheets_note, source.paths)):
            say(note)
    valids = list(map(read_set, splits["valid"], config.data.valid))
    tests = list(map(read_set, splits["test"], config.data.test))
    sources = splits["train"]
    if has_tokenizers:
        tokenizers = load_tokenizers(folder)
    else:
        tokenizers = initial.load_tokenizers() if initial else cached_tokenizers(config, sources, say)
        tokenizers.save(folder)
    _check_tags(config, tokenizers)
    if config.data.reverse and not tokenizers.joint:
        hint = "leave it out, or choose a model with one vocabulary for both sides"
        raise ConfigError("each side has a vocabulary of its own", where="data.reverse", hint=hint)
    teachers = load_teachers(config, tokenizers)
    fingerprint = "" if teachers is None else teachers.fingerprint()
    with cache_errors(config.data):
        corpus = encode_corpus(sources, tokenizers, config.data, LineProgress(say, task="encoding"), say)
    valid = TextCorpus.of(valids, tokenizers) if valids else None
    return Inputs(tokenizers, corpus, valid, tests, teachers, fingerprint)


def read_set(source: Source, settings: SourceConfig) -> EvalSet:
    """Read a validation or test set; `settings` is its entry in the config.

    Raises:
        DataError: If it cannot be read, or has no pairs.
    """
    return EvalSet(source.name, *read_sides(source), settings.tag or "")


def _check_tags(config: Config, tokenizers: Tokenizers) -> None:
    """Check that the tag of each corpus is a token, which the model can learn as a whole.

    Raises:
        ConfigError: If one is not.
    """
    for key, tag in config.data.tags.items():
        if not tokenizers.src.is_single_piece(tag):
            what = f"{tag!r} is not a single token of the source vocabulary"
            hint = "check its spelling" + (", or name it in tokenizer.add_tokens" if config.init else "")
            raise ConfigError(what, where=key, hint=hint)


def cached_tokenizers(config: Config, sources: Sequence[Source], say: Callable[[str], None]) -> Tokenizers:
    """Return the tokenizers of these sources, from the cache if they were trained before on the same text and settings.

    Args:
        config: config of the run.
        sources: sources of the training pairs.
        say: shows a line.

    Raises:
        ConfigError: If the settings of the tokenizer do not suit the text.
        DataError: If a source is malformed or empty.
        StorageError: If a tokenizer is damaged or the cache cannot be written.
    """
    settings, rates = config.tokenizer, config.augment
    pairs = change_case(
        (pair for source in sources for _, pair in source.read()), rates, config.seed, settings.user_symbols
    )
    if settings.model is not None or settings.src_model is not None:
        return make_tokenizers(settings, pairs, config.seed)
    cache, hashes = open_cache(config.data, "tokenizers")
    texts = [source.fingerprint(hashes) for source in sources]
    trained = settings.model_dump(exclude={"sampling_alpha", "bpe_dropout", "sampling_sides"})
    reverse = config.data.reverse
    key = json.dumps(
        [sentencepiece.__version__, trained, reverse, config.seed, texts, rates.upper, rates.title]
    )
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    with suppress(StorageError):
        return load_tokenizers(folder)
    tokenizers = make_tokenizers(settings, pairs, config.seed, say, reverse=reverse)
    with cache_errors(config.data), temporary_folder(folder) as temporary:
        tokenizers.save(temporary)
        publish_folder(temporary, folder)
    return tokenizers


def open_splits(data: DataConfig) -> dict[Split, list[Source]]:
    """Return the sources of the training, validation and test pairs.

    Args:
        data: section `data`.

    Raises:
        ConfigError: If two test sets have the same name, or a source needs a package that is not installed.
        DataError: If a source is missing.
    """
    by_split: dict[Split, Sequence[SourceConfig]] = {
        "train": data.train,
        "valid": data.valid,
        "test": data.test,
    }
    splits = {split: open_sources(configs, data, split) for split, configs in by_split.items()}
    check_test_names([source.name for source in splits["test"]])
    return splits
