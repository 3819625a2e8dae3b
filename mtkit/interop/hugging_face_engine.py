"""Runs models in Hugging Face's `transformers`: for the proof of an export, and to compare speeds.

Only this module needs the package: `pip install transformers`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.config.sections import DecodingConfig, ModelConfig
from mtkit.data.batching import Ids, collate_tokens
from mtkit.data.tokenizer import Tokenizers
from mtkit.interop.exporting import DTYPES, LoadedModel, search_of_engines
from mtkit.interop.hugging_face_export import check_tokenizers, choose_class, convert, write_folder
from mtkit.interop.proof import EngineTokenizer
from mtkit.model.transformer import Transformer
from mtkit.packages import import_package
from mtkit.search.state import Hypothesis
from mtkit.translation.alignment import SegmentAttention
from mtkit.translation.batched_search import search_options
from mtkit.translation.engine import Engine, Search, search_in_batches
from mtkit.translation.options import PARALLEL, Parallelism
from mtkit.translation.segments import Segment

_BATCH_TOKENS = 4096


def import_transformers() -> Any:
    """Import and return the package, set to print errors only.

    Raises:
        ConfigError: If it is not installed, or cannot be loaded.
    """
    transformers = import_package("transformers", "pip install transformers", where="`against`")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def hugging_face_model(config: ModelConfig, model: Transformer, tokenizers: Tokenizers, longest: int) -> Any:
    """Return a model of Hugging Face with the weights of a model of mtkit; the arguments are those of `convert`.

    Raises:
        ConfigError: If the package is not installed, or no class supports the architecture.
    """
    transformers = import_transformers()
    converted = convert(config, model, tokenizers, longest)
    settings = transformers.AutoConfig.for_model(**converted.config)
    hf_model = transformers.AutoModelForSeq2SeqLM.from_config(settings).eval()
    missing, unexpected = hf_model.load_state_dict(dict(converted.weights), strict=False)
    tied = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight", "shared.weight")
    assert not unexpected and all(name.endswith(tied) for name in missing), (missing, unexpected)
    hf_model.tie_weights()
    return hf_model


@torch.inference_mode()
def generate(
    hf_model: Any,
    src_BS: Tensor,
    tokenizers: Tokenizers,
    *,
    beam_size: int,
    length_penalty: float,
    max_tokens: int,
    suppressed: Sequence[int],
    early_stopping: bool | str = True,
    no_repeat_ngram: int = 0,
    min_tokens: int = 0,
) -> list[list[int]]:
    """Return the best hypothesis of each sentence by Hugging Face's `generate`, without bos.

    Args:
        hf_model: model of Hugging Face.
        src_BS: padded sources that end with eos.
        tokenizers: tokenizers of both sides.
        beam_size: beam size.
        length_penalty: exponent alpha of the simple length penalty, length ** alpha.
        max_tokens: most tokens of a hypothesis, eos included; one that reaches it may lack eos.
        suppressed: token ids that are never generated.
        early_stopping: True is mtkit's `stop: finished`, "never" its `certain`.
        no_repeat_ngram: length of n-grams that may not repeat; 0 disables the rule.
        min_tokens: least tokens of a hypothesis.
    """
    tgt = tokenizers.tgt
    found = hf_model.generate(
        input_ids=src_BS, attention_mask=(src_BS != tokenizers.src.pad).long(), num_beams=beam_size, do_sample=False,
        length_penalty=length_penalty, early_stopping=early_stopping if beam_size > 1 else False,
        max_new_tokens=max_tokens, max_length=None,
        suppress_tokens=list(suppressed),
        no_repeat_ngram_size=no_repeat_ngram, min_new_tokens=min_tokens,
    )  # fmt: skip
    rows = (row[1:] for row in found.tolist())
    return [row[: row.index(tgt.eos) + 1] if tgt.eos in row else row for row in rows]


class HuggingFaceExporter:
    """Writes folders for `AutoModelForSeq2SeqLM` and `AutoTokenizer`."""

    name = "Hugging Face"
    types: tuple[str, ...] = tuple(DTYPES)

    def check(self, model: LoadedModel) -> None:
        choose_class(model.config.model, model.network)
        check_tokenizers(model.tokenizers)

    def write(self, model: LoadedModel, folder: Path, type_: str) -> None:
        converted = convert(model.config.model, model.network, model.tokenizers, model.longest)
        config = model.config.model_copy(update={"decoding": self.search(model.config.decoding)})
        write_folder(converted, config, model.tokenizers, folder, type_)

    def search(self, decoding: DecodingConfig) -> DecodingConfig:
        return search_of_engines(decoding).model_copy(update={"coverage_penalty": 0.0})

    def tokenizer(self, folder: Path) -> EngineTokenizer:
        return _Tokenizer(folder)

    def computed_in(self, type_: str) -> str:
        return type_

    def unproven(self) -> str | None:
        if importlib.util.find_spec("transformers") is None:
            return "transformers is not installed; `pip install transformers`, then export again"
        return None

    def engine(self, model: LoadedModel, folder: Path, type_: str, decoding: DecodingConfig) -> Engine:
        loaded = import_transformers().AutoModelForSeq2SeqLM.from_pretrained(
            str(folder), local_files_only=True, dtype=DTYPES[type_], attn_implementation="eager"
        )
        return _HuggingFaceEngine(loaded.eval(), model.tokenizers, decoding)


class _Tokenizer:
    """The tokenizer in an exported folder; see `EngineTokenizer`."""

    def __init__(self, folder: Path) -> None:
        self.theirs = import_transformers().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.theirs(list(lines))["input_ids"]
        return ids

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self.theirs.batch_decode(list(sequences), skip_special_tokens=True)
        return texts


class _HuggingFaceEngine:
    """A loaded model of Hugging Face in the place of mtkit's search; see `Engine`."""

    def __init__(self, hf_model: Any, tokenizers: Tokenizers, decoding: DecodingConfig) -> None:
        self.hf_model, self.tokenizers, self.decoding = hf_model, tokenizers, decoding
        self.options = search_options(decoding, tokenizers.tgt)

    def start_search(
        self,
        segments: Sequence[Segment],
        on_batch: Callable[[list[Segment]], None] | None = None,
        parallelism: Parallelism = PARALLEL,
    ) -> Search:
        """There is one hypothesis without a score, cut to its length limit."""
        return Search(partial(search_in_batches, segments, _BATCH_TOKENS, self._search_batch, on_batch))

    def _search_batch(self, segments: list[Segment]) -> list[list[Hypothesis]]:
        """Return the hypothesis of each segment of a batch."""
        src, tgt, decoding = self.tokenizers.src, self.tokenizers.tgt, self.decoding
        rows = generate(
            self.hf_model,
            torch.from_numpy(collate_tokens([segment.ids for segment in segments], src.pad, eos=src.eos)),
            self.tokenizers,
            beam_size=decoding.beam_size,
            length_penalty=decoding.length_penalty,
            max_tokens=max(segment.max_length for segment in segments),
            suppressed=self.options.suppressed,
            no_repeat_ngram=decoding.no_repeat_ngram,
            min_tokens=decoding.min_pieces,
        )
        found = []
        for segment, row in zip(segments, rows, strict=True):
            ids = row[:-1] if row and row[-1] == tgt.eos else row
            found.append([Hypothesis(ids[: segment.max_length - 1], 0.0, 0.0)])
        return found

    @torch.inference_mode()
    def align(
        self, pairs: Sequence[tuple[Ids, Ids]], parallelism: Parallelism = PARALLEL
    ) -> Iterator[tuple[int, SegmentAttention]]:
        src, tgt = self.tokenizers.src, self.tokenizers.tgt
        for index, (src_ids, tgt_ids) in enumerate(pairs):
            output = self.hf_model(
                input_ids=torch.tensor([[*src_ids.tolist(), src.eos]]),
                decoder_input_ids=torch.tensor([[tgt.bos, *tgt_ids.tolist()]]),
                output_attentions=True,
            )
            weights = torch.stack([layer[0].float().mean(dim=0) for layer in output.cross_attentions])
            pieces = tuple(map(src.piece, src_ids.tolist())), tuple(map(tgt.piece, tgt_ids.tolist()))
            yield index, SegmentAttention(*pieces, weights.numpy())
