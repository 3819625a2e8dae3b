"""All that is read before the first update: sources, tokenizers, encoded training pairs, validation pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch

from mtkit.config.sections import Config, DataConfig, SourceConfig
from mtkit.data.cache import cache_errors, open_cache
from mtkit.data.corpus import Corpus
from mtkit.data.encoding import encode_corpus
from mtkit.data.sources import Source, Split, open_sources, read_sides
from mtkit.data.tokenizer import Tokenizers, load_tokenizers, make_tokenizers
from mtkit.device import choose_device, configure_malloc
from mtkit.errors import StorageError
from mtkit.evaluation import metrics
from mtkit.files import publish_folder, temporary_folder
from mtkit.torchrun import read_ranks
from mtkit.training.compiling import check_compiler
from mtkit.training.results import TEST_METRICS, EvalSet, check_test_names
from mtkit.training.validation import TextCorpus

Say = Callable[[str], None]

_LONGEST_EXAMPLE = 120
"""Characters of a sentence that is offered to be typed."""


@dataclass(frozen=True)
class Inputs:
    """All that is read before the first update."""

    tokenizers: Tokenizers
    corpus: Corpus
    valid: TextCorpus | None
    tests: list[EvalSet]

    def example(self) -> str | None:
        """A source sentence of a test or validation set that is easily typed, if there is one."""
        every = [test.srcs for test in self.tests] + ([self.valid.srcs] if self.valid else [])
        return next((line for srcs in every for line in srcs if _is_easily_typed(line)), None)


def _is_easily_typed(line: str) -> bool:
    """Whether a line fits a terminal and reaches `echo` of every shell unchanged, once it is quoted."""
    return (
        0 < len(line) <= _LONGEST_EXAMPLE and line.isprintable() and "\\" not in line and line[0] not in "- "
    )


def configure_process(config: Config) -> torch.device:
    """Make the process ready, and refuse now what would otherwise fail at the first validation. Returns its device."""
    configure_malloc()
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    wanted, tokenizer = (*config.validation.metrics, *TEST_METRICS), config.validation.bleu_tokenizer
    metrics.check_metrics(wanted, tokenize=tokenizer, tgt=config.data.tgt)
    device = choose_device(config.training.device, local_rank=read_ranks(communicates=True).local_rank)
    if config.training.compile:
        check_compiler(device)
    return device


def load_inputs(config: Config, folder: Path, *, has_tokenizers: bool, say: Say) -> Inputs:
    """Read all sources, make the tokenizers (into `folder`) or load them from there, encode the training pairs.

    Validation and test sets come first: a mistake in them is found before any time is spent.
    """
    splits = open_splits(config.data)
    valids, tests = ([EvalSet(s.name, *read_sides(s)) for s in splits[split]] for split in ("valid", "test"))
    sources = splits["train"]
    if has_tokenizers:
        tokenizers = load_tokenizers(folder)
    else:
        tokenizers = cached_tokenizers(config, sources, say)
        tokenizers.save(folder)
    with cache_errors(config.data):
        corpus = encode_corpus(sources, tokenizers, config.data, lambda n: say(f"encoded {n:,} pairs"))
    valid = None
    if valids:
        srcs = [line for text in valids for line in text.srcs]
        tgts = [line for text in valids for line in text.tgts]
        valid = TextCorpus.from_text(srcs, tgts, tokenizers, {text.name: len(text.srcs) for text in valids})
    return Inputs(tokenizers, corpus, valid, tests)


def cached_tokenizers(config: Config, sources: Sequence[Source], say: Say) -> Tokenizers:
    """Tokenizers of these sources: trained once for the same texts and settings, then found in the cache.

    Raises:
        ConfigError, DataError, StorageError: what `make_tokenizers` raises, or the cache cannot be written.
    """
    pairs = (pair for source in sources for _, pair in source.read())
    wanted = config.tokenizer
    if wanted.model is not None or wanted.src_model is not None:
        return make_tokenizers(wanted, pairs, config.seed)
    cache, hashes = open_cache(config.data, "tokenizers")
    texts = [source.fingerprint(hashes) for source in sources]
    key = json.dumps([sentencepiece.__version__, wanted.model_dump(), config.seed, texts])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    with suppress(StorageError):
        return load_tokenizers(folder)
    tokenizers = make_tokenizers(wanted, pairs, config.seed, say)
    with cache_errors(config.data), temporary_folder(folder) as temporary:
        tokenizers.save(temporary)
        publish_folder(temporary, folder)
    return tokenizers


def open_splits(data: DataConfig) -> dict[Split, list[Source]]:
    """The sources of training, validation and test. Raises: ConfigError, DataError: one is not there."""
    by_split: dict[Split, Sequence[SourceConfig]] = {
        "train": data.train,
        "valid": data.valid,
        "test": data.test,
    }
    splits = {split: open_sources(configs, data, split) for split, configs in by_split.items()}
    check_test_names([source.name for source in splits["test"]])
    return splits
