"""Helpers of the tests of imported models: lines of many scripts, random weights, and their models in our search."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkit.data.tokenizer import Tokenizers
from mtkit.demo.generator import generate
from mtkit.errors import ConfigError, MtkitError, StorageError
from mtkit.interop.formats import FORMATS
from mtkit.interop.importing import ImportOptions, import_model
from mtkit.model.transformer import Transformer
from mtkit.translation.translator import Translator

SCRIPTS = {
    "Latin": (0x61, 0x7A), "accents": (0xC0, 0x17E), "Greek": (0x3B1, 0x3C9), "Cyrillic": (0x430, 0x44F),
    "Armenian": (0x561, 0x586), "Hebrew": (0x5D0, 0x5EA), "Arabic": (0x620, 0x64A), "Devanagari": (0x905, 0x939),
    "Bengali": (0x985, 0x9B9), "Tamil": (0xB85, 0xBB9), "Thai": (0xE01, 0xE30), "Georgian": (0x10D0, 0x10F0),
    "Ethiopic": (0x1200, 0x1248), "hiragana": (0x3041, 0x3096), "katakana": (0x30A1, 0x30FA), "Han": (0x4E00, 0x4FFF),
    "Hangul": (0xAC00, 0xAD00), "emoji": (0x1F600, 0x1F64F), "Gothic": (0x10330, 0x1034A),
}  # fmt: skip
MARKS = [
    ".",
    ",",
    "!",
    "?",
    ":",
    ";",
    "'",
    '"',
    "(",
    ")",
    "[",
    "]",
    "&",
    "<",
    ">",
    "|",
    "%",
    "3.5",
    "1,000",
    "it's",
]


def lines_of_many_scripts(number: int, seed: int = 1) -> list[str]:
    """Return lines without leading, trailing or double spaces; a third of them are of the demo's English."""
    rng = random.Random(seed)
    english = [src for src, _ in generate("en-de", number, 3, "test")]

    def word() -> str:
        if rng.random() < 0.15:
            return rng.choice(MARKS)
        low, high = SCRIPTS[rng.choice(list(SCRIPTS))]
        text = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 7)))
        return rng.choice([text, text.capitalize(), text + rng.choice(MARKS)])

    return [
        english[i] if i % 3 == 0 else " ".join(word() for _ in range(rng.randint(1, 12)))
        for i in range(number)
    ]


def sentences(number: int, beginnings: Sequence[str]) -> list[str]:
    """Return sentences of the demo's English; one in nine begins with one of these strings."""
    rng = random.Random(5)
    lines = [src for src, _ in generate("en-de", number, 3, "test")]
    for line in range(0, number, 9):
        lines[line] = rng.choice(beginnings) + lines[line]
    return lines


class Bomb:
    """Opens a file to write when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return (open, (self.marker, "w"))


def check_refused(source: Path, output: Path, message: str, options: ImportOptions) -> None:
    """Import a model, and check the message and that nothing is written."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(MtkitError) as caught:
        import_model(str(source), output, FORMATS, options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError | StorageError)
    assert sorted(output.parent.iterdir()) == before


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give all parameters random values, so that none is what a new model has anyway."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.2)


def with_value(settings: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return a copy of nested settings with another value at a key such as `model.layers`."""
    changed = copy.deepcopy(settings)
    *sections, name = key.split(".")
    functools.reduce(lambda found, section: found.setdefault(section, {}), sections, changed)[name] = value
    return changed


def check_computes_the_same(
    tokenizers: Tokenizers,
    model: Transformer,
    their_memory: Callable[[Tensor], Tensor],
    their_logits: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Check that an imported model has the encoder states and the logits of the other toolkit's.

    Args:
        tokenizers: tokenizers of the imported model.
        model: the imported model.
        their_memory: returns their encoder states of source sentences [N, S].
        their_logits: returns their logits of source sentences [N, S] and targets [N, T].
    """
    model.eval()
    pad = tokenizers.src.pad
    src = padded([ids.tolist() for ids in tokenizers.src.encode(lines_of_many_scripts(40))], pad)
    torch.manual_seed(1)
    tgt = torch.randint(2, tokenizers.tgt.vocab_size, (len(src), 9))
    with torch.no_grad():
        memory = model.encode(src)
        torch.testing.assert_close(memory[src != pad], their_memory(src)[src != pad], atol=1e-4, rtol=1e-4)
        logits = model.logits(model.decode(tgt, memory, model.source_mask(src)))
        torch.testing.assert_close(logits, their_logits(src, tgt), atol=1e-4, rtol=1e-4)


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return rows of ids as a tensor."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


class WholeSequences:
    """Another toolkit's model as a step function of our search (see `mtkit.search.state.Stepper`).

    Args:
        logits: returns the logits [N, V] of the next token, given source sentences [N, S] and targets so far [N, T].
        src_BS: the sources.
        vocab_size: V.
    """

    def __init__(self, logits: Callable[[Tensor, Tensor], Tensor], src_BS: Tensor, vocab_size: int) -> None:
        self.next_logits, self.src_BS, self.vocab_size = logits, src_BS, vocab_size
        self.tokens_BKT = torch.empty(len(src_BS), 1, 0, dtype=torch.long)

    def step(self, tokens_BK: Tensor) -> Tensor:
        B, K = tokens_BK.shape
        if self.tokens_BKT.shape[1] != K:
            self.tokens_BKT = self.tokens_BKT[:, :1].expand(B, K, -1)
        self.tokens_BKT = torch.cat([self.tokens_BKT, tokens_BK[:, :, None]], dim=2)
        logits = self.next_logits(self.src_BS.repeat_interleave(K, dim=0), self.tokens_BKT.flatten(0, 1))
        return logits.view(B, K, -1)

    def logits(self, hidden_BKD: Tensor, first: int = 0) -> Tensor:
        return hidden_BKD.clone()

    def reorder(self, parents_BK: Tensor) -> None:
        index = parents_BK[:, :, None].expand(-1, -1, self.tokens_BKT.shape[2])
        self.tokens_BKT = self.tokens_BKT.gather(1, index)

    def keep_rows(self, rows_B: Tensor) -> None:
        self.tokens_BKT, self.src_BS = self.tokens_BKT[rows_B], self.src_BS[rows_B]

    def attention(self) -> Tensor:
        raise NotImplementedError


def translations_with(
    monkeypatch: pytest.MonkeyPatch,
    translator: Translator,
    lines: Sequence[str],
    logits: Callable[[Tensor, Tensor], Tensor],
) -> list[str]:
    """Translate with another toolkit's model in place of the translator's own, by the same search."""
    size = translator.tokenizers.tgt.vocab_size

    def stepper(src_BS: Tensor, keep_attention: bool = False, vocabulary: None = None) -> Any:
        return WholeSequences(logits, src_BS, size)

    with monkeypatch.context() as patch:
        patch.setattr(translator.ensemble, "stepper", stepper)
        return [translation.text for translation in translator.translate(lines)]
