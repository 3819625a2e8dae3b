"""The whole YAML as typed, frozen sections.

Every key has a default that is right for most, so that `run` and `data` alone make a complete config.
A builder elsewhere in mtkit receives its own section and nothing more.
The text under each key is its description in `mtkit config schema`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from mtkit.config import choices
from mtkit.languages import bleu_can_tokenize

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]


def positive_or_auto(value: object) -> object:
    """A number of at least 1, or auto. Raises: ValueError: it is neither."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63):
        return value
    got = "null" if value is None else repr(value)
    raise ValueError(f"wants a whole number of at least 1, or auto; got {got}")


def expand_home(path: str) -> str:
    """A path with the home folder in place of ~. Raises: ValueError: there is no such home."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"there is no home folder {path.split('/')[0]}: write ./{path} for a folder of that name"
        )
    return expanded


PositiveOrAuto = Annotated[
    int | Literal["auto"],
    PlainValidator(positive_or_auto, json_schema_input_type=Positive | Literal["auto"]),
]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(gt=0.0)]


Criteria = Literal["loss", "perplexity", choices.Metric]


def small_letters(value: object) -> object:
    """The name of a metric as it is known here: people write BLEU and chrF++."""
    known = isinstance(value, str) and value.lower() in get_args(Criteria)
    return str(value).lower() if known else value


Metric = Annotated[choices.Metric, BeforeValidator(small_letters)]
Criterion = Annotated[Criteria, BeforeValidator(small_letters)]
BleuTokenizer = Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "none"]


def _dependent(usual: object, choose: Callable[[dict[str, Any]], object]) -> Any:
    """A field whose default depends on the keys above it in its section.

    Args:
        usual: the default where those have theirs, which editors and hints show.
        choose: the default from the values above; those that are wrong are missing.
    """
    return Field(default_factory=choose, json_schema_extra={"default": cast(JsonValue, usual)})


def default_value(field: FieldInfo) -> object:
    """The default of a field that is not required, where it depends on others the usual one."""
    extra = field.json_schema_extra
    return extra["default"] if isinstance(extra, dict) and "default" in extra else field.default


class Section(BaseModel):
    """A part of the config: unknown keys are refused, types are not guessed, values cannot be changed later."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class SourceConfig(Section):
    """Where sentence pairs come from: exactly one of `src`+`tgt`, `path`, `hub`, `saved`, `demo`."""

    name: str | None = None
    """What reports call it; by default the file's or data set's own name."""
    src: str | None = None
    """Source side of two parallel files, one sentence a line (plain, .gz, .xz, .zst, .bz2)."""
    tgt: str | None = None
    """Target side of two parallel files."""
    path: str | None = None
    """One file of pairs: .tsv, .csv, .jsonl or .parquet (.tsv, .csv and .jsonl may be compressed)."""
    hub: str | None = None
    """A data set on the Hugging Face hub (or a local folder laid out the same way)."""
    config: str | None = None
    """Configuration of the hub data set, for example `de-en`."""
    split: str | None = None
    """Split of the hub or saved data set, for example `train` or `train[:10000]`."""
    revision: str | None = None
    """Commit, tag or branch of the hub data set: what makes a run repeatable."""
    saved: str | None = None
    """A folder written by `datasets.Dataset.save_to_disk`."""
    columns: tuple[str, str] | None = Field(default=None, strict=False)
    """The two columns to read, source first; by default a `translation` column, or the language codes."""
    demo: Literal["en-de", "de-en"] | None = None
    """The generator inside mtkit; its splits are disjoint by construction."""
    pairs: Positive | None = None
    """How many pairs the demo yields."""

    @model_validator(mode="after")
    def _one_kind(self) -> SourceConfig:
        kinds = [self.src or self.tgt, self.path, self.hub, self.saved, self.demo]
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("give exactly one of: src + tgt, path, hub, saved, demo")
        if (self.src is None) != (self.tgt is None):
            raise ValueError("src and tgt go together: two parallel files")
        if (self.demo is None) != (self.pairs is None):
            raise ValueError("demo and pairs go together, for example {demo: en-de, pairs: 20000}")
        for key in ("config", "revision"):
            if getattr(self, key) is not None and self.hub is None:
                raise ValueError(f"{key} goes with hub")
        if self.split is not None and self.hub is None and self.saved is None:
            raise ValueError("split goes with hub or saved")
        if self.columns is not None and (self.src is not None or self.demo is not None):
            raise ValueError("columns goes with path, hub or saved")
        return self


Sources = Annotated[tuple[SourceConfig, ...], Field(strict=False)]


