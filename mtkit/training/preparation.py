"""All that is read before the first update: sources, tokenizers, encoded training pairs, validation pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mtkit.config import Config
from mtkit.data.batching import epoch_batches, padding_share
from mtkit.data.corpus import Corpus, encode_corpus
from mtkit.data.sources import Source, Split, open_sources, read_sides
from mtkit.data.tokenizer import Tokenizers, load_tokenizers, make_tokenizers
from mtkit.device import keep_freed_memory
from mtkit.evaluation import metrics
from mtkit.training.results import TEST_METRICS
from mtkit.training.trainer import Trainer
from mtkit.training.validation import TextCorpus

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """All that is read before the first update."""

    tokenizers: Tokenizers
    corpus: Corpus
    valid: TextCorpus | None
    tests: list[Source]


def set_up(config: Config) -> None:
    """Make the process ready, and refuse now what would otherwise fail at the first validation."""
    keep_freed_memory()
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    metrics.check_metrics((*config.validation.metrics, *TEST_METRICS), tgt=config.data.tgt)


def prepare(config: Config, folder: Path, *, resumed: bool, say: Say) -> Inputs:
    """Open all sources, make the tokenizers (into `folder`) or load them from there, encode the training pairs."""
    sources, valids, tests = (open_split(config, split) for split in ("train", "valid", "test"))
    if resumed:
        tokenizers = load_tokenizers(folder)
    else:
        pairs = (pair for source in sources for _, pair in source.read())
        tokenizers = make_tokenizers(config.tokenizer, pairs, config.seed)
        tokenizers.save(folder)
    corpus = encode_corpus(sources, tokenizers, config.data, lambda n: say(f"encoded {n:,} pairs"))
    valid = None
    if valids:
        sides = [read_sides(source) for source in valids]
        srcs, tgts = ([line for side in sides for line in side[i]] for i in (0, 1))
        valid = TextCorpus.of(srcs, tgts, tokenizers)
    return Inputs(tokenizers, corpus, valid, tests)


def open_split(config: Config, split: Split) -> list[Source]:
    """The sources of a split."""
    configs = {"train": config.data.train, "valid": config.data.valid, "test": config.data.test}[split]
    return open_sources(configs, config.data, split)


def describe(trainer: Trainer, say: Say) -> None:
    """What will be trained, on what, in four lines."""
    corpus, training, tokenizers = trainer.corpus, trainer.config.training, trainer.tokenizers
    batches = epoch_batches(
        corpus.src_lengths, corpus.tgt_lengths, training.batch_tokens, trainer.config.seed, 0
    )
    padding = padding_share(batches, corpus.src_lengths, corpus.tgt_lengths)
    sizes = " and ".join(f"{t.num_pieces:,}" for t in dict.fromkeys([tokenizers.src, tokenizers.tgt]))
    say(f"data       {corpus.counts.summary()}")
    say(f"tokenizer  {sizes} pieces")
    say(f"batches    {len(batches):,} an epoch, {100 * padding:.1f} % padding")
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[trainer.dtype]
    say(f"model      {trainer.model.num_parameters():,} parameters, {precision} on {trainer.device}")
