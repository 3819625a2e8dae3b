"""Comparisons of systems equal those of the `sacrebleu` command to the last digit.

The command's main function runs in this process. Its systems are references with deterministic mistakes.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_metrics import HYPS, MORE_REFS, REFS, write

from mtkit.errors import ConfigError, DataError
from mtkit.evaluation.external_metrics import ExternalScore
from mtkit.evaluation.metrics import METRICS, score, score_sentences
from mtkit.evaluation.pairing import looks_mispaired
from mtkit.evaluation.segment_means import score_means
from mtkit.evaluation.significance import compare, paired_difference

FIRST = [*REFS, *MORE_REFS, *HYPS[:3]]
SECOND = [*MORE_REFS, *REFS, *REFS[:3]]
CHINESE = [
    "一个男人骑自行车。",
    "两只狗在雪地里玩。",
    "孩子笑了!",
    "一位老人在公园看报。",
    "她今天煮了汤。",
    "男孩跳进水里。",
]


def with_mistakes(lines: Sequence[str], seed: int) -> list[str]:
    """Return sentences in which words, or characters of a text without spaces, are missing, doubled or swapped."""
    rng = random.Random(seed)

    def spoil(line: str) -> str:
        mark = " " if " " in line else ""
        words = line.split(" ") if mark else list(line)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(words))
            words[at : at + 2] = rng.choice([[], words[at : at + 2][::-1], [words[at]] * 2])
            words = words or ["nichts"]
        return mark.join(words)

    return [spoil(line) for line in lines]


GERMAN = [with_mistakes(FIRST, seed) for seed in range(4)]
ASIAN = [with_mistakes(CHINESE, seed) for seed in range(3)]


@pytest.fixture
def sacrebleu_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that calls the command's main function and returns what it prints."""
    import sacrebleu.sacrebleu
    import sacrebleu.utils

    class Stream:
        """A stream of which the command takes the file descriptor, to open a file of its own on it."""

        def __init__(self, path: Path | str, flags: int) -> None:
            self.path, self.flags = path, flags

        def fileno(self) -> int:
            return os.open(self.path, self.flags)

    def call(*arguments: object, seed: int | None = None) -> str:
        out = tmp_path / "out"
        out.write_bytes(b"")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["sacrebleu", "--quiet", "--no-color", *map(str, arguments)])
            patch.setattr(sys, "stdin", Stream(os.devnull, os.O_RDONLY))
            patch.setattr(sys, "stdout", Stream(out, os.O_WRONLY))
            # sacreBLEU 2.6 fails to print the mean of chrF as JSON: it is a float32.
            patch.setattr(sacrebleu.utils.json, "dumps", partial(json.dumps, default=float))
            patch.delenv("SACREBLEU_FORMAT", raising=False)
            patch.delenv("SACREBLEU_SEED", raising=False)
            if seed is not None:
                patch.setenv("SACREBLEU_SEED", str(seed))
            with suppress(SystemExit):  # after the scores of sentences
                sacrebleu.sacrebleu.main()
            sys.stdout.close()
        return out.read_text("utf-8")

    return call


def files(folder: Path, prefix: str, streams: Sequence[Sequence[str]]) -> list[str]:
    return [write(folder / f"{prefix}{number}", list(lines)) for number, lines in enumerate(streams)]


OPTIONS: dict[str, list[str]] = {
    "bleu": ["-m", "bleu"],
    "chrf": ["-m", "chrf"],
    "chrf++": ["-m", "chrf", "--chrf-word-order", "2"],
    "ter": ["-m", "ter"],
}
ONE, TWO = [FIRST], [FIRST, SECOND]
BS, AR = ("bs", {"num_bootstrap": 40}), ("ar", {"num_bootstrap": 0, "num_trials": 60})

