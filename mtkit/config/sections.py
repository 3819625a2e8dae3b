"""The whole YAML as typed, frozen sections.

Every key but `run` and a few of `data` has a default that suits most corpora, so these two make a complete config.
A builder elsewhere in mtkit takes its own section; only what runs or checks a whole run takes the whole config.
The string under each key is its description in `mtkit config schema` and docs/configuration.md; after changing one,
run `python -m mtkit.config.reference docs/configuration.md`.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
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
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from mtkit.config import choices
from mtkit.config.presets import PresetName
from mtkit.languages import bleu_can_tokenize

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]


def _positive_or_auto(value: object) -> object:
    """Return a positive integer or "auto" unchanged.

    Raises:
        ValueError: If the value is neither.
    """
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63):
        return value
    got = "null" if value is None else repr(value)
    raise ValueError(f"expected a positive integer or auto, got {got}")


def _expand_home(path: str) -> str:
    """Replace a leading `~` or `~user` by the home folder.

    Raises:
        ValueError: If there is no such home folder.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"no home folder for {path.split('/')[0]!r}; write ./{path} for a folder of that name"
        )
    return expanded


PositiveOrAuto = Annotated[
    int | Literal["auto"],
    PlainValidator(_positive_or_auto, json_schema_input_type=Positive | Literal["auto"]),
]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]

_Criteria = Literal["loss", "perplexity", choices.Metric]


def _lowercase_metric(value: object) -> object:
    """Return the name of a metric in lower case, since people write BLEU and chrF++; other values unchanged."""
    return value.lower() if isinstance(value, str) and value.lower() in get_args(_Criteria) else value


_Column = Annotated[
    str,
    Field(strict=False, coerce_numbers_to_str=True),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]
Metric = Annotated[choices.Metric, BeforeValidator(_lowercase_metric)]
Criterion = Annotated[_Criteria, BeforeValidator(_lowercase_metric)]
BleuTokenizer = Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "none"]


def _dependent_default(usual: object, choose: Callable[[dict[str, Any]], object]) -> Any:
    """Return a field whose default depends on the keys above it in its section.

    Args:
        usual: The default when those keys have theirs; editors, hints and the documentation show it.
        choose: Returns the default, given the values above; invalid ones are missing.
    """
    return Field(default_factory=choose, json_schema_extra={"default": cast(JsonValue, usual)})


def default_value(field: FieldInfo) -> object:
    """Return the default of an optional field; if it depends on other keys, the one for their defaults."""
    extra = field.json_schema_extra
    return extra["default"] if isinstance(extra, dict) and "default" in extra else field.default


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, values are not coerced to other types, instances are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
    )


class SourceConfig(Section):
    """One corpus of sentence pairs: exactly one of `src` + `tgt`, `path`, `hub`, `saved` or `demo`."""

    name: str | None = None
    """Name of the corpus in reports; by default that of the file or data set."""
    src: str | None = None
    """Source side of two parallel text files, one sentence per line; plain, .gz, .xz, .bz2 or .zst."""
    tgt: str | None = None
    """Target side of two parallel text files, with as many lines as `src`."""
    path: str | None = None
    """One file of pairs: .tsv, .csv, .jsonl, .tmx, .xlf (XLIFF), .xlsx or .parquet; all but the last two may be
    compressed."""
    hub: str | None = None
    """Data set on the Hugging Face hub, such as `wmt/wmt16`, or a local folder with the same layout."""
    config: str | None = None
    """Configuration of the hub data set, such as `de-en`."""
    split: str | None = None
    """Split of the hub or saved data set, such as `train` or `train[:10000]`."""
    revision: str | None = None
    """Commit, tag or branch of the hub data set. Name a commit to make a run reproducible."""
    saved: str | None = None
    """Folder written by `datasets.Dataset.save_to_disk`."""
    columns: tuple[_Column, _Column] | None = Field(default=None, strict=False)
    """The two columns to read, source first; by default a `translation` column or those named after the languages. In
    a .tmx or .xlf file, the two language tags; in a .tsv without a header, numbers, as in [2, 1]."""
    demo: Literal["en-de", "de-en"] | None = None
    """Built-in generator of English-German pairs. The pairs of train, valid and test never overlap."""
    pairs: Positive | None = None
    """Number of pairs to generate for `demo`."""
    weight: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """How many times an epoch uses each pair of this training corpus, by default once: 0.25 is a different quarter in
    each epoch, 2 is every pair twice."""
    tag: str | None = None
    """Token of the source vocabulary prepended to each source line, such as `>>fra<<` for the target language or
    `<legal>` for a domain; for translation, `--tag` prepends it."""
    alignments: str | None = None
    """Word alignments of a training corpus, which `training.guided_alignment` needs: for each pair a line such as
    `0-0 1-2`, numbers of a source and a target word between spaces; plain, .gz, .xz, .bz2 or .zst."""
    license: str | None = None
    """License of the corpus as its owners name it, such as `CC BY 2.0`. Shown in the model card only."""
    synthetic: str | None = None
    """How its pairs were made, if not by people, such as `back-translated by runs/de-en`. Shown in the model card and
    the report only."""

    @model_validator(mode="after")
    def _one_kind(self) -> SourceConfig:
        kinds = [self.src or self.tgt, self.path, self.hub, self.saved, self.demo]
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("give exactly one of: src + tgt, path, hub, saved, demo")
        if (self.src is None) != (self.tgt is None):
            raise ValueError("src and tgt must be given together: they are two parallel files")
        if (self.demo is None) != (self.pairs is None):
            raise ValueError("demo and pairs must be given together, for example {demo: en-de, pairs: 20000}")
        for key in ("config", "revision"):
            if getattr(self, key) is not None and self.hub is None:
                raise ValueError(f"{key} requires hub")
        if self.split is not None and self.hub is None and self.saved is None:
            raise ValueError("split requires hub or saved")
        if self.columns is not None and (self.src is not None or self.demo is not None):
            raise ValueError("columns requires path, hub or saved")
        if self.tag is not None and self.tag.split() != [self.tag]:
            raise ValueError(f"tag {self.tag!r} is blank or has a space: give one token")
        return self


