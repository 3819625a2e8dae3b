"""Fine-tuning configs: what `mtkit finetune` writes for a model and a few files.

Learning rate, weight decay, betas, epochs and the number of checkpoints are those of the published example of the
Hugging Face course for `opus-mt` models (https://huggingface.co/learn/llm-course/chapter7/4). Only for a few
hundred pairs there are more epochs, because three of them would be a handful of updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtkit.config.loading import parse_config
from mtkit.config.sections import Config
from mtkit.config.yaml_document import YamlDocument, apply_overrides, dump_yaml, format_value
from mtkit.data.encoding import encode_corpus
from mtkit.data.order import num_batches_of, num_epochs_of
from mtkit.data.recognize import Entry, Languages, find_held_out, recognize
from mtkit.data.sources import open_sources
from mtkit.errors import DataError
from mtkit.formatting import format_count
from mtkit.training.build import make_pairs
from mtkit.training.initial import FindModel, open_initial_model
from mtkit.training.updates import make_order
from mtkit.translation.model_folder import find_checkpoint, read_config
from mtkit.translation.options import LineProgress

_EPOCHS, _MIN_STEPS, _MAX_EPOCHS = 3, 300, 20
"""Number of epochs; a small corpus gets more, until it makes `_MIN_STEPS` updates or reaches `_MAX_EPOCHS`."""
_SMALL_CORPUS = 20_000
"""With fewer pairs, batches are smaller."""
_BATCH_TOKENS = (1024, 4096)
_MAX_VALIDATIONS = 10
_UNKNOWN_STEPS = 2**40
"""Updates until the epochs are counted: the schedule of an override may need an end."""
_TRAINING = {"weight_decay": 0.01, "decay_embeddings": True, "betas": [0.9, 0.999], "keep_last": 3}
WRITTEN_BY = "Written by `mtkit finetune`"
"""In the first line of each config that `make_finetuning` writes."""
_COMMENT = """\
# {src} to {tgt}: {model} fine-tuned on {pairs} in {epochs}. {written_by}.
# `mtkit train` with this file resumes the run; `mtkit config schema` lists every key.
"""


@dataclass(frozen=True)
class FineTuning:
    """A config for fine-tuning, and what it was derived from.

    Attributes:
        text: the YAML.
        num_pairs: training pairs of the new data.
        num_kept: pairs of the general data in each epoch.
        num_epochs: passes over the new data.
        missing: splits without files, out of `valid` and `test`.
        new_tags: tags that the vocabulary of the model lacks, which are added to it.
        notes: what the user should look at: files that were found, columns that were guessed, and sheets that are not
            read.
    """

    text: str
    num_pairs: int
    num_kept: int
    num_epochs: int
    missing: tuple[str, ...]
    new_tags: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FineTuningData:
    """Files to fine-tune on.

    Attributes:
        train: pairs to learn from.
        keep: general pairs, against forgetting.
        valid: validation pairs; by default, files beside the training files that are named like such.
        test: test pairs; by default, files beside the training files that are named like such.
        tag: token before each source line of `train`, `valid` and `test`.
        keep_tag: token before each source line of `keep`.
    """

    train: Sequence[str]
    keep: Sequence[str] = ()
    valid: Sequence[str] = ()
    test: Sequence[str] = ()
    tag: str = ""
    keep_tag: str = ""


def make_finetuning(
    model: str,
    files: FineTuningData,
    run: str,
    overrides: Sequence[str],
    find_model: FindModel,
    say: Callable[[str], None] = lambda line: None,
) -> FineTuning:
    """Write a config that fine-tunes a model on these files. The training pairs are encoded, into the cache.

    Args:
        model: a run or model folder, or a name that `find_model` knows.
        files: files to fine-tune on.
        run: run folder.
        overrides: `key=value` changes of the config.
        find_model: finds the folder of the model.
        say: prints a line about the progress.

    Raises:
        ConfigError: If the columns of a file cannot be recognized, or an override is invalid.
        DataError: If a file cannot be read or has no pairs.
        StorageError: If the model is missing or damaged.
    """
    folder = find_model(model)
    known = read_config(find_checkpoint(folder), "train or import the model again").data
    splits, num_new_files, notes = _recognize(files, (known.src, known.tgt))
    values: dict[str, Any] = {
        "run": run,
        "init": model,
        "data": {"src": known.src, "tgt": known.tgt, **splits},
        "training": {"max_steps": _UNKNOWN_STEPS},
    }
    config, initial = open_initial_model(_parse(values, overrides), lambda name: folder)
    assert initial is not None, "init is set"
    tokenizers = initial.load_tokenizers()
    tags = dict.fromkeys(config.data.tags.values())
    new_tags = tuple(tag for tag in tags if not tokenizers.src.is_single_piece(tag))
    if new_tags:
        add_tokens = format_value([*config.tokenizer.add_tokens, *new_tags])
        overrides = [*overrides, f"tokenizer.add_tokens={add_tokens}"]
        config, initial = open_initial_model(_parse(values, overrides), lambda name: folder)
        assert initial is not None, "init is set"
        tokenizers = initial.load_tokenizers()
    sources = open_sources(config.data.train, config.data, "train")
    corpus = encode_corpus(sources, tokenizers, config.data, LineProgress(say, task="encoding"), say)
    counts = np.bincount(corpus.sources_of_pairs(), minlength=len(sources))
    num_new, num_general = int(counts[:num_new_files].sum()), int(counts[num_new_files:].sum())
    if not num_new:
        what = "no pair is left: all are empty, too long, or repeated"
        raise DataError(what, where=files.train[0], hint="check the columns and `data.max_length`")
    if num_general > num_new:  # as many general pairs in an epoch as new ones, other ones in each
        weight = _round_down(num_new / num_general)
        for entry in splits["train"][num_new_files:]:
            entry["weight"] = weight
    batch_tokens = _BATCH_TOKENS[num_new >= _SMALL_CORPUS]
    rate = default_learning_rate(config.model.d_model)
    values["training"] = {
        "batch_tokens": batch_tokens, "learning_rate": rate, **_TRAINING, "max_steps": _UNKNOWN_STEPS,
    }  # fmt: skip
    config, _ = open_initial_model(_parse(values, overrides), lambda name: folder)
    pairs, variation = make_pairs(config, tokenizers, corpus)
    data, training = config.data, config.training
    order = make_order(pairs, training, config.seed, data.train_weights, variation, data.reverse_epochs)
    per_update = training.batches_per_update
    if training.max_steps not in (None, _UNKNOWN_STEPS):
        num_epochs = max(1, round(num_epochs_of(order, training.max_steps * per_update)))
    else:
        usual = math.ceil(num_epochs_of(order, _MIN_STEPS * per_update))
        num_epochs = training.max_epochs or min(_MAX_EPOCHS, max(_EPOCHS, usual))
    steps = max(1, num_batches_of(order, num_epochs) // per_update)
    values["training"] |= {"schedule": "linear", "warmup_steps": 0, "max_steps": steps}
    every_steps = steps * -(-num_epochs // _MAX_VALIDATIONS) // num_epochs
    values["validation"] = {"every_steps": max(1, every_steps)}
    document = apply_overrides(YamlDocument(values, "the config", {}), overrides)
    counted, epochs = format_count(num_new, "pair"), format_count(num_epochs, "epoch")
    comment = _COMMENT.format(
        src=known.src, tgt=known.tgt, model=model, pairs=counted, epochs=epochs, written_by=WRITTEN_BY
    )
    num_kept = num_general and round(num_general * config.data.train_weights[-1])
    missing = tuple(split for split, entries in splits.items() if not entries)
    text = comment + dump_yaml(document.data)
    return FineTuning(text, num_new, num_kept, num_epochs, missing, new_tags, notes)


def _parse(values: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Return the config of these values and overrides."""
    return parse_config(apply_overrides(YamlDocument(values, "the config", {}), overrides).data)