CASES: list[tuple[str, list[list[str]], list[list[str]], tuple[str, dict[str, int]], dict[str, Any]]] = [
    ("bleu", GERMAN[:2], ONE, BS, {}),
    ("bleu", GERMAN[:3], TWO, BS, {}),
    ("bleu", GERMAN, TWO, AR, {}),
    ("bleu", GERMAN[1:], ONE, AR, {"seed": 7}),
    ("bleu", GERMAN[:2], ONE, BS, {"lowercase": True}),
    ("bleu", GERMAN[:2], ONE, AR, {"lowercase": True, "seed": 2}),
    ("bleu", GERMAN[:2], TWO, BS, {"tokenize": "intl"}),
    ("bleu", GERMAN[:3], ONE, AR, {"tokenize": "intl"}),
    ("bleu", GERMAN[:2], ONE, BS, {"tokenize": "char", "seed": 99}),
    ("bleu", GERMAN[:2], TWO, AR, {"tokenize": "char"}),
    ("bleu", ASIAN, [CHINESE], BS, {"tokenize": "zh"}),
    ("bleu", ASIAN, [CHINESE], AR, {"tokenize": "zh"}),
    ("bleu", [GERMAN[0], GERMAN[0], FIRST], ONE, BS, {}),
    ("chrf", GERMAN[:2], ONE, BS, {}),
    ("chrf", GERMAN, TWO, AR, {"seed": 1}),
    ("chrf", GERMAN[:2], TWO, BS, {"lowercase": True}),
    ("chrf", ASIAN[:2], [CHINESE], AR, {}),
    ("chrf++", GERMAN[:3], TWO, BS, {}),
    ("chrf++", GERMAN[:2], ONE, AR, {}),
    ("chrf++", GERMAN[:2], ONE, BS, {"lowercase": True, "seed": 3}),
    ("ter", GERMAN[:2], ONE, BS, {}),
    ("ter", GERMAN[:3], TWO, AR, {}),
    ("ter", GERMAN[:2], TWO, BS, {"seed": 4}),
    ("bleu", GERMAN[:2], ONE, ("bs", {"num_bootstrap": 1000}), {}),
]


@pytest.mark.parametrize(("metric", "systems", "refs", "kind", "options"), CASES)
def test_numbers_are_those_of_the_command(
    sacrebleu_command: Callable[..., str],
    tmp_path: Path,
    metric: str,
    systems: list[list[str]],
    refs: list[list[str]],
    kind: tuple[Any, dict[str, int]],
    options: dict[str, Any],
) -> None:
    test, sizes = kind
    ours = compare(systems, refs, [metric], test=test, **sizes, **options)
    size = sizes["num_bootstrap" if test == "bs" else "num_trials"]
    arguments = [
        *files(tmp_path, "ref", refs), "-i", *files(tmp_path, "sys", systems), *OPTIONS[metric],
        f"--paired-{test}", f"--paired-{test}-n", size,
        *(["--tokenize", options["tokenize"]] if "tokenize" in options else []),
        *(["--chrf-lowercase" if metric.startswith("chrf") else "--lowercase"] if "lowercase" in options else []),
    ]  # fmt: skip
    seed = options.get("seed")
    theirs = json.loads(sacrebleu_command(*arguments, seed=seed))
    assert len(theirs) == len(ours) == len(systems)
    for expected, [found] in zip(theirs, ours, strict=True):
        assert expected[found.name] == {
            "score": found.value, "mean": found.mean, "ci": found.confidence, "p_value": found.p_value,
        }  # fmt: skip
    table = sacrebleu_command(*arguments, "-f", "text", seed=seed)
    [signature] = {found.signature for [found] in ours}
    assert f" - {ours[0][0].name:<10} {signature}\n" in table
    assert f"|{test}:{size}|seed:{seed or 12345}|" in signature


def test_all_metrics_at_once(sacrebleu_command: Callable[..., str], tmp_path: Path) -> None:
    ours = compare(GERMAN, TWO, ["bleu", "chrf", "ter"], num_bootstrap=30)
    arguments = [*files(tmp_path, "ref", TWO), "-i", *files(tmp_path, "sys", GERMAN)]
    theirs = json.loads(
        sacrebleu_command(*arguments, "-m", "bleu", "chrf", "ter", "--paired-bs", "--paired-bs-n", 30)
    )
    for expected, scores in zip(theirs, ours, strict=True):
        assert {score.name: score.p_value for score in scores} == {
            name: expected[name]["p_value"] for name in ("BLEU", "chrF2", "TER")
        }
    assert [score.higher_is_better for score in ours[0]] == [True, True, False]


def test_randomization_with_intervals_has_the_same_p_values() -> None:
    bare = compare(GERMAN, ONE, ["bleu"], test="ar", num_trials=50, num_bootstrap=0)
    more = compare(GERMAN, ONE, ["bleu"], test="ar", num_trials=50, num_bootstrap=20)
    assert [one.p_value for [one] in bare] == [one.p_value for [one] in more]
    assert bare[1][0].confidence is None
    assert more[0][0].confidence is not None and more[1][0].confidence is not None
    assert "|ar:50|" in more[1][0].signature and "bs:20|" in more[1][0].signature