Sources = Annotated[tuple[SourceConfig, ...], Field(strict=False)]


class DataConfig(Section):
    """The languages and the corpora."""

    root: str = "."
    """Folder that relative paths of the corpora start from; a relative `root` starts from the current folder."""
    src: str = Field(min_length=1)
    """Language code of the source side, such as `en`."""
    tgt: str = Field(min_length=1)
    """Language code of the target side, such as `de`."""
    train: Sources = Field(min_length=1)
    """Training corpora."""
    valid: Sources = ()
    """Validation corpora. Each is scored; all together choose the best checkpoint. Without any, it is the last one."""
    test: Sources = ()
    """Test corpora, translated and scored once at the end of training."""
    cache: str | None = None
    """Folder for encoded corpora; by default `$MTKIT_CACHE`, or `mtkit` in your cache folder."""
    max_length: Positive = 256
    """Maximum tokens on either side of a training pair; longer pairs are dropped and counted."""
    max_length_ratio: Annotated[float, Field(gt=1.0)] | None = None
    """Maximum ratio between the token counts of the two sides of a training pair; null disables the filter."""
    drop_duplicates: bool = False
    """Drop training pairs that repeat an earlier pair."""

    reverse: bool = False
    """Train on each pair in both directions (Ding et al. 2021); the `tag` of a corpus is used in the forward direction
    only. Requires a joint tokenizer."""
    reverse_epochs: Positive | None = None
    """Number of epochs at the start that train both directions; later ones train forward only. By default all."""

    @property
    def train_weights(self) -> tuple[float, ...]:
        """`weight` of each training corpus, with the default filled in."""
        return tuple(1.0 if source.weight is None else source.weight for source in self.train)

    @property
    def train_tags(self) -> tuple[str, ...]:
        """`tag` of each training corpus that has one."""
        return tuple(source.tag for source in self.train if source.tag is not None)

    @property
    def tags(self) -> dict[str, str]:
        """`tag` of each corpus that has one, by its key in the config."""
        return {
            f"data.{split}.{number}.tag": source.tag
            for split in ("train", "valid", "test")
            for number, source in enumerate(getattr(self, split))
            if source.tag is not None
        }

    @model_validator(mode="after")
    def _weights(self) -> DataConfig:
        for split in ("valid", "test"):
            if any(source.weight is not None for source in getattr(self, split)):
                raise ValueError(f"weight in {split}: only training corpora have one")
            if any(source.alignments is not None for source in getattr(self, split)):
                raise ValueError(f"alignments in {split}: only training corpora have them")
        return self