def _recognize(
    files: FineTuningData, languages: Languages
) -> tuple[dict[str, list[Entry]], int, tuple[str, ...]]:
    """Return the config entries of each split, how many of those to train on are new data, and notes to the user."""
    notes: list[str] = []

    def entries_of(paths: Sequence[str]) -> list[Entry]:
        found = recognize(paths, languages) if paths else None
        notes.extend(found.notes if found else ())
        return found.entries if found else []

    new, general = entries_of(files.train), entries_of(files.keep)
    splits = {"train": new + general}
    valid, test, found_notes = find_held_out(new[0], [*files.train, *files.keep], files.valid, files.test)
    notes += found_notes
    for split, names in (("valid", valid), ("test", test)):
        splits[split] = entries_of(names)
    for entry in (*new, *splits["valid"], *splits["test"]):
        entry |= {"tag": files.tag} if files.tag else {}
    for entry in general:
        entry |= {"tag": files.keep_tag} if files.keep_tag else {}
    return splits, len(new), tuple(notes)


def default_learning_rate(d_model: int) -> float:
    """Return the learning rate for a model of this width: 2e-5 from 512 on, more for small models, at most 5e-4.

    2e-5 is what Hugging Face's example takes for models of 70 million parameters. Models of width 128 learned most with
    3e-4 to 1e-3, as recipes/fine-tuning tells.
    """
    return min(5e-4, 2e-5 * max(1.0, 512 / d_model) ** 2)


def _round_down(share: float) -> float:
    """Return a share below 1 with two significant digits."""
    unit = 10.0 ** (1 - math.floor(math.log10(share)))
    return math.floor(share * unit) / unit