@pytest.mark.parametrize("paired", ["none", "bs"])
def test_resamples_are_not_held_in_memory_together(paired: str) -> None:
    """Their sentences and statistics are 16 MB each for 2,000 lines and 1,000 resamples."""
    systems = [ExternalScore("x", 0.5, "s", True, (0.5 + shift, 0.5 - shift) * 1000) for shift in (0.1, 0.2)]
    tracemalloc.start()
    try:
        scores = score_means(systems, paired=paired, num_bootstrap=1000, num_trials=1, seed=1)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert all(score.confidence for score in scores)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_sentences_are_those_of_the_command(
    sacrebleu_command: Callable[..., str], tmp_path: Path, metric: str
) -> None:
    [found] = score_sentences(GERMAN[0], TWO, [metric])
    arguments = [*files(tmp_path, "ref", TWO), "-i", *files(tmp_path, "sys", GERMAN[:1]), *OPTIONS[metric]]
    theirs = sacrebleu_command(*arguments, "--sentence-level", "-f", "text", "-w", 12)
    lines = theirs.removesuffix("\n").split("\n")
    expected = [f"{found.name}|{found.signature} = {value:.12f}" for value in found.values]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="1 systems cannot be compared"):
        compare(GERMAN[:1], ONE)
    with pytest.raises(DataError, match="2 hypotheses but 19 references"):
        compare([GERMAN[0], GERMAN[1][:2]], ONE)
    for wrong in ({"seed": 0}, {"num_bootstrap": 1}, {"num_bootstrap": 0}, {"num_trials": 0}):
        with pytest.raises(ConfigError, match="too few"):
            compare(GERMAN, ONE, **wrong)


def test_interval_of_a_difference() -> None:
    found = paired_difference(GERMAN[0], FIRST, ONE, "bleu", num_bootstrap=50)
    assert found.after == pytest.approx(100)
    assert 0 < found.low < found.value < found.high
    assert found.before == score(GERMAN[0], ONE, ["bleu"])[0].value


def test_bleu_of_the_literature() -> None:
    """The same as of text that was prepared before; the signature says how."""
    sacremoses = pytest.importorskip("sacremoses")
    normalizer, tokenizer = sacremoses.MosesPunctNormalizer("de"), sacremoses.MosesTokenizer("de")

    def prepared(lines: Sequence[str]) -> list[str]:
        return [
            tokenizer.tokenize(normalizer.normalize(line.lower() + "\n"), return_str=True) for line in lines
        ]

    lines = [*GERMAN[0], "„Wir“ sehen z.B. Züge – nicht nur alte –, die's gibt!"]
    refs = [*FIRST, "“Wir” sehen z.B. Züge - nicht nur alte -, die es gibt!"]
    [plain] = score(prepared(lines), [prepared(refs)], ["bleu"], tokenize="none")
    [found] = score(lines, [refs], ["bleu-moses"], tgt="de-AT")
    assert found.value == plain.value
    assert found.name == "BLEU-Moses"
    parts = "case:lc|eff:no|tok:none|smooth:exp|moses:lc.norm.tok.de|sacremoses:"
    assert parts in found.signature
    [one, other] = compare([lines, refs], [refs], ["bleu-moses"], tgt="de", num_bootstrap=20)
    assert (one[0].name, one[0].value, other[0].value) == ("BLEU-Moses", plain.value, pytest.approx(100))
    with pytest.raises(ConfigError, match="needs the target language"):
        score(lines, [refs], ["bleu-moses"])


def test_translations_of_another_text() -> None:
    refs = [f"{line} {word}" for line in REFS for word in ("heute", "morgen", "nie")]
    assert not looks_mispaired(with_mistakes(refs, 1), refs)
    assert not looks_mispaired([line.upper() for line in refs], refs)
    assert looks_mispaired(refs[7:] + refs[:7], refs)
    assert looks_mispaired(["the same"] * len(refs), refs)
    assert not looks_mispaired(refs[3:13], refs[:10]), "ten lines tell nothing"
    words = sorted({word for line in refs for word in line.split()})
    long = [" ".join(random.Random(number).sample(words, 3)) for number in range(5001)]
    assert not looks_mispaired(long, long) and looks_mispaired(long[7:] + long[:7], long)