class TokenizerConfig(Section):
    """The SentencePiece tokenizer: trained on the training pairs, or an existing model."""

    type: Literal["unigram", "bpe"] = "unigram"
    """Unigram language model (Kudo 2018) or byte pair encoding (Sennrich et al. 2016)."""
    vocab_size: Annotated[int, Field(ge=16, lt=2**31)] = 8000
    """Vocabulary size, special tokens included; of each side if `joint` is false. Use fewer for a small corpus."""
    joint: bool = True
    """Share one vocabulary between both languages. Required for three-way tied embeddings."""
    byte_fallback: bool = True
    """Spell characters outside the vocabulary as UTF-8 bytes instead of `<unk>`, so that no text is lost."""
    character_coverage: Annotated[float, Field(gt=0.9, le=1.0)] = _dependent_default(
        0.9995, lambda above: 0.9995 if above.get("byte_fallback", True) else 1.0
    )
    """Share of the characters in the text that the vocabulary covers; by default 0.9995, or 1.0 without
    `byte_fallback`."""
    normalization: Literal["auto", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"] = "auto"
    """SentencePiece's Unicode normalization rule; `_cf` variants also fold case. `auto` is `nmt_nfkc`, or `identity` if
    that would change more than 0.2 % of the target's characters, as in Chinese (`，` to `,`), Thai (U+0E33) and Persian
    (the zero-width non-joiner): translations have no character that normalization removes."""
    user_symbols: tuple[str, ...] = Field(default=(), strict=False)
    """Strings that always become a single piece."""
    training_lines: Positive = 2_000_000
    """Maximum lines to train the tokenizer on, sampled evenly from all training pairs."""
    sampling_alpha: Rate | None = None
    """Train on another segmentation of each sentence in each epoch (subword regularization, Kudo 2018), sampled with
    the probabilities of its pieces raised to this power; 0.2 to 0.5 are usual, null is off. Needs a unigram model."""
    bpe_dropout: Fraction = 0.0
    """The same for a BPE model: probability that a merge is left out (BPE-dropout, Provilkov et al. 2020); 0.1 is
    usual, 0 is off."""
    sampling_sides: Literal["both", "src", "tgt"] = "both"
    """Sides of the training pairs whose segmentation is sampled."""
    add_tokens: tuple[str, ...] = Field(default=(), strict=False)
    """Strings that become tokens of their own when a run starts from another model; requires `init`. Their embeddings
    start as the mean of the old ones."""
    model: str | None = None
    """Path of an existing joint SentencePiece .model, used unchanged."""
    src_model: str | None = None
    """Path of an existing .model for the source side; requires `tgt_model`."""
    tgt_model: str | None = None
    """Path of an existing .model for the target side; requires `src_model`."""

    @model_validator(mode="after")
    def _models(self) -> TokenizerConfig:
        if (self.src_model is None) != (self.tgt_model is None):
            raise ValueError("src_model and tgt_model must be given together")
        if self.model is not None and self.src_model is not None:
            raise ValueError("give either model, or src_model and tgt_model")
        if self.sampling_alpha and self.bpe_dropout:
            raise ValueError("give either sampling_alpha, for unigram models, or bpe_dropout, for BPE models")
        return self


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017) and its variants."""

    d_model: Positive = 256
    """Model width: the size of embeddings and hidden states."""
    encoder_layers: Positive = 4
    """Number of encoder layers."""
    decoder_layers: Positive = 4
    """Number of decoder layers. Fewer make translation faster."""
    num_heads: Positive | None = None
    """Number of attention heads; by default one per 64 units of width, rounded down to a divisor of `d_model`."""
    num_kv_heads: Positive | None = None
    """Number of key/value heads (grouped-query attention, Ainslie et al. 2023); by default `num_heads`."""
    d_ff: Positive | None = None
    """Width of the feed-forward layers; by default `4 * d_model`, or `8/3 * d_model` with a gate (equal size)."""
    decoder_num_heads: Positive | None = None
    """Number of attention heads in the decoder; by default as in the encoder."""
    decoder_d_ff: Positive | None = None
    """Width of the decoder's feed-forward layers; by default as in the encoder."""
    activation: Literal["relu", "gelu", "silu", "swiglu", "geglu"] = "relu"
    """Feed-forward activation; swiglu and geglu (Shazeer 2020) are silu and gelu with a gate."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""
    norm_epsilon: Annotated[float, Field(gt=0, le=1e-2)] | None = None
    """Added to the variance in each norm, so that nothing is divided by zero; by default 1e-5 (layernorm) or 1e-6
    (rmsnorm)."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalize before each sublayer (pre, more stable) or after it (post, as in the original Transformer)."""
    decoder_norm_position: Literal["pre", "post"] | None = None
    """The same in the decoder; by default as in the encoder."""
    final_norm: bool | None = None
    """Normalize the output of the last encoder and decoder layer; by default with `norm_position: pre` only."""
    embedding_norm: bool = False
    """Normalize the sum of token embedding and position, as BART does."""
    residual_scale: Rate = 1.0
    """Each sublayer computes `residual_scale * x + f(x)`; DeepNet (Wang et al. 2022) uses more than 1."""
    decoder_residual_scale: Rate | None = None
    """The same in the decoder; by default as in the encoder."""
    source_eos: bool = True
    """End source sentences with the end token. OpenNMT models do not."""
    scale_embeddings: bool = True
    """Multiply token embeddings by the square root of `d_model` (Vaswani et al. 2017, section 3.4)."""
    output_bias: bool = False
    """Add a trained bias to the logits."""
    positions: Literal["sinusoidal", "learned", "rotary", "relative"] = "sinusoidal"
    """Position encoding: sinusoidal, learned, rotary (Su et al. 2021) or relative (Shaw et al. 2018)."""
    sinusoids: Literal["concatenated", "interleaved", "fairseq"] = "concatenated"
    """Order of sinusoidal positions: all sines, then all cosines; or sine and cosine alternating, as in the paper; or
    fairseq's, which are concatenated and spread over slightly other frequencies. Models trained with one of them
    cannot use another."""
    position_offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Number of the first sinusoidal position. fairseq starts at the id of padding plus one, usually 2."""
    max_positions: Positive = 1024
    """Longest sequence in tokens that learned positions support; at least `data.max_length` + 1."""
    max_relative_distance: Positive = 16
    """Distance in tokens beyond which relative positions share an embedding."""
    dropout: Fraction = 0.1
    """Dropout on embeddings and sublayer outputs. Use more for a small corpus."""
    attention_dropout: Fraction = 0.0
    """Dropout on attention weights."""
    activation_dropout: Fraction = 0.0
    """Dropout inside the feed-forward layers, after the activation."""
    token_dropout: Fraction = 0.0
    """Probability of zeroing a token's embedding, on either side (Gal and Ghahramani 2016; Marian's `dropout-src` and
    `dropout-trg`)."""
    layer_dropout: Fraction = 0.0
    """Probability that a micro-batch skips a layer (LayerDrop, Fan et al. 2020), which also saves its time."""
    tie_embeddings: Literal["three-way", "two-way", "none"] | None = None
    """Share one matrix between source, target and output (three-way) or target and output (two-way); by default
    three-way for a joint vocabulary, else two-way."""
    alignment_layer: Positive | None = None
    """Decoder layer, counted from 1, whose first cross-attention head gives the word alignment; by default the last but
    one with `training.guided_alignment`, otherwise none: then all heads of the last two layers are averaged."""
    unique_encoder_layers: Positive | None = None
    """Number of distinct encoder layers, reused cyclically (Takase and Kiyono 2023); by default all are distinct."""
    unique_decoder_layers: Positive | None = None
    """Number of distinct decoder layers, reused cyclically; by default all are distinct."""
    bias: bool = True
    """Use bias vectors in the linear layers."""
    attention_bias: bool | None = None
    """Use bias vectors in the projections to queries, keys and values; by default as `bias` says."""
    attention_output_bias: bool | None = None
    """Use a bias vector in the output projection of attention; by default as `attention_bias` says."""

    @property
    def heads(self) -> int:
        """Number of attention heads, with the default filled in."""
        if self.num_heads is not None:
            return self.num_heads
        most = max(1, self.d_model // 64)
        return next(heads for heads in range(most, 0, -1) if self.d_model % heads == 0)

    @property
    def decoder(self) -> ModelConfig:
        """The same config with the decoder's values of the keys that differ there."""
        own = {
            "num_heads": self.decoder_num_heads or self.num_heads,
            "d_ff": self.decoder_d_ff or self.d_ff,
            "norm_position": self.decoder_norm_position or self.norm_position,
            "residual_scale": self.decoder_residual_scale or self.residual_scale,
        }
        return self.model_copy(update=own)

    @property
    def epsilon(self) -> float:
        """`norm_epsilon`, with the default filled in."""
        return self.norm_epsilon or (1e-5 if self.norm == "layernorm" else 1e-6)

    @property
    def has_final_norm(self) -> bool:
        """`final_norm`, with the default filled in."""
        return self.norm_position == "pre" if self.final_norm is None else self.final_norm

    @property
    def is_gated(self) -> bool:
        """Return whether the activation has a gate, which makes the first feed-forward matrix twice as wide."""
        return self.activation in ("swiglu", "geglu")

    @property
    def has_attention_bias(self) -> bool:
        """`attention_bias`, with the default filled in."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_attention_output_bias(self) -> bool:
        """`attention_output_bias`, with the default filled in."""
        return self.has_attention_bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, with the default filled in."""
        return self.num_kv_heads or self.heads

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layers, with the default filled in; with a gate that is a multiple of 8."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.is_gated else 4 * self.d_model

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        for key, heads in (("num_heads", self.heads), ("decoder_num_heads", self.decoder.heads)):
            if self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {key} {heads}")
            if heads % (self.num_kv_heads or heads):
                raise ValueError(f"{key} {heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
            if self.positions == "rotary" and (self.d_model // heads) % 2:
                raise ValueError(f"rotary positions need an even head width, got {self.d_model // heads}")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"sinusoidal positions need an even d_model, got {self.d_model}")
        for side in ("encoder", "decoder"):
            unique, layers = getattr(self, f"unique_{side}_layers"), getattr(self, f"{side}_layers")
            if unique is not None and unique > layers:
                raise ValueError(f"unique_{side}_layers {unique} is greater than {side}_layers {layers}")
        return self


class AugmentConfig(Section):
    """Random changes of training pairs, different in each epoch, for robust translations.

    Each key is the share of pairs that gets the change.
    """

    upper: Share = 0.0
    """Both sides in capitals, if most letters of the source have them; 0.07 is usual."""
    title: Share = 0.0
    """Both sides with a capital at the start of each word; 0.05 is usual."""
    no_final_punctuation: Share = 0.0
    """Both sides without the punctuation at their end, if both have one; 0.2 is usual."""
    typos: Share = 0.0
    """Letters of the source swapped, left out, doubled or hit on the next key, in a tenth of its words; 0.05 is
    usual."""
    noise: Share = 0.0
    """Both sides replaced by the same random words of any script, which teaches the model to copy what it cannot
    translate; 0.0005 is usual."""
    tags: Share = 0.0
    """The same random words put in at the start of both sides, or at the end; 0.005 is usual."""

    @property
    def is_on(self) -> bool:
        """Return whether any pair is changed."""
        return any(self.model_dump().values())

    @model_validator(mode="after")
    def _case(self) -> AugmentConfig:
        if self.upper + self.title > 1.0:
            raise ValueError(
                "upper and title exclude each other, so that together they cannot be more than 1"
            )
        return self


class LoraConfig(Section):
    """LoRA: adapters of low rank, which are trained in place of the matrices themselves (Hu et al. 2022)."""

    rank: Positive = 8
    """Rank of the adapters."""
    alpha: Rate = 16.0
    """Adapters are scaled by `alpha / rank`."""
    dropout: Fraction = 0.0
    """Dropout on the input of the adapters."""
    targets: tuple[str, ...] = Field(default=("q", "v"), strict=False, min_length=1)
    """Matrices with an adapter: q, k, v, out (attention), inner, outer (feed-forward), or patterns such as
    `decoder.*.cross.q`."""


class DistillationConfig(Section):
    """Word-level distillation: the student also learns the predictions of trained models (Kim and Rush 2016)."""

    teacher: tuple[Annotated[str, AfterValidator(_expand_home)], ...] = Field(strict=False, min_length=1)
    """Run or model folders with the tokenizer of this run; of several, the probabilities are averaged. Their sizes may
    differ from that of this model."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Weight of the teachers' predictions in the loss; the reference has the rest."""
    temperature: Rate = 1.0
    """Softmax temperature of teacher and student in that part of the loss; above 1 flattens both (Hinton et al.
    2015)."""


class MinimumRiskConfig(Section):
    """Minimum-risk training on the translations of the model itself (Shen et al. 2016)."""

    metric: Literal["bleu", "chrf", "chrf++"] = "chrf"
    """Sentence-level metric of sacreBLEU; the risk of a translation is 1 - score / 100."""
    samples: Annotated[int, Field(ge=2, lt=2**63)] = 8
    """Translations sampled from the model for each sentence; duplicates count once."""
    alpha: Rate = 1.0
    """Sharpness of the distribution over these translations: below 1 flattens it. Shen et al. use 0.005."""
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    """Weight of the expected risk in the loss; the cross-entropy of the reference has the rest."""
    include_reference: bool = True
    """Whether the reference is among the translations."""


class TrainingConfig(Section):
    """Batches, loss, optimizer, schedule, limits and checkpoints."""

    batch_tokens: PositiveOrAuto = 4096
    """Maximum batch size in tokens: sentences times longest side, padding included. Lower it first if memory runs out.
    With auto, a batch has `update_tokens` and runs in as many micro-batches as memory requires."""
    accumulate: Positive = 1
    """Batches per update, over all processes (gradient accumulation)."""
    update_tokens: Positive | None = None
    """Effective batch size in tokens, as an alternative to `accumulate`: the number of batches that comes closest."""
    max_steps: Positive | None = None
    """Stop after this many updates; 100,000 if `max_epochs` and `time_limit_minutes` are null too."""
    max_epochs: Positive | None = None
    """Stop after this many passes over the training pairs."""
    time_limit_minutes: Rate | None = None
    """Stop after this many minutes of training, counting the time before a run was resumed. Without `max_steps`, a
    linear or cosine schedule ends with the updates that fit, which are estimated once, when the run begins."""
    label_smoothing: Fraction = 0.1
    """Probability mass spread evenly over the vocabulary (Szegedy et al. 2016)."""
    simcut: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of SimCut (Gao et al. 2022): each batch runs a second time with tokens cut off on both sides, and the
    divergence of its predictions from those of the first is added to the loss. 3 is usual for a small corpus; an
    update takes about twice as long."""
    cutoff: Fraction = 0.05
    """Share of the tokens that SimCut cuts off."""
    r_drop: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of R-Drop (Liang et al. 2021): each batch runs twice with different dropout, and the divergence between
    both predictions is added to the loss. 5 is usual; an update takes about twice as long."""
    guided_alignment: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of guided alignment (Chen et al. 2016): the attention of one head learns the `alignments` of the training
    corpora, which makes those of translations better. 0.1 is usual, 0 disables it."""
    distillation: DistillationConfig | None = Field(default=None, title="Distillation")
    """Learn from the predictions of trained models, for example `{teacher: [runs/big], weight: 0.5}`."""
    minimum_risk: MinimumRiskConfig | None = Field(default=None, title="Minimum risk")
    """Lower the expected risk of the model's own translations, for example `{metric: chrf, samples: 8}`; to fine-tune a
    trained model, which `init` names. An update takes several times as long."""
    schedule: Literal["inverse_sqrt", "noam", "linear", "cosine", "constant"] = "inverse_sqrt"
    """Learning-rate decay after the linear warm-up; linear and cosine reach `min_learning_rate` at `max_steps`."""
    learning_rate: Rate = _dependent_default(
        0.001, lambda above: 2.0 if above.get("schedule") == "noam" else 0.001
    )
    """Peak learning rate, reached after the warm-up. For noam, the factor in front of its formula, by default 2.0."""
    warmup_steps: Count = 1000
    """Updates over which the learning rate rises linearly from 0 to its peak."""
    min_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0
    """Final learning rate of the linear and cosine schedules."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon (Jordan et al. 2024) for the matrices of the layers and AdamW for the rest, with the learning rate
    of AdamW (Liu et al. 2025). Muon's update costs as much time at any size of batch."""
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.98), strict=False)
    """Decay rates beta1 and beta2 of AdamW (Loshchilov and Hutter 2019)."""
    eps: Rate = 1e-8
    """Epsilon of AdamW, added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay, applied to matrices but not to biases, norms and embeddings."""
    decay_embeddings: bool = False
    """Apply weight decay to embeddings too, as the trainer of Hugging Face does."""
    freeze: tuple[str, ...] = Field(default=(), strict=False)
    """Parameters that are not trained, as patterns of their names: `encoder.*`, `*embedding*`. `mtkit check` counts
    them."""
    clip_norm: Rate | None = 1.0
    """Maximum gradient norm; larger gradients are scaled down to it. null disables clipping."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential moving average (EMA) of the weights, such as 0.999, which is then validated and saved
    for translation; null disables it."""
    lora: LoraConfig | None = Field(default=None, title="LoRA")
    """Train LoRA adapters instead of the weights, for example `{rank: 8, targets: [q, v]}`; requires `init`."""
    precision: choices.TrainPrecision = "auto"
    """Precision of activations and matrix products; auto is bf16 on devices that compute in it natively, else fp32.
    fp8 is bf16 with the layers' matrix products in 8-bit floating point (Micikevicius et al. 2022), on GPUs that have
    it. Weights stay in fp32."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, or one GPU such as cuda:1."""
    num_threads: Annotated[int, Field(gt=0, le=choices.MOST_THREADS)] | None = None
    """Number of CPU threads; by default PyTorch's choice, and at most the cores of a container's quota."""
    workers: PositiveOrAuto = "auto"
    """Processes that share the batches of an update on a CPU, each in a single thread; auto is as many as `num_threads`
    where batches are large enough and gradients fit in half of the free memory. A run that is resumed keeps its number.
    1 trains with threads alone."""
    compile: bool = False
    """Compile each kind of layer and the loss with torch.compile, once for batches of all lengths. Needs a C++ compiler
    for a CPU, or Triton and a C compiler for a GPU."""
    pack: bool = False
    """On an NVIDIA GPU since Ampere, in half precision, put the sentences of a micro-batch end to end instead of
    padding them; attention runs in a kernel for variable lengths."""
    deterministic: bool = False
    """On a GPU, use only algorithms that give the same result each time, bit for bit, as a CPU does anyway; some are
    slower."""
    activation_checkpointing: bool = False
    """Recompute the inside of each layer in the backward pass (Chen et al. 2016): less memory, about a third more
    time."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes, replicate the model (ddp) or shard weights and optimizer state (fsdp, for models too
    large for one GPU)."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """If the loss or gradient is not finite: stop, or roll back to the newest checkpoint and skip those pairs.
    Rollback also reacts to a loss spike, six standard deviations above the running mean."""
    log_every_steps: Positive = 50
    """Updates between progress lines and between records in metrics.jsonl."""
    save_every_steps: Positive | None = None
    """Updates between checkpoints; by default a checkpoint is saved at every validation."""
    keep_last: Positive = 2
    """Number of recent checkpoints to keep, besides the best one."""
    average_last: Annotated[int, Field(ge=2, lt=2**63)] | None = None
    """Write the average of this many last checkpoints (Vaswani et al. 2017, section 6.1) to `average/` at the end."""
    tensorboard: bool = False
    """Also write TensorBoard events; requires `pip install mtkit[tensorboard]`."""
    wandb: bool = False
    """Also write a record for Weights & Biases, in its offline mode: nothing is sent, `wandb sync` does that later.
    Requires `pip install mtkit[wandb]`."""
    report: bool = True
    """Write `report.html`, a page with curves, scores and samples, after validations and at the end."""

    @property
    def translation_precision(self) -> choices.Precision:
        """Precision in which the trained model translates: FP8 is for training only."""
        return "bf16" if self.precision == "fp8" else self.precision

    @property
    def batch_token_budget(self) -> int:
        """Maximum tokens of a batch: `batch_tokens`, or `update_tokens` if that is auto."""
        if self.batch_tokens != "auto":
            return self.batch_tokens
        assert self.update_tokens is not None, "auto requires update_tokens"
        return self.update_tokens

    @property
    def batches_per_update(self) -> int:
        """Batches per update over all processes: `accumulate`, or what comes closest to `update_tokens`."""
        if self.update_tokens is None:
            return self.accumulate
        return max(1, round(self.update_tokens / self.batch_token_budget))

    @property
    def step_limit(self) -> int | None:
        """Maximum number of updates, or None if only epochs or time limit the run.

        With a schedule that ends with the time limit, it is not known until updates are timed: `mtkit.training.preset`.
        """
        is_limited = self.max_epochs is not None or self.time_limit_minutes is not None
        if self.max_steps is None and (not is_limited or self.schedule in ("linear", "cosine")):
            return 100_000
        return self.max_steps

    @property
    def ends_with_time(self) -> bool:
        """Return whether the schedule ends when the time limit does: it decays, and no number of updates is set."""
        decays = self.schedule in ("linear", "cosine")
        sets_updates = self.max_steps is not None and "max_steps" in self.model_fields_set
        return self.time_limit_minutes is not None and decays and not sets_updates

    @property
    def num_checkpoints_kept(self) -> int:
        """Number of recent checkpoints to keep: enough for both `keep_last` and `average_last`."""
        return max(self.keep_last, self.average_last or 0)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.schedule in ("linear", "cosine"):
            if self.max_steps is None and self.max_epochs is not None and self.time_limit_minutes is None:
                raise ValueError(f"schedule {self.schedule} needs max_steps, where it ends")
            if self.step_limit is not None and self.warmup_steps >= self.step_limit:
                raise ValueError(
                    f"warmup_steps {self.warmup_steps} must be less than max_steps {self.step_limit}"
                )
        if self.simcut and self.r_drop:
            raise ValueError("give either simcut or r_drop, not both: each runs a batch twice")
        if self.lora is not None and self.freeze:
            raise ValueError("lora freezes all weights: leave out freeze")
        if self.optimizer == "muon" and self.lora is not None:
            raise ValueError("optimizer muon needs whole matrices: leave out lora, or use adamw")
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError("optimizer muon needs parallel ddp: with fsdp no process has a whole matrix")
        if self.lora is not None and self.average_last is not None:
            raise ValueError(
                "average_last cannot average the adapters of lora: their product is not linear in them"
            )
        if self.batch_tokens == "auto" and self.update_tokens is None:
            raise ValueError("batch_tokens auto needs update_tokens, the size of an update")
        if self.update_tokens is not None and self.accumulate != 1:
            raise ValueError("give either accumulate or update_tokens, not both")
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "parallel fsdp needs precision bf16 or fp32: with fp16 each rank would scale its loss differently"
            )
        if self.parallel == "fsdp" and self.precision == "fp8":
            raise ValueError(
                "parallel fsdp needs precision bf16 or fp32: FP8 matrices are cast from whole ones"
            )
        if self.parallel == "fsdp" and self.batch_tokens == "auto":
            raise ValueError(
                "batch_tokens auto needs parallel ddp: with fsdp a rank cannot run a trial batch alone"
            )
        if self.parallel == "fsdp" and self.minimum_risk is not None:
            raise ValueError(
                "minimum_risk needs parallel ddp: with fsdp no rank has a whole model to sample from"
            )
        if self.deterministic and self.minimum_risk is not None:
            raise ValueError(
                "minimum_risk cannot be deterministic: a GPU has no such algorithm to draw its samples with"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is greater than learning_rate {self.learning_rate:g}"
            )
        return self


class ValidationConfig(Section):
    """Validation during training, and the choice of the best checkpoint."""

    every_steps: Positive = 1000
    """Updates between validations; the last step is always validated."""
    metrics: tuple[Metric, ...] = Field(default=("bleu", "chrf"), strict=False)
    """Metrics for translations of the validation sets; an empty list measures loss and perplexity only."""
    bleu_tokenizer: BleuTokenizer | None = None
    """sacreBLEU's tokenizer for BLEU on validation and test sets; by default the target language's own, or 13a."""
    best: Criterion = "bleu"
    """Metric that chooses the best checkpoint; the lower loss breaks ties. By default bleu, or chrf for languages
    without spaces that no BLEU tokenizer segments; if it is not among `metrics`, the first of these, or the loss."""
    patience: Positive | None = None
    """Stop early after this many validations without a new best; null disables early stopping."""
    beam_size: Positive = 1
    """Beam size for translating validation sets; 1 is greedy. Sampling, groups and MBR of `decoding` do not apply."""
    max_sentences: Positive | None = None
    """Translate only this many sentences from the start of each validation set; the loss always covers all."""
    num_samples: Count = 2
    """Number of translations to print at each validation, and to keep in `samples.jsonl`."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> ValidationConfig:
        if "best" in self.model_fields_set and self.best not in ("loss", "perplexity", *self.metrics):
            raise ValueError(f"best is {self.best}, which is not in metrics")
        return self


