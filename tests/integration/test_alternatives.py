"""Next words after a prefix, against the sum over everything that could follow."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import tiny
import torch

from mtkit.errors import DataError
from mtkit.translation import next_words as alternatives
from mtkit.translation.next_words import next_words
from mtkit.translation.segments import Request
from mtkit.translation.translator import Translator
from mtkit.translation.word_boundaries import tokens_after_word

VOCAB, EOS, FORBIDDEN = 7, 1, 0
FOLLOWERS = frozenset({2, 3})
LONGEST = 4


def log_probs_of(seed: int, ids: tuple[int, ...]) -> torch.Tensor:
    """Return a distribution for each prefix, drawn from its hash."""
    rng = random.Random(f"{seed} {ids}")
    return torch.tensor([rng.gauss(0, 2) for _ in range(VOCAB)], dtype=torch.float64).log_softmax(0)


def every_word(seed: int, at_boundary: bool) -> dict[tuple[int, ...], float]:
    """Return the probability of each possible word of at most `LONGEST` tokens, one by one."""
    ends = [*FOLLOWERS, EOS]
    first = log_probs_of(seed, ()).exp()
    whole = float(first[ends].sum()) if at_boundary else 1.0
    words = {(): float(first[EOS]) / whole}
    inner = sorted(set(range(VOCAB)) - FOLLOWERS - {EOS, FORBIDDEN})
    begins = sorted(FOLLOWERS) if at_boundary else sorted(FOLLOWERS) + inner
    for length in range(LONGEST):
        for ids in itertools.product(begins, *[inner] * length):
            probability = 1.0 / whole
            for place, piece in enumerate(ids):
                probability *= float(log_probs_of(seed, ids[:place])[piece].exp())
            words[ids] = probability * float(log_probs_of(seed, ids)[ends].exp().sum())
    return words


@pytest.mark.parametrize("at_boundary", [True, False])
@pytest.mark.parametrize("number", [1, 4, 1000])
@pytest.mark.parametrize("seed", range(10))
def test_the_most_probable_of_all_words(
    seed: int, number: int, at_boundary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "MAX_TOKENS", LONGEST)
    monkeypatch.setattr(alternatives, "EXPANDED_TOGETHER", 3)
    found = next_words(
        lambda words: torch.stack([log_probs_of(seed, ids) for ids in words]),
        FOLLOWERS, EOS, frozenset({FORBIDDEN}), number, at_boundary,
    )  # fmt: skip
    wanted = sorted(every_word(seed, at_boundary).items(), key=lambda item: -item[1])[:number]
    assert [word.ids for word in found] == [ids for ids, _ in wanted]
    probabilities = torch.tensor([word.log_prob for word in found]).exp()
    torch.testing.assert_close(probabilities, torch.tensor([p for _, p in wanted]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_words_whose_pieces_are_marked_at_their_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of subword-nmt: whatever follows a piece without the mark begins a word."""
    monkeypatch.setattr(alternatives, "MAX_TOKENS", LONGEST)
    inside = frozenset({3, 4})
    whole = [i for i in range(len(log_probs_of(seed, ()))) if i not in {*inside, EOS, FORBIDDEN}]
    wanted = {(): float(log_probs_of(seed, ())[EOS])}
    for length in range(LONGEST):
        for ids in itertools.product(*[inside] * length, whole):
            wanted[ids] = sum(
                float(log_probs_of(seed, ids[:place])[piece]) for place, piece in enumerate(ids)
            )
    found = next_words(
        lambda words: torch.stack([log_probs_of(seed, ids) for ids in words]),
        frozenset(range(len(log_probs_of(seed, ())))), EOS, frozenset({FORBIDDEN}), 6, True, inside,
    )  # fmt: skip
    best = sorted(wanted.items(), key=lambda item: -item[1])[:6]
    assert [word.ids for word in found] == [ids for ids, _ in best]


def test_alternatives_of_a_model(trained: Path) -> None:
    """Each alternative continues with its word; its probability is the model's, the continuation that of the search."""
    translator = Translator.load(trained, device="cpu", precision="fp32")
    tgt = translator.tokenizers.tgt
    line, prefix = "the small dog sees a cat .", "le chien"
    [found] = translator.alternatives([Request(line, prefix)], 4)
    assert len(found) == 4
    assert [a.probability for a in found] == sorted((a.probability for a in found), reverse=True)
    assert sum(a.probability for a in found) <= 1 + 1e-6
    best = next(translator.translate([Request(line, prefix)]))
    assert best.text in [a.text for a in found]
    for a in found:
        assert f"{a.text} ".startswith(f"{prefix} {a.word} ".replace("  ", " "))
        beginning = tgt.encode([f"{prefix} {a.word}".strip()])[0].tolist()
        num_prefix = len(tgt.encode([prefix])[0])
        src_BS = translator.ensemble.sources(translator.tokenizers.src.encode([line]))
        hidden = translator.ensemble.hidden(src_BS, torch.tensor([[tgt.bos, *beginning]]))
        probs_TV = translator.ensemble.log_probs(hidden)[0].exp()
        boundary = [*tokens_after_word(tgt), tgt.eos]
        wanted = 1 / float(probs_TV[num_prefix, boundary].sum())
        for place, piece in enumerate(beginning[num_prefix:], num_prefix):
            wanted *= float(probs_TV[place, piece])
        last = probs_TV[len(beginning)]
        wanted *= float(last[boundary].sum()) if a.word else float(last[tgt.eos])
        assert a.probability == pytest.approx(wanted, rel=1e-3)


def test_no_prefix_and_no_text(trained: Path) -> None:
    translator = Translator.load(trained, device="cpu", precision="fp32")
    found = list(translator.alternatives(["the small dog sees a cat .", "", "my bird hears this king ."], 3))
    assert [len(alternatives) for alternatives in found] == [3, 0, 3]
    with pytest.raises(DataError, match="line 1"):
        list(translator.alternatives([Request("a cat", "le chien " * 500)], 3))


def test_alternatives_from_the_command_line(trained: Path, tmp_path: Path) -> None:
    prefixes = tmp_path / "prefixes.txt"
    prefixes.write_text("le\nmon\n", encoding="utf-8")
    code, out, err = tiny.mtkit(
        "translate", trained, "-q", "--precision", "fp32", "--alternatives", 2, "--prefix", prefixes,
        stdin="the small dog sees a cat .\nmy bird hears this king .\n",
    )  # fmt: skip
    assert (code, err) == (0, "")
    rows = [line.split(" ||| ") for line in out.removesuffix("\n").split("\n")]
    assert [row[0] for row in rows] == ["1", "1", "2", "2"]
    assert all(
        row[3].startswith(f"{prefix} {row[1]}")
        for row, prefix in zip(rows, ["le", "le", "mon", "mon"], strict=True)
    )
    assert rows[2][1] == "oiseau"
    code, out, err = tiny.mtkit("translate", trained, "-q", "--alternatives", 2, "--sample", stdin="a\n")
    assert (code, out) == (2, "") and "--sample" in tiny.one_line(err)
