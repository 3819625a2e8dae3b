"""Runs with guided alignment: resumed bit for bit, in several processes, and better at aligning words."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from test_distributed import OPTIONS, train_distributed

SHORT = [
    "validation.every_steps=3", "validation.metrics=[]", "validation.best=loss", "data.test=[]", "model.dropout=0.2",
    "model.decoder_layers=2",
]  # fmt: skip


def true_links(src: str) -> list[tuple[int, int]]:
    """Return the links of a sentence of the tiny language: adjectives after nouns, the verb at the end."""
    words = src.split()
    verb = next(i for i, word in enumerate(words) if word in tiny.VERBS)
    order = []
    for start, end in ((0, verb), (verb + 1, len(words) - 1)):
        order += [start, end - 1, *range(start + 1, end - 1)]
    return sorted((s, t) for t, s in enumerate([*order, verb, len(words) - 1]))


def pharaoh(links: list[tuple[int, int]]) -> str:
    return " ".join(f"{s}-{t}" for s, t in links)


@pytest.fixture
def aligned(config: Path, corpus: Path, tmp_path: Path) -> list[str]:
    """The options of a run with the true alignments of its training pairs."""
    lines = [pharaoh(true_links(line)) for line in tiny.read_lines(corpus / "train.src")]
    links = tiny.write_lines(tmp_path / "train.links", lines)
    return [
        f"data.train=[{{src: train.src, tgt: train.tgt, alignments: {links}}}]",
        "training.guided_alignment=0.1",
    ]


def test_a_run_resumes_bit_for_bit(config: Path, tmp_path: Path, aligned: list[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for steps in (3, 6):
        assert (
            tiny.mtkit("train", config, f"run={a}", f"training.max_steps={steps}", *aligned, *SHORT)[0] == 0
        )
    assert tiny.mtkit("train", config, f"run={b}", "training.max_steps=6", *aligned, *SHORT)[0] == 0
    assert tiny.losses(a) == tiny.losses(b)
    code, _, err = tiny.mtkit("train", config, f"run={a}", "training.max_steps=9", *aligned[:1], *SHORT)
    assert code == 2 and "training.guided_alignment: 0.1 -> 0.0" in tiny.one_line(err)


def test_score_prints_the_alignment_of_each_pair(trained: Path, corpus: Path, tmp_path: Path) -> None:
    files = [
        tiny.write_lines(
            tmp_path / side, [*tiny.read_lines(corpus / f"test.{side}")[:4], "", "the dog " * 200]
        )
        for side in ("src", "tgt")
    ]
    code, out, err = tiny.mtkit("score", trained, *files, "--alignment", "pharaoh")
    assert code == 0, err
    lines = out.split("\n")
    assert lines[4:] == ["", "", ""]  # an empty pair, one that is too long, and the end
    code, translated, _ = tiny.mtkit(
        "translate", trained, "--alignment", "pharaoh", stdin="\n".join(tiny.read_lines(files[0])[:4])
    )
    for line, links in zip(translated.split("\n"), lines, strict=False):
        text, _, own = line.partition(" ||| ")
        if text in tiny.read_lines(files[1]):
            assert own == links
    code, _, err = tiny.mtkit("score", trained, *files, "--alignment", "pharaoh", "--minimum", "0")
    assert code == 2 and "--minimum" in tiny.one_line(err)
    code, _, err = tiny.mtkit("score", trained, *files, "--alignment", "giza")
    assert code == 2 and "unknown format 'giza'" in tiny.one_line(err)


@pytest.mark.slow
def test_alignments_are_better_with_it(
    config: Path, corpus: Path, tmp_path: Path, aligned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The share of links of test pairs that are right, of a model with and without it; the truth is known."""
    options = ["training.max_steps=200", "validation.every_steps=100", "model.positions=rotary", "model.dropout=0.0",
               "training.learning_rate=0.01", "model.decoder_layers=2", "data.test=[]"]  # fmt: skip
    srcs, tgts = (corpus / f"test.{side}" for side in ("src", "tgt"))
    truth = [set(true_links(line)) for line in tiny.read_lines(srcs)]
    shares = {}
    for name, more in (("without", []), ("with", aligned)):
        assert tiny.mtkit("train", config, f"run={tmp_path / name}", *options, *more)[0] == 0
        code, out, _ = tiny.mtkit("score", tmp_path / name, srcs, tgts, "--alignment", "pharaoh")
        assert code == 0
        found = [{tuple(map(int, link.split("-"))) for link in line.split()} for line in out.split("\n")[:-1]]
        right = sum(len(own & links) for own, links in zip(found, truth, strict=True))
        shares[name] = 2 * right / (sum(map(len, found)) + sum(map(len, truth)))
    with capsys.disabled():
        print(f"F1 of links without guided alignment {shares['without']:.3f}, with {shares['with']:.3f}")
    assert shares["with"] > shares["without"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_learn_the_same(
    config: Path, tmp_path: Path, aligned: list[str], parallel: str
) -> None:
    options = [*OPTIONS, *aligned, *SHORT, "training.max_steps=4", "training.simcut=3"]
    assert tiny.mtkit("train", config, f"run={tmp_path / 'a'}", *options)[0] == 0
    done = train_distributed(
        2, config, f"run={tmp_path / 'b'}", *options[len(OPTIONS) :], f"training.parallel={parallel}"
    )
    assert done.returncode == 0, done.stderr
    for one, two in zip(
        tiny.records(tmp_path / "a", "train"), tiny.records(tmp_path / "b", "train"), strict=True
    ):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
