"""`mtkit shortlist`, and translating with what it makes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from mtkit.checkpoint import load_checkpoint, save_checkpoint
from mtkit.config.loading import dump_config, load_config, without_training_data
from mtkit.model.cpu.packing import can_multiply_int8
from mtkit.translation.model_folder import SHORTLIST_FILE

NUM_LINES = 20


@pytest.fixture(scope="module")
def listed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run with a shortlist; not to be changed."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("listed") / "run")
    pairs = tiny.write_lines(run.parent / "pairs.tsv", ["\t".join(pair) for pair in tiny.pairs(300, 5)])
    arguments = "--pairs", pairs, "--first", 3, "--best", 2
    code, out, err = tiny.mtkit("shortlist", run, *arguments, "-q")
    assert (code, err) == (0, "")
    first, second = out.removesuffix("\n").split("\n")
    assert first.startswith("300 pairs: a sentence may use ") and "of the target tokens" in first
    assert second == f"written to {run / SHORTLIST_FILE}"
    return run


def translate(run: Path, lines: Path, *arguments: object) -> list[str]:
    code, out, err = tiny.mtkit("translate", run, lines, "-q", *arguments)
    assert (code, err) == (0, ""), err
    return out.removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    srcs = [src for src, _ in tiny.pairs(NUM_LINES, 99)]
    return tiny.write_lines(tmp_path_factory.mktemp("lines") / "in", srcs)


def test_it_is_used_unless_it_is_turned_off(trained: Path, listed: Path, lines: Path) -> None:
    before = translate(trained, lines, "--scores")
    assert translate(listed, lines, "--scores", "--no-shortlist") == before
    with_list = translate(listed, lines, "--scores")
    assert with_list == translate(listed, lines, "--scores", "--shortlist")
    assert with_list != before
    texts, plain = ([line.split("\t")[-1] for line in each] for each in (with_list, before))
    assert sum(a == b for a, b in zip(texts, plain, strict=True)) > NUM_LINES / 2


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow), "bf16"])
def test_no_translation_depends_on_its_batch(listed: Path, lines: Path, precision: str) -> None:
    if precision == "int8" and not can_multiply_int8():
        pytest.skip("this CPU has no 8-bit products")
    arguments = "--precision", precision, "--beam-size", 1, "--device", "cpu", "--no-avoid-loops"
    together = translate(listed, lines, *arguments)
    assert translate(listed, lines, *arguments, "--batch-tokens", 1) == together


def test_a_model_without_one_has_none_to_ask_for(trained: Path, lines: Path) -> None:
    code, out, err = tiny.mtkit("translate", trained, lines, "--shortlist")
    assert (code, out) == (5, "")
    assert f"{trained}: the model has no shortlist" in err and f"mtkit shortlist {trained}" in err


def test_one_that_cannot_be_read_is_made_again(listed: Path, tmp_path: Path, lines: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(listed, model)
    [file] = model.rglob("shortlist.safetensors")
    file.write_bytes(b"damaged")
    assert tiny.mtkit("translate", model, lines)[0] == 5
    assert tiny.mtkit("shortlist", model, "-q")[0] == 0
    assert tiny.mtkit("translate", model, lines, "-q")[0] == 0


def test_an_aligner_makes_the_list_of_its_tokenizers(trained: Path, listed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    pairs = tiny.write_lines(tmp_path / "p.tsv", ["\t".join(pair) for pair in tiny.pairs(300, 5)])
    arguments = "--pairs", pairs, "--first", 3, "--best", 2, "-q", "--aligner"
    code, _, err = tiny.mtkit("shortlist", run, *arguments, listed)
    assert (code, err) == (0, "")
    assert (run / SHORTLIST_FILE).read_bytes() == (listed / SHORTLIST_FILE).read_bytes()


def test_an_aligner_aligns_the_pairs_of_the_model(trained: Path, tmp_path: Path) -> None:
    run, aligner = shutil.copytree(trained, tmp_path / "run"), tmp_path / "aligner"
    stored = load_checkpoint(trained / "best")
    config = without_training_data(load_config(trained / "config.yaml"))
    files = {file.name: file.read_bytes() for file in trained.glob("tokenizer*.model")}
    save_checkpoint(aligner, replace(stored, config=dump_config(config)), files)
    code, out, err = tiny.mtkit("shortlist", run, "--aligner", aligner, "-q")
    assert (code, err) == (0, "") and out.startswith(f"{tiny.SPLITS['train']} pairs: ")


@pytest.mark.slow
def test_a_folder_in_8_bits_keeps_it(listed: Path, tmp_path: Path, lines: Path) -> None:
    code, _, err = tiny.mtkit("export", listed, "--to", "mtkit", "--type", "int8", "-o", tmp_path / "small")
    assert (code, err) == (0, "")
    assert (tmp_path / "small" / SHORTLIST_FILE).read_bytes() == (listed / SHORTLIST_FILE).read_bytes()
    translate(tmp_path / "small", lines, "--shortlist")
    pairs = tiny.write_lines(tmp_path / "p.tsv", ["\t".join(pair) for pair in tiny.pairs(300, 5)])
    code, _, err = tiny.mtkit("shortlist", tmp_path / "small", "--pairs", pairs, "-q")
    assert (code, err) == (0, "")
    translate(tmp_path / "small", lines, "--shortlist")