class DataConfig(Section):
    """The corpora and the languages."""

    root: str = "."
    """Folder at which the relative paths of the sources start (itself relative to the current folder)."""
    src: str = Field(min_length=1)
    """Language code of the source side."""
    tgt: str = Field(min_length=1)
    """Language code of the target side."""
    train: Sources = Field(min_length=1)
    """Training pairs."""
    valid: Sources = ()
    """Validation sets: each is scored, all together choose the best checkpoint; without any, it is the last."""
    test: Sources = ()
    """Test sets, translated and scored once at the end."""
    cache: str | None = None
    """Folder of encoded corpora; by default $MTKIT_CACHE, else mtkit/ in the user's cache folder."""
    max_length: Positive = 256
    """Training pairs with more pieces than this on a side are left out (and counted)."""
    max_length_ratio: Annotated[float, Field(gt=1.0)] | None = None
    """Training pairs whose longer side has more than this many times the pieces of the shorter are left out."""
    drop_duplicates: bool = False
    """Leave out training pairs that were seen before."""


class TokenizerConfig(Section):
    """SentencePiece: trained on the training pairs, or an existing model."""

    type: Literal["unigram", "bpe"] = "unigram"
    """The segmentation: unigram language model (Kudo 2018) or byte pair encoding (Sennrich et al. 2016)."""
    vocab_size: Annotated[int, Field(ge=16)] = 8000
    """Pieces, special ones included (of each side if `joint` is false)."""
    joint: bool = True
    """One vocabulary for both languages, which the tied embeddings need."""
    byte_fallback: bool = True
    """Spell unknown characters as UTF-8 bytes, so that nothing is lost."""
    character_coverage: Annotated[float, Field(gt=0.9, le=1.0)] = _dependent(
        0.9995, lambda above: 0.9995 if above.get("byte_fallback", True) else 1.0
    )
    """Share of the text whose characters become pieces; by default 0.9995, or 1.0 without `byte_fallback`."""
    normalization: Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"] = "nmt_nfkc"
    """SentencePiece's normalization rule; `_cf` also folds case."""
    user_symbols: tuple[str, ...] = Field(default=(), strict=False)
    """Strings that are always one piece."""
    training_lines: Positive = 2_000_000
    """At most so many lines, sampled over all sources, train the tokenizer."""
    model: str | None = None
    """An existing joint SentencePiece .model, used as it is."""
    src_model: str | None = None
    """An existing .model for the source side (with `tgt_model`)."""
    tgt_model: str | None = None
    """An existing .model for the target side (with `src_model`)."""

    @model_validator(mode="after")
    def _models(self) -> TokenizerConfig:
        if (self.src_model is None) != (self.tgt_model is None):
            raise ValueError("src_model and tgt_model go together")
        if self.model is not None and self.src_model is not None:
            raise ValueError("give either model, or src_model and tgt_model")
        return self


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017) and its variants."""

    d_model: Positive = 256
    """Width of the model."""
    encoder_layers: Positive = 4
    """Depth of the encoder."""
    decoder_layers: Positive = 4
    """Depth of the decoder."""
    num_heads: Positive | None = None
    """Attention heads; by default one for each 64 of width, or somewhat fewer."""
    num_kv_heads: Positive | None = None
    """Key/value heads (grouped-query attention, Ainslie et al. 2023); by default as many as `num_heads`."""
    d_ff: Positive | None = None
    """Width of the feed-forward layer; by default 4 x d_model (8/3 x d_model for swiglu, same parameters)."""
    activation: Literal["relu", "gelu", "silu", "swiglu"] = "relu"
    """Feed-forward activation; swiglu (Shazeer 2020) adds a gate."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalize before each sublayer (stable) or after it (the original)."""
    positions: Literal["sinusoidal", "learned", "rotary", "relative"] = "sinusoidal"
    """Sinusoidal, learned, rotary (Su et al. 2021) or relative (Shaw et al. 2018) positions."""
    max_positions: Positive = 1024
    """Longest sequence of learned positions."""
    max_relative_distance: Positive = 16
    """Relative positions farther apart than this are treated alike."""
    dropout: Fraction = 0.1
    """Dropout on embeddings and on the output of every sublayer."""
    attention_dropout: Fraction = 0.0
    """Dropout on attention weights."""
    activation_dropout: Fraction = 0.0
    """Dropout inside the feed-forward layer."""
    tie_embeddings: Literal["three-way", "two-way", "none"] | None = None
    """Source, target and output share a matrix; or target and output; or none. Default: three-way if joint."""
    unique_encoder_layers: Positive | None = None
    """Distinct encoder layers, reused in a cycle (Takase and Kiyono 2023); by default all."""
    unique_decoder_layers: Positive | None = None
    """Distinct decoder layers, reused in a cycle; by default all."""
    bias: bool = True
    """Bias vectors in the linear layers."""

    @property
    def heads(self) -> int:
        """Number of attention heads, resolved."""
        if self.num_heads is not None:
            return self.num_heads
        most = max(1, self.d_model // 64)
        return next(heads for heads in range(most, 0, -1) if self.d_model % heads == 0)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, resolved."""
        return self.num_kv_heads or self.heads

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layer, resolved; a multiple of 8 for swiglu."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.activation == "swiglu" else 4 * self.d_model

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"num_heads {self.heads} is not a multiple of num_kv_heads {self.kv_heads}")
        if self.positions == "rotary" and (self.d_model // self.heads) % 2:
            raise ValueError("rotary positions need an even width of each head")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError("sinusoidal positions need an even d_model")
        for side in ("encoder", "decoder"):
            unique, layers = getattr(self, f"unique_{side}_layers"), getattr(self, f"{side}_layers")
            if unique is not None and unique > layers:
                raise ValueError(f"unique_{side}_layers {unique} is more than {side}_layers {layers}")
        return self


class TrainingConfig(Section):
    """Batches, loss, optimizer, schedule, limits and saving."""

    batch_tokens: PositiveOrAuto = 4096
    """Size of a batch: sentences x pieces of the longest side, padding included; auto: `update_tokens`, in slices."""
    accumulate: Positive = 1
    """Batches that make one update, over all processes."""
    update_tokens: Positive | None = None
    """Size of an update, instead of `accumulate`: as many batches as come nearest to it."""
    max_steps: Positive | None = None
    """Stop after so many updates; 100,000 if neither `max_epochs` nor `time_limit_minutes` is given."""
    max_epochs: Positive | None = None
    """Stop after so many passes over the training pairs."""
    time_limit_minutes: Rate | None = None
    """Stop after so many minutes of training, earlier runs of the same folder included."""
    label_smoothing: Fraction = 0.1
    """Share of the probability spread evenly over the vocabulary (Szegedy et al. 2016)."""
    schedule: Literal["inverse_sqrt", "noam", "linear", "cosine", "constant"] = "inverse_sqrt"
    """How the rate falls after the warm-up; linear and cosine reach `min_learning_rate` at the last step."""
    learning_rate: Rate = _dependent(0.001, lambda above: 2.0 if above.get("schedule") == "noam" else 0.001)
    """Peak learning rate; for `noam` the factor before the formula, by default 2.0."""
    warmup_steps: Count = 1000
    """Updates over which the rate rises from 0."""
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0
    """Where linear and cosine end."""
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.98), strict=False)
    """AdamW's (Loshchilov and Hutter 2019) decay rates."""
    eps: Rate = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of matrices (not of biases and norms)."""
    clip_norm: Rate | None = 1.0
    """Gradients with a larger norm are scaled down to it; null is off."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Validate and save an exponential moving average of the weights; null is off."""
    precision: choices.TrainPrecision = "auto"
    """Of the matrix products; auto is bf16 where the device is fast at it, else fp32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ...; auto is a GPU if there is one."""
    num_threads: Positive | None = None
    """CPU threads; by default PyTorch's choice."""
    compile: bool = False
    """Use torch.compile, which needs a C++ compiler for a CPU, Triton and a C compiler for a GPU."""
    activation_checkpointing: bool = False
    """Work the inside of each layer out again in the backward pass (Chen et al. 2016): less memory, a third slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: each has the whole model (ddp), or a shard of weights and optimizer (fsdp)."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """At a loss that is not a number: stop; or, there and at a spike, go back a checkpoint and skip those pairs."""
    log_every_steps: Positive = 50
    """Updates between lines of progress and of metrics.jsonl."""
    save_every_steps: Positive | None = None
    """Updates between checkpoints; by default at every validation."""
    keep_last: Positive = 2
    """Checkpoints kept beside the best one."""
    average_last: Annotated[int, Field(ge=2)] | None = None
    """At the end, write the average of so many last checkpoints (Vaswani et al. 2017, 6.1) to `average/`."""
    tensorboard: bool = False
    """Write TensorBoard events too (needs `pip install mtkit[tensorboard]`)."""

    @property
    def batch_token_budget(self) -> int:
        """The budget by which an epoch is cut into batches."""
        if self.batch_tokens != "auto":
            return self.batch_tokens
        assert self.update_tokens is not None, "auto asks for update_tokens"
        return self.update_tokens

    @property
    def batches_per_update(self) -> int:
        """Batches that make one update, resolved."""
        if self.update_tokens is None:
            return self.accumulate
        return max(1, round(self.update_tokens / self.batch_token_budget))

    @property
    def step_limit(self) -> int | None:
        """The last step, if steps bound the run."""
        if self.max_steps is None and self.max_epochs is None and self.time_limit_minutes is None:
            return 100_000
        return self.max_steps

    @property
    def num_checkpoints_kept(self) -> int:
        """Checkpoints kept: those that `keep_last` asks for, and those that are to be averaged."""
        return max(self.keep_last, self.average_last or 0)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.schedule in ("linear", "cosine"):
            if self.step_limit is None:
                raise ValueError(f"schedule {self.schedule} needs max_steps: it ends there")
            if self.warmup_steps >= self.step_limit:
                raise ValueError(f"warmup_steps {self.warmup_steps} leaves no step before {self.step_limit}")
        if self.batch_tokens == "auto" and self.update_tokens is None:
            raise ValueError("batch_tokens auto needs update_tokens: how much an update learns from")
        if self.update_tokens is not None and self.accumulate != 1:
            raise ValueError("give either accumulate or update_tokens")
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "parallel fsdp needs precision bf16 or fp32: each shard would scale its losses alone"
            )
        if self.parallel == "fsdp" and self.batch_tokens == "auto":
            raise ValueError(
                "batch_tokens auto needs parallel ddp: with fsdp no process can try a batch alone"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is above learning_rate")
        return self


class ValidationConfig(Section):
    """What is measured during training, and what counts as the best."""

    every_steps: Positive = 1000
    """Updates between validations; the last step is always validated."""
    metrics: tuple[Metric, ...] = Field(default=("bleu", "chrf"), strict=False)
    """Scores of real translations; empty for loss and perplexity only."""
    bleu_tokenizer: BleuTokenizer | None = None
    """sacreBLEU's tokenizer for BLEU, of test sets too; by default 13a, or that of the target language."""
    best: Criterion = "bleu"
    """Chooses the best checkpoint, of equals the lower loss; by default bleu, or chrf where BLEU finds no words."""
    patience: Positive | None = None
    """Stop after so many validations without a new best; null never stops early."""
    beam_size: Positive = 1
    """Beam of the validation translations, which are never samples, groups or minimum Bayes risk; 1 is greedy."""
    max_sentences: Positive | None = None
    """Translate only the first so many sentences of each validation set (the loss is of all)."""
    num_samples: Count = 2
    """Translations shown at each validation."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> ValidationConfig:
        if self.best not in ("loss", "perplexity", *self.metrics):
            raise ValueError(f"best is {self.best}, which is not among metrics")
        return self


class DecodingConfig(Section):
    """How the finished model translates; `mtkit translate` starts from these.

    Penalties and temperature are bounded so that scores stay finite in float32, whatever the length.
    """

    beam_size: Positive = 5
    """Hypotheses kept at each step; 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=-5.0, le=5.0)] = 1.0
    """alpha of the length penalty; 0 is off."""
    penalty_kind: Literal["gnmt", "simple"] = "gnmt"
    """gnmt: ((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14); simple: length ** alpha."""
    coverage_penalty: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """beta of the coverage penalty (Wu et al. 2016, eq. 14); 0 is off."""
    n_best: Positive = 1
    """Translations of each line from the Python API, best first; `mtkit translate` has `--n-best`."""
    stop: Literal["finished", "unbeaten", "certain"] = "unbeaten"
    """A sentence ends when beam_size hypotheses have finished; and the best live one is worse; or none can win."""
    max_length_ratio: Annotated[float, Field(gt=0.0, le=1000.0)] = 2.0
    """A translation has at most ratio x source pieces + extra pieces."""
    max_length_extra: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """See `max_length_ratio`."""
    min_pieces: Count = 0
    """A translation has at least so many pieces."""
    no_repeat_ngram: Count = 0
    """No sequence of so many pieces appears twice in a translation (Paulus et al. 2018); 0 is off."""
    suppress: tuple[str, ...] = Field(default=(), strict=False)
    """Texts whose pieces never appear."""
    groups: Positive = 1
    """Groups of diverse beam search (Vijayakumar et al. 2018); a divisor of `beam_size`."""
    diversity: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.5
    """What a piece costs that an earlier group chose at the same step."""
    sample: bool = False
    """Draw `n_best` translations from the model instead of searching for the best."""
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """Of samples; below 1 sharper, above 1 flatter."""
    top_k: Count = 0
    """Samples take only the most probable so many pieces; 0 is off."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Samples take only the fewest pieces that together have this probability; 1 is off."""
    epsilon: Fraction = 0.0
    """Samples take no piece less probable than this (Hewitt et al. 2022); 0 is off."""
    sample_seed: Count = 1
    """Another seed, other samples."""
    mbr: Metric | None = None
    """Minimum Bayes risk: of `mbr_candidates` translations the one that this metric finds most like all others."""
    mbr_candidates: Annotated[int, Field(ge=2)] = 32
    """Samples, or else hypotheses of a beam that wide, among which `mbr` chooses."""
    batch_tokens: Positive = 16384
    """Source pieces x beam in a batch, padding included."""

    @model_validator(mode="after")
    def _n_best(self) -> DecodingConfig:
        if self.n_best > self.beam_size and not self.sample and self.mbr is None:
            raise ValueError(f"n_best {self.n_best} is more than beam_size {self.beam_size}")
        if self.mbr is not None and self.n_best > self.mbr_candidates:
            raise ValueError(f"n_best {self.n_best} is more than mbr_candidates {self.mbr_candidates}")
        if self.beam_size % self.groups:
            raise ValueError(f"beam_size {self.beam_size} is not a multiple of groups {self.groups}")
        return self

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses of a sentence that are decoded together."""
        if self.mbr is not None:
            return self.mbr_candidates
        return self.n_best if self.sample else self.beam_size

    @property
    def label(self) -> str:
        """The search in a few words, for reports: `beam 5`, `samples`, `mbr chrf of 32 samples`."""
        if self.mbr is not None:
            kind = "samples" if self.sample else "hypotheses"
            return f"mbr {self.mbr} of {self.mbr_candidates} {kind}"
        return "samples" if self.sample else f"beam {self.beam_size}"

    def max_length(self, num_source_tokens: int) -> int:
        """Most pieces of a translation of so many, eos included."""
        return int(self.max_length_ratio * num_source_tokens) + self.max_length_extra + 1


_VALIDATION_SEARCH_KEYS = (
    "length_penalty", "penalty_kind", "coverage_penalty", "stop", "max_length_ratio", "max_length_extra",
    "min_pieces", "no_repeat_ngram", "suppress", "batch_tokens",
)  # fmt: skip
"""Keys of `decoding` that validation searches with too. Its beam is its own, and it never draws samples, divides the
beam into groups or minimizes risk: the best checkpoint is chosen by what the weights give, not by chance."""


class Config(Section):
    """One training run, from text pairs to a scored translator."""

    run: Annotated[str, AfterValidator(expand_home)] = Field(min_length=1)
    """The run folder: everything the run writes; self-contained afterwards."""
    seed: Count = 1
    """Of initial weights, batch order and dropout."""
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = Field(default=ValidationConfig(), validate_default=True)
    decoding: DecodingConfig = DecodingConfig()

    @field_validator("validation")
    @classmethod
    def _best_by_language(cls, validation: ValidationConfig, info: ValidationInfo) -> ValidationConfig:
        """Resolve the default of `best`, which depends on `data.tgt`."""
        data: DataConfig | None = info.data.get("data")  # None: it is wrong, which is said elsewhere
        chosen = "best" in validation.model_fields_set or validation.bleu_tokenizer is not None
        if data is None or chosen or "chrf" not in validation.metrics or bleu_can_tokenize(data.tgt):
            return validation
        values = dict(validation) | {"best": "chrf"}  # a default: it does not count as named
        return ValidationConfig.model_construct(_fields_set=validation.model_fields_set, **values)

    @model_validator(mode="after")
    def _positions(self) -> Config:
        needed = self.data.max_length + 1
        if self.model.positions == "learned" and self.model.max_positions < needed:
            have = self.model.max_positions
            raise ValueError(
                f"model.max_positions {have} is less than data.max_length + 1, which is {needed}"
            )
        return self

    @model_validator(mode="after")
    def _tying(self) -> Config:
        joint = self.tokenizer.src_model is None and self.tokenizer.joint
        if self.model.tie_embeddings == "three-way" and not joint:
            raise ValueError("model.tie_embeddings three-way needs a joint tokenizer")
        return self

    @property
    def validation_decoding(self) -> DecodingConfig:
        """The search of validation: the run's penalties and limits, with `validation.beam_size`."""
        shared = self.decoding.model_dump(include=set(_VALIDATION_SEARCH_KEYS))
        return DecodingConfig.model_validate(shared | {"beam_size": self.validation.beam_size})