class DecodingConfig(Section):
    """Search settings of the trained model; options of `mtkit translate` override them.

    Penalties and temperature are bounded so that scores of any length stay finite in float32.
    """

    beam_size: Positive = 5
    """Number of hypotheses kept per sentence at each step; 1 is greedy search."""
    length_penalty: Annotated[float, Field(ge=-5.0, le=5.0)] = 1.0
    """Exponent alpha of the length penalty: larger values favor longer translations, 0 disables it."""
    penalty_kind: Literal["gnmt", "simple"] = "gnmt"
    """gnmt: `((5 + length) / 6) ** alpha` (Wu et al. 2016, eq. 14); simple: `length ** alpha`."""
    coverage_penalty: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Weight beta of the coverage penalty (Wu et al. 2016, eq. 14); 0 disables it."""
    n_best: Positive = 1
    """Translations per line in the Python API, best first; on the command line use `--n-best`."""
    stop: Literal["finished", "unbeaten", "all_unbeaten", "certain"] = "unbeaten"
    """When the search for a sentence ends: once `beam_size` hypotheses have finished (finished), once the best of them
    also beats the best unfinished one (unbeaten), once all of them do (all_unbeaten), or once no unfinished one can win
    (certain)."""
    max_length_ratio: Annotated[float, Field(ge=0.0, le=1000.0)] = 2.0
    """Maximum length of a translation as a multiple of the source length; `max_length_extra` is added to it."""
    max_length_extra: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """Tokens added to the limit that `max_length_ratio` sets."""
    min_pieces: Count = 0
    """Minimum number of tokens in a translation."""
    no_repeat_ngram: Count = 0
    """Forbid repeating any n-gram of this many tokens in a translation (Paulus et al. 2018); 0 disables it."""
    avoid_loops: bool = True
    """Where the best translation has a phrase four times in a row, and the source has none, search again with no phrase
    of three tokens repeated."""
    suppress: tuple[str, ...] = Field(default=(), strict=False)
    """Strings whose tokens are never generated."""
    renormalize: bool = False
    """Scale the probabilities of the tokens that may be generated in beam search, so that they add up to 1;
    `mtkit score` does not."""
    groups: Positive = 1
    """Number of groups in diverse beam search (Vijayakumar et al. 2018); must divide `beam_size`. 1 is plain beam
    search."""
    diversity: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.5
    """Penalty for a token that an earlier group chose at the same step."""
    sample: bool = False
    """Sample `n_best` translations from the model instead of searching for the best."""
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """Sampling temperature: below 1 sharpens the distribution, above 1 flattens it."""
    top_k: Count = 0
    """Sample from the k most probable tokens only; 0 disables it."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the smallest set of tokens with this total probability (nucleus sampling); 1 disables it."""
    epsilon: Fraction = 0.0
    """Never sample tokens less probable than this (epsilon sampling, Hewitt et al. 2022); 0 disables it."""
    sample_seed: Count = 1
    """Random seed for sampling."""
    mbr: Metric | None = None
    """Minimum Bayes risk decoding: of `mbr_candidates` translations, return the one most similar to all others by this
    metric."""
    mbr_candidates: Annotated[int, Field(ge=2, lt=2**63)] = 32
    """Number of candidates for `mbr`: samples if `sample` is true, else hypotheses of a beam of that size."""
    shortlist: bool = True
    """Choose among the tokens of the model's shortlist (`mtkit shortlist`), if it has one, instead of all."""
    truecase: bool = True
    """Translate a line in capitals or title case in its usual case, word by word, and put its translation into the same
    case."""
    batch_tokens: Positive = 16384
    """Maximum batch size: source tokens times beam size, padding included. Lower it if memory runs out."""

    @model_validator(mode="after")
    def _n_best(self) -> DecodingConfig:
        if self.n_best > self.beam_size and not self.sample and self.mbr is None:
            raise ValueError(f"n_best {self.n_best} is greater than beam_size {self.beam_size}")
        if self.mbr is not None and self.n_best > self.mbr_candidates:
            raise ValueError(f"n_best {self.n_best} is greater than mbr_candidates {self.mbr_candidates}")
        if self.beam_size % self.groups:
            raise ValueError(f"beam_size {self.beam_size} is not a multiple of groups {self.groups}")
        return self

    @property
    def num_hypotheses(self) -> int:
        """Number of hypotheses per sentence that are decoded together."""
        if self.mbr is not None:
            return self.mbr_candidates
        return self.n_best if self.sample else self.beam_size

    @property
    def label(self) -> str:
        """Short description of the search for reports: `beam 5`, `samples`, `mbr chrf of 32 samples`."""
        if self.mbr is not None:
            kind = "samples" if self.sample else "hypotheses"
            return f"mbr {self.mbr} of {self.mbr_candidates} {kind}"
        return "samples" if self.sample else f"beam {self.beam_size}"

    def max_length(self, num_source_tokens: int) -> int:
        """Return the maximum length of a translation in tokens, eos included."""
        return int(self.max_length_ratio * num_source_tokens) + self.max_length_extra + 1


