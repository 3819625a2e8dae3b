"""Presets: what a config leaves out, chosen for a size of corpus. All their numbers are in `PRESETS` and `AUTO_RANGES`.

A preset stands between the defaults and the YAML: defaults < preset < YAML < key=value. Only keys that are not set take
its values, and some of these follow from keys that are: see `_fill_in`.

To tune a preset, change its numbers here and nothing else. A key that a user's key may exclude needs a rule in
`_fill_in`. No preset has a method that the ablation of recipes/tatoeba-10k does not find to help at equal minutes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mtkit.formatting import format_count

PresetName = Literal["tiny", "small", "base", "big", "student"]
Values = dict[str, object]
"""Values by dotted key."""


@dataclass(frozen=True)
class Preset:
    """Values of a preset.

    Attributes:
        parameters: parameters of its model in millions, with a vocabulary of its size.
        values: the value of each key that it sets.
        min_cores: CPU cores without which auto chooses `instead`, unless there is a GPU; infinite if there must be one.
        instead: the preset that auto chooses then.
    """

    parameters: float
    values: Values
    min_cores: float = 0
    instead: PresetName | None = None


_SHARED: Values = {
    "training.label_smoothing": 0.1,  # Szegedy et al. 2016; 0.1 since Vaswani et al. 2017
    "training.schedule": "cosine",  # ends at rate 0, so that the last weights are the best; needs no tuning
    "model.bias": False,  # same scores, fewer and faster operations
    "decoding.beam_size": 5,
    "validation.beam_size": 5,  # greedy scores choose another checkpoint as the best, by chance a worse one
}
"""Values of all presets, unless they have their own."""

PRESETS: dict[PresetName, Preset] = {
    # Up to about 60,000 pairs; half an hour on two quiet CPU cores.
    "tiny": Preset(
        2.1,
        {
            "tokenizer.vocab_size": 6000,  # Gowda and May 2020: as many pieces as are still seen often
            "model.d_model": 128,  # with d_ff 256 and dropout 0.3, the best published sizes for Multi30k
            "model.encoder_layers": 4,
            "model.decoder_layers": 4,
            "model.num_heads": 4,
            "model.d_ff": 256,  # Araabi and Monz 2020: narrow feed-forward layers for few pairs
            "model.dropout": 0.3,  # the same; Van Biljon et al. 2020
            "training.batch_tokens": 4096,
            "training.max_steps": 9500,  # 39.5 BLEU after 3,300, 40.1 after 5,500, 40.7 after these
            "training.optimizer": "muon",  # Multi30k: 39.5 BLEU after 3,300 updates; AdamW has 38.5 after 4,600
            "training.learning_rate": 0.006,  # a narrow model takes, and needs, a high rate
            "training.warmup_steps": 500,
            "training.ema_decay": 0.998,  # averages about the last 500 updates
            "validation.every_steps": 475,
        },
    ),
    # Up to about half a million pairs; hours on a CPU. Without a GPU for larger corpora too.
    "small": Preset(
        9.9,
        {
            "tokenizer.vocab_size": 10_000,
            "model.d_model": 256,
            "model.encoder_layers": 4,
            "model.decoder_layers": 4,
            "model.num_heads": 4,
            "model.d_ff": 1024,
            "model.dropout": 0.2,
            "training.batch_tokens": 4096,
            "training.max_steps": 12_000,
            "training.optimizer": "muon",
            "training.learning_rate": 0.003,
            "training.warmup_steps": 1000,
            "training.ema_decay": 0.999,
            "validation.every_steps": 600,
        },
    ),
    # A million pairs and more, on a GPU.
    "base": Preset(
        63.0,
        {
            "tokenizer.vocab_size": 37_000,  # sizes of Vaswani et al. 2017, table 3, base
            "model.d_model": 512,
            "model.encoder_layers": 6,
            "model.decoder_layers": 6,
            "model.num_heads": 8,
            "model.d_ff": 2048,
            "model.dropout": 0.1,
            "training.batch_tokens": "auto",  # as many micro-batches as memory requires
            "training.update_tokens": 32_000,
            "training.max_steps": 60_000,
            "training.learning_rate": 0.001,
            "training.warmup_steps": 4000,
            "training.ema_decay": 0.999,
            "training.log_every_steps": 100,
            "validation.every_steps": 2000,
            "validation.max_sentences": 1000,
        },
        min_cores=16,  # slow there too, but a matter of days
        instead="small",
    ),
    # Ten million pairs and more, on a GPU.
    "big": Preset(
        214.1,
        {
            "tokenizer.vocab_size": 37_000,  # sizes of Vaswani et al. 2017, table 3, big
            "model.d_model": 1024,
            "model.encoder_layers": 6,
            "model.decoder_layers": 6,
            "model.num_heads": 16,
            "model.d_ff": 4096,
            "model.dropout": 0.1,  # Vaswani et al. 2017 for 36 million pairs; 0.3 for 4.5 million
            "training.batch_tokens": "auto",
            "training.update_tokens": 100_000,  # Ott et al. 2018: large batches allow a high rate
            "training.max_steps": 60_000,
            "training.learning_rate": 0.001,  # Ott et al. 2018
            "training.warmup_steps": 4000,
            "training.ema_decay": 0.999,
            "training.log_every_steps": 100,
            "validation.every_steps": 2000,
            "validation.max_sentences": 1000,
        },
        min_cores=math.inf,
        instead="base",
    ),
    # For the translations of a larger model: a deep encoder and a shallow decoder, fast without a beam.
    "student": Preset(
        7.8,
        {
            "tokenizer.vocab_size": 8000,
            "model.d_model": 256,
            "model.encoder_layers": 6,  # Kasai et al. 2021: depth in the encoder costs little speed
            "model.decoder_layers": 1,
            "model.num_heads": 4,
            "model.d_ff": 1024,
            "model.dropout": 0.1,  # distilled targets are regular: Kim and Rush 2016
            "training.batch_tokens": 4096,
            "training.max_steps": 12_000,
            "training.label_smoothing": 0.0,  # the teacher's translations are smooth enough
            "training.optimizer": "muon",
            "training.learning_rate": 0.003,
            "training.warmup_steps": 1000,
            "training.ema_decay": 0.999,
            "validation.every_steps": 600,
            "decoding.beam_size": 1,
            "validation.beam_size": 1,
        },
    ),
}
"""The presets by name."""


@dataclass(frozen=True)
class _CorpusRange:
    """Choice of auto for a range of corpus sizes.

    Attributes:
        max_pairs: the most training pairs of the range.
        preset: name of the preset.
        epochs: passes over the pairs, from which the number of updates follows.
        changes: values other than those of the preset.
    """

    max_pairs: float
    preset: PresetName
    epochs: float
    changes: Values = field(default_factory=dict)


AUTO_RANGES = (
    # The fewer the pairs, the fewer pieces are seen often enough (Gowda and May 2020), and the more dropout pays off.
    _CorpusRange(5_000, "tiny", 100, {"tokenizer.vocab_size": 1000, "model.dropout": 0.4}),
    _CorpusRange(10_000, "tiny", 100, {"tokenizer.vocab_size": 2000, "model.dropout": 0.35}),
    _CorpusRange(20_000, "tiny", 90, {"tokenizer.vocab_size": 4000}),
    _CorpusRange(60_000, "tiny", 68),  # 9,500 updates for Multi30k
    _CorpusRange(100_000, "small", 34, {"tokenizer.vocab_size": 8000, "model.dropout": 0.3}),
    _CorpusRange(500_000, "small", 30),
    _CorpusRange(1_500_000, "base", 30, {"tokenizer.vocab_size": 16_000}),
    _CorpusRange(8_000_000, "base", 15, {"tokenizer.vocab_size": 32_000}),
    _CorpusRange(math.inf, "big", 8),
)
"""What auto chooses, by ascending size of the corpus."""

_MIN_STEPS, _MAX_STEPS = 1000, 100_000
"""Bounds of the number of updates that auto chooses."""
_UNTIL_MEASURED: Values = PRESETS["tiny"].values | {
    "model.encoder_layers": 6,
    "model.decoder_layers": 6,
    "training.max_steps": _MAX_STEPS,
}
"""Values that stand in a config with `preset: auto` until the corpus has been counted. Those that bound other keys,
such as the warm-up, are as large as auto may choose them."""
WARMUP_SHARE = 1 / 8
"""Largest share of the updates over which a preset warms up."""
_FIXED_BATCH_TOKENS = 4096
"""`training.batch_tokens` in place of auto where that is not possible."""
_FIXED_PIECES = 260
"""Pieces of every vocabulary: bytes and special ones."""
_SCARCE_MEMORY = 3e9
"""Bytes of memory below which auto lets memory decide into how many micro-batches a batch is split."""

_COPIES = 4
"""Tensors as large as the model that training keeps beside gradients: weights, two moments and the EMA."""
_USUAL_VOCABULARY = 8000
"""Pieces that the vocabulary of another model is taken to have."""
_MEASURED_VOCABULARIES = (1000, 2000, 4000, 8000)
"""Vocabularies whose tokens were measured: see `_characters_per_token`."""
_TOO_LONG_SHARE = 0.05
"""Share of the pairs that may be too long before auto makes the vocabulary larger, which makes them shorter."""

_TOKENIZER_KEYS = {"tokenizer.vocab_size", "tokenizer.model", "tokenizer.src_model"}
"""Keys that say which vocabulary to use, or how large it is."""


@dataclass(frozen=True)
class CorpusSize:
    """Size of the training corpus.

    Attributes:
        pairs: number of pairs that training may use.
        pairs_per_epoch: the same, each times the weight of its corpus.
        characters: characters of the longer sides of these; of scripts without letters, such as Chinese, times 2.5.
        alphabet: number of different characters that nearly all of the text consists of.
        reversed_epochs: number of first epochs that have each pair in both directions; infinite for all.
        lengths: number of pairs by the rounded length of their longer side, in characters as above.
        max_length: tokens of a side above which training leaves a pair out.
    """

    pairs: int
    pairs_per_epoch: float
    characters: float
    alphabet: int = 0
    reversed_epochs: float = 0
    lengths: Mapping[int, int] = field(default_factory=dict)
    max_length: float = math.inf

    def num_too_long(self, vocab_size: int) -> int:
        """Return about how many pairs are too long for training."""
        return sum(self._too_long(vocab_size).values())

    def num_tokens(self, vocab_size: int) -> float:
        """Return about how many tokens an epoch of one direction has. Each pair ends with eos."""
        too_long = self._too_long(vocab_size)
        weight = self.pairs_per_epoch / self.pairs
        pairs = self.pairs_per_epoch - weight * sum(too_long.values())
        characters = self.characters - weight * sum(length * number for length, number in too_long.items())
        return max(0.0, pairs + characters / _characters_per_token(vocab_size))

    def _too_long(self, vocab_size: int) -> dict[int, int]:
        """Return those of `lengths` that are too long."""
        longest = self.max_length * _characters_per_token(vocab_size)
        return {length: number for length, number in self.lengths.items() if length > longest}


def _characters_per_token(vocab_size: int) -> float:
    """Return about how many characters a token has.

    Measured with joint vocabularies of English and German on captions, news and everyday sentences, these are 2.4 with
    1,000 pieces, 3.0 with 2,000, 3.5 with 4,000 and 3.9 with 8,000.
    """
    return max(1.0, min(4.5, 2.4 + 0.5 * math.log2(vocab_size / 1000)))


@dataclass(frozen=True)
class Machine:
    """Properties of a machine that auto considers.

    Attributes:
        cores: CPU cores that this process may use.
        memory: bytes that it may still allocate, on the GPU if there is one.
        gpu: name of the GPU, or None.
        has_bf16: whether it multiplies bfloat16 matrices in hardware.
    """

    cores: int
    memory: float
    gpu: str | None
    has_bf16: bool

    def describe(self) -> str:
        """Return a phrase such as `2 CPU cores with bfloat16` or `NVIDIA A100 with bfloat16`."""
        where = self.gpu or format_count(self.cores, "CPU core")
        return f"{where} {'with' if self.has_bf16 else 'without'} bfloat16"


@dataclass(frozen=True)
class Choice:
    """Values that auto chose, and why.

    Attributes:
        preset: name of the preset.
        num_pairs: training pairs that it is chosen for.
        values: the value of each key that is not set.
        reasons: sentences that say why, without a period.
        warning: that of these which says that many pairs are too long, or None.
    """

    preset: PresetName
    num_pairs: int
    values: Values
    reasons: list[str]
    warning: str | None = None


def choose(size: CorpusSize, machine: Machine, chosen: Mapping[str, object]) -> Choice:
    """Choose a preset, and scale it to a corpus and a machine.

    Args:
        size: size of the training corpus.
        machine: the machine that will train.
        chosen: the keys that are set, with their values.
    """
    row = next(row for row in AUTO_RANGES if size.pairs <= row.max_pairs)
    name, reasons = _largest_for(machine, row.preset, chosen.get("training.workers"))
    reasons.insert(0, f"{name} for {format_count(size.pairs, 'training pair')} on {machine.describe()}")
    values = _SHARED | PRESETS[name].values | (row.changes if name == row.preset else {})
    if machine.memory < _SCARCE_MEMORY and values["training.batch_tokens"] != "auto":
        split = values | {
            "training.batch_tokens": "auto",
            "training.update_tokens": values["training.batch_tokens"],
        }
        if _fill_in(name, split, chosen).get("training.batch_tokens") == "auto":
            values = split
            reasons.append(
                f"batches are split into micro-batches: only {machine.memory / 1e9:.1f} GB of memory are free"
            )
    if all(chosen.get(key) is None for key in ("init", *_TOKENIZER_KEYS)):
        values["tokenizer.vocab_size"], told = _choose_vocabulary(
            size, int(_number(values["tokenizer.vocab_size"], 1))
        )
        reasons += told
    vocab_size = _USUAL_VOCABULARY
    if chosen.get("init") is None:
        vocab_size = int(_number({**values, **chosen}["tokenizer.vocab_size"], vocab_size))
    warning = None
    if size.num_too_long(vocab_size) > _TOO_LONG_SHARE * size.pairs:
        pairs = format_count(size.num_too_long(vocab_size), "pair")
        warning = f"about {pairs} will be left out: longer than data.max_length {size.max_length} (raise it)"
        reasons.append(warning)
    if "training.max_steps" not in chosen:
        filled = {**_fill_in(name, values, chosen), **chosen}
        per_pass = _updates_per_pass(size.num_tokens(vocab_size), filled)
        values["training.max_steps"], told_steps = _choose_steps(
            row.epochs, per_pass, size.reversed_epochs, chosen.get("training.max_epochs")
        )
        reasons.append(told_steps)
    return Choice(name, size.pairs, _fill_in(name, values, chosen), reasons, warning)


def _largest_for(machine: Machine, name: PresetName, workers: object) -> tuple[PresetName, list[str]]:
    """Return the largest preset that a machine can train, and why it is not the one that suits the corpus.

    Args:
        machine: the machine.
        name: the preset that suits the corpus.
        workers: number of workers on a CPU, each of which has gradients of its own; if none is given, as many as the
            preset needs cores, because `auto` makes no more than memory allows.
    """
    reasons: list[str] = []
    while (instead := PRESETS[name].instead) and not machine.gpu:
        preset = PRESETS[name]
        num_workers = _number(workers, min(machine.cores, preset.min_cores))
        memory = 4e6 * preset.parameters * (_COPIES + num_workers)  # in float32
        if machine.cores < preset.min_cores:
            otherwise = f" or {preset.min_cores} cores" if preset.min_cores < math.inf else ""
            needs = f"a GPU{otherwise}"
        elif machine.memory < memory:
            needs = f"{memory / 1e9:.0f} GB of memory with {num_workers:.0f} workers"
        else:
            break
        reasons.append(f"{name} would suit the corpus but needs {needs}")
        name = instead
    return name, reasons


def _choose_vocabulary(size: CorpusSize, usual: int) -> tuple[int, list[str]]:
    """Return the size of the vocabulary, and why it is larger than usual, if it is.

    Args:
        size: size of the corpus.
        usual: size of the vocabulary for as many pairs.
    """
    chosen, reasons = usual, []
    least = round_to_two_digits(2 * (size.alphabet + _FIXED_PIECES))  # as many pieces of several characters
    if chosen < least:
        chosen = least
        reasons.append(f"a vocabulary of {least:,} for {size.alphabet:,} different characters")
    if size.num_too_long(chosen) > _TOO_LONG_SHARE * size.pairs:
        larger = [number for number in _MEASURED_VOCABULARIES if number > chosen]
        enough = (number for number in larger if size.num_too_long(number) <= _TOO_LONG_SHARE * size.pairs)
        best = next(enough, min([chosen, *larger], key=size.num_too_long))
        if best > chosen:
            pairs = format_count(size.num_too_long(chosen), "pair")
            reasons.append(f"a vocabulary of {best:,}: with {chosen:,}, about {pairs} would be too long")
            chosen = best
    return chosen, reasons


def _choose_steps(
    usual_epochs: float, per_pass: int, reversed_epochs: float, max_epochs: object
) -> tuple[int, str]:
    """Return the number of updates, and a sentence that says so.

    Args:
        usual_epochs: epochs that suit the corpus.
        per_pass: updates of a pass over the pairs in one direction. An epoch with both directions has two passes.
        reversed_epochs: number of first epochs with both directions.
        max_epochs: epochs that are set, or None.
    """
    epochs = _number(max_epochs, usual_epochs)
    steps = (epochs + min(epochs, reversed_epochs)) * per_pass
    if max_epochs is not None:
        updates = format_count(round_to_two_digits(steps), "update")
        return round_to_two_digits(steps), f"an estimated {updates} for {format_count(int(epochs), 'epoch')}"
    steps = min(_MAX_STEPS, max(_MIN_STEPS, steps))
    passes = steps / per_pass
    epochs = max(passes / 2, passes - reversed_epochs)
    shown = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
    always_reversed = reversed_epochs >= epochs
    of_epoch = format_count(round_to_two_digits(2 * per_pass if always_reversed else per_pass), "update")
    first = f", the first {reversed_epochs} twice as long" if reversed_epochs and not always_reversed else ""
    rounded = round_to_two_digits(steps)
    return rounded, f"{rounded:,} updates, about {shown} epochs of an estimated {of_epoch}{first}"


def preset_values(name: PresetName, chosen: Mapping[str, object]) -> Values:
    """Return the values of a preset for the keys that are not set.

    Args:
        name: its name.
        chosen: the keys that are set, with their values.
    """
    return _fill_in(name, _SHARED | PRESETS[name].values, chosen)


def values_until_measured(chosen: Mapping[str, object]) -> Values:
    """Return values that stand for those that auto chooses once the corpus has been counted.

    Args:
        chosen: the keys that are set, with their values.
    """
    # With key/value heads that are set, the number of heads must be a multiple, as it is with some preset.
    kv_heads = _number(chosen.get("model.num_kv_heads"), 1)
    usual = [preset.values["model.num_heads"] for preset in PRESETS.values()]
    heads = next((heads for heads in usual if _number(heads, 1) % kv_heads == 0), usual[0])
    return _fill_in("tiny", _SHARED | _UNTIL_MEASURED | {"model.num_heads": heads}, chosen)


def _fill_in(name: PresetName, values: Values, chosen: Mapping[str, object]) -> Values:
    """Return the values for the keys that are not set, adapted to those that are.

    - A key that excludes one of the preset switches that one off, as `training.lora` does Muon.
    - With `init`, tokenizer, model and search are those of the initial model.
    - The number of heads has its own default if that of the preset does not divide a width that is set.
    - The number of updates decides how often to validate, and the longest warm-up.

    Args:
        name: name of the preset.
        values: its values, or those scaled to a corpus.
        chosen: the keys that are set, with their values; they need not be valid.
    """
    values = dict(values)
    if chosen.get("training.parallel") == "fsdp" or chosen.get("training.lora") is not None:
        values.pop("training.optimizer", None)  # Muon needs whole matrices
    if chosen.get("training.accumulate") is not None:
        values.pop("training.update_tokens", None)
    if chosen.get("training.schedule") == "noam":
        values.pop("training.learning_rate")  # a factor there
    has_update_size = chosen.get("training.update_tokens", values.get("training.update_tokens")) is not None
    if values["training.batch_tokens"] == "auto" and (
        chosen.get("training.parallel") == "fsdp" or not has_update_size
    ):
        values["training.batch_tokens"] = _FIXED_BATCH_TOKENS
    if _number(chosen.get("model.d_model"), 0) % _number(values["model.num_heads"], 1):
        del values["model.num_heads"]
    if chosen.get("init") is not None:
        values = {key: value for key, value in values.items() if key.startswith(("training.", "validation."))}
    usual = PRESETS[name].values
    steps = _number(chosen.get("training.max_steps"), _number(values["training.max_steps"], 1))
    num_validations = _number(usual["training.max_steps"], 1) / _number(usual["validation.every_steps"], 1)
    warmup = min(_number(values["training.warmup_steps"], 0), steps * WARMUP_SHARE)
    values["training.warmup_steps"] = int(warmup)
    values["validation.every_steps"] = max(1, round(steps / num_validations))
    return {key: value for key, value in values.items() if key not in chosen}


def _updates_per_pass(num_tokens: float, values: Mapping[str, object]) -> int:
    """Return about how many updates a pass over the pairs has, at least one.

    Args:
        num_tokens: tokens of all pairs.
        values: all values of the config.
    """
    update = _number(values.get("training.update_tokens"), 0)
    batch = _number(values["training.batch_tokens"], update or _FIXED_BATCH_TOKENS)
    batches = max(1, round(update / batch)) if update else _number(values.get("training.accumulate"), 1)
    return max(1, math.ceil(num_tokens / (batch * batches)))


def _number(value: object, otherwise: float) -> float:
    """Return a positive number unchanged; anything else, which the config refuses, is replaced."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300
    return float(value) if is_number else otherwise  # type: ignore[arg-type]


def round_to_two_digits(number: float) -> int:
    """Round a number to two significant digits and at least 1."""
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return max(1, round(number / unit)) * unit