_VALIDATION_SEARCH_KEYS = (
    "length_penalty", "penalty_kind", "coverage_penalty", "stop", "max_length_ratio", "max_length_extra",
    "min_pieces", "no_repeat_ngram", "suppress", "renormalize", "truecase", "batch_tokens",
)  # fmt: skip
"""Keys of `decoding` that validation uses too. Its beam size is its own, and it never samples, uses groups or MBR, so
that the choice of the best checkpoint depends on the weights and not on chance."""


class Config(Section):
    """One training run, from sentence pairs to a scored translator."""

    run: Annotated[str, AfterValidator(_expand_home)] = Field(min_length=1)
    """Run folder for everything that training writes; self-contained, so it can be moved."""
    seed: Count = 1
    """Random seed for initial weights, batch order and dropout."""
    preset: Literal["auto", PresetName] | None = None
    """Values for the keys that are not set, with a model of this size: tiny, small, base, big, or student (for the
    translations of a larger model). auto chooses by the number of training pairs and the machine, and is the default of
    a file that has none of tokenizer, model, training and init."""
    init: Annotated[str, AfterValidator(_expand_home)] | None = Field(default=None, min_length=1)
    """Model to fine-tune: a run or model folder, or a name on the Hugging Face hub, `Helsinki-NLP/opus-mt-en-fr`.
    Weights, `tokenizer`, `model` and what is not set of `decoding` come from it; dropout may be set anew."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = Field(default=ValidationConfig(), validate_default=True)
    decoding: DecodingConfig = DecodingConfig()

    @field_validator("validation")
    @classmethod
    def _best_by_language(cls, validation: ValidationConfig, info: ValidationInfo) -> ValidationConfig:
        """Resolve the default of `best`, which depends on `data.tgt`."""
        data: DataConfig | None = info.data.get("data")  # None if invalid, which has its own error
        if data is None or "best" in validation.model_fields_set:
            return validation
        has_words = validation.bleu_tokenizer is not None or bleu_can_tokenize(data.tgt)
        usual = [*(["bleu"] if has_words else []), "chrf", *validation.metrics]
        best = next((metric for metric in usual if metric in validation.metrics), "loss")
        values = dict(validation) | {"best": best}  # a default, so it does not count as set
        return ValidationConfig.model_construct(_fields_set=validation.model_fields_set, **values)

    @model_validator(mode="after")
    def _positions(self) -> Config:
        needed = self.data.max_length + 1
        if self.model.positions == "learned" and self.model.max_positions < needed:
            have = self.model.max_positions
            raise ValueError(f"model.max_positions {have} is less than data.max_length + 1 = {needed}")
        return self

    @model_validator(mode="after")
    def _packing(self) -> Config:
        """Check that nothing needs padded sentences."""
        training, model = self.training, self.model
        reasons = {
            "model.positions relative": model.positions == "relative",
            "model.num_kv_heads": model.kv_heads != model.heads,
            "training.guided_alignment": training.guided_alignment,
            "training.distillation": training.distillation,
            "training.minimum_risk": training.minimum_risk,
        }
        for reason in (reason for reason, needs_padding in reasons.items() if needs_padding):
            if training.pack:
                raise ValueError(f"{reason} needs padded sentences: leave it or training.pack out")
        return self

    @model_validator(mode="after")
    def _alignment_layer(self) -> Config:
        layer, num_layers = self.model.alignment_layer, self.model.decoder_layers
        # With `init`, what is not set comes from the initial model.
        is_known = self.init is None or "decoder_layers" in self.model.model_fields_set
        if layer is not None and is_known and layer > num_layers:
            raise ValueError(
                f"model.alignment_layer {layer} is greater than model.decoder_layers {num_layers}"
            )
        return self

    @model_validator(mode="after")
    def _guided_alignment(self) -> Config:
        """Check that there are alignments to learn, and resolve the default of `model.alignment_layer`."""
        if not self.training.guided_alignment:
            return self
        if not any(source.alignments for source in self.data.train):
            raise ValueError("training.guided_alignment needs alignments of a corpus in data.train")
        if self.data.reverse:
            raise ValueError(
                "data.reverse exchanges sides that are aligned: leave it or training.guided_alignment out"
            )
        if self.tokenizer.sampling_alpha or self.tokenizer.bpe_dropout or self.augment.is_on:
            what = "tokenizer.sampling_alpha, tokenizer.bpe_dropout and augment change the tokens that are aligned"
            raise ValueError(f"{what}: leave them out, or training.guided_alignment")
        if self.model.alignment_layer is not None:
            return self
        values = dict(self.model) | {"alignment_layer": max(1, self.model.decoder_layers - 1)}
        model = ModelConfig.model_construct(_fields_set=self.model.model_fields_set, **values)
        return self.model_copy(update={"model": model})

    @model_validator(mode="after")
    def _adapters(self) -> Config:
        if self.training.lora is not None and self.init is None:
            raise ValueError("training.lora needs init, the model that it adapts")
        if self.tokenizer.add_tokens and self.init is None:
            raise ValueError("tokenizer.add_tokens needs init; a new tokenizer has tokenizer.user_symbols")
        if self.tokenizer.add_tokens and self.training.lora is not None:
            raise ValueError("tokenizer.add_tokens needs trained embeddings, but training.lora freezes them")
        return self

    @property
    def fits_to_epochs(self) -> bool:
        """Return whether a preset has the updates of `training.max_epochs`, which are counted when a run begins."""
        sets_updates = "max_steps" in self.training.model_fields_set
        return self.preset is not None and self.training.max_epochs is not None and not sets_updates

    @property
    def trains_tokenizer(self) -> bool:
        """Return whether the tokenizer is neither an existing one nor that of another model."""
        return self.init is None and self.tokenizer.model is None and self.tokenizer.src_model is None

    @model_validator(mode="after")
    def _sampling(self) -> Config:
        if self.trains_tokenizer and self.tokenizer.sampling_alpha and self.tokenizer.type != "unigram":
            raise ValueError(
                "tokenizer.sampling_alpha needs tokenizer.type unigram; for bpe, set bpe_dropout"
            )
        if self.trains_tokenizer and self.tokenizer.bpe_dropout and self.tokenizer.type != "bpe":
            raise ValueError(
                "tokenizer.bpe_dropout needs tokenizer.type bpe; for unigram, set sampling_alpha"
            )
        is_on = self.tokenizer.sampling_alpha or self.tokenizer.bpe_dropout
        # With `init`, what is not set comes from the initial model.
        is_known = self.init is None or {"sampling_alpha", "bpe_dropout"} <= self.tokenizer.model_fields_set
        if self.tokenizer.sampling_sides != "both" and is_known and not is_on:
            sides = self.tokenizer.sampling_sides
            raise ValueError(f"tokenizer.sampling_sides {sides} needs sampling_alpha or bpe_dropout")
        return self

    @model_validator(mode="after")
    def _tags(self) -> Config:
        for key, tag in self.data.tags.items():
            if self.trains_tokenizer and tag not in self.tokenizer.user_symbols:
                raise ValueError(f"{key} is {tag!r}, which is not in tokenizer.user_symbols")
        return self

    @model_validator(mode="after")
    def _tying(self) -> Config:
        joint = self.tokenizer.src_model is None and self.tokenizer.joint
        if self.data.reverse and self.init is None and not joint:
            raise ValueError("data.reverse needs a joint tokenizer, for each side is source and target")
        if self.model.tie_embeddings == "three-way" and not joint:
            raise ValueError("model.tie_embeddings three-way needs a joint tokenizer")
        return self

    @property
    def validation_decoding(self) -> DecodingConfig:
        """Search settings of validation: penalties and limits of `decoding`, with `validation.beam_size`."""
        shared = self.decoding.model_dump(include=set(_VALIDATION_SEARCH_KEYS))
        plain = {"beam_size": self.validation.beam_size, "avoid_loops": False}
        return DecodingConfig.model_validate(shared | plain)


@cache
def describe_keys() -> None:
    """Make the string under each key its description, for the schema and for hints.

    Pydantic does so with `use_attribute_docstrings`, but whenever this module is imported, for 30 ms.
    """
    module = sys.modules[__name__]
    sections = {section.__name__: section for section in Section.__subclasses__()}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef) or node.name not in sections:
            continue
        for key, text in pairwise(node.body):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(description))
                ):
                    sections[node.name].model_fields[name].description = inspect.cleandoc(description)
    for section in sections.values():
        section.model_rebuild(force=True)
