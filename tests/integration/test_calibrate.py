"""`mtkit calibrate`, and `mtkit translate --confidence` with what it writes."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from mtkit.translation.confidence import Confidence, right_words
from mtkit.translation.logistic import calibration_error
from mtkit.translation.options import TranslateOptions
from mtkit.translation.scoring import Scorer
from mtkit.translation.translator import Translator


@pytest.fixture(scope="module")
def calibrated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run, calibrated on 150 pairs that it was not trained on; not to be changed."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = shutil.copytree(trained, folder / "run")
    code, out, err = tiny.mtkit("calibrate", run, *write_pairs(folder, 150, 77), "-q")
    assert (code, err) == (0, "")
    first, second, third = out.removesuffix("\n").split("\n")
    assert first.startswith("150 lines, ") and "of words right" in first
    assert second.startswith("calibration error 0.0")
    assert third == f"written to {run / 'best' / 'confidence.json'}"
    return run


def write_pairs(folder: Path, number: int, seed: int) -> list[object]:
    """Write pairs to files, and return the options that name them."""
    srcs, refs = zip(*tiny.pairs(number, seed), strict=True)
    src, ref = (
        tiny.write_lines(folder / name, list(side)) for name, side in (("v.src", srcs), ("v.tgt", refs))
    )
    return ["--src", src, "--ref", ref]


def translate(run: Path, *arguments: object, stdin: str | None = None) -> list[str]:
    code, out, err = tiny.mtkit("translate", run, "-q", *arguments, stdin=stdin)
    assert (code, err) == (0, ""), err
    return out.removesuffix("\n").split("\n")


def test_confidence_changes_no_translation_and_is_right_as_often_as_it_says(
    calibrated: Path, tmp_path: Path
) -> None:
    srcs, refs = zip(*tiny.pairs(150, 88), strict=True)
    lines = tiny.write_lines(tmp_path / "in", [*srcs, ""])
    plain = translate(calibrated, lines)
    short = [line.split("\t") for line in translate(calibrated, lines, "--confidence")]
    found = [json.loads(line) for line in translate(calibrated, lines, "--confidence", "--json")]
    assert [text for _, text in short] == [line["text"] for line in found] == plain
    assert [float(confidence) for confidence, _ in short] == [line["confidence"] for line in found]
    assert found[-1] == {"text": "", "score": 0.0, "confidence": 1.0, "words": []}
    words, outcomes, shares = [], [], []
    for line, ref in zip(found, refs, strict=False):
        assert [line["text"][word["start"] : word["end"]] for word in line["words"]] == line["text"].split()
        is_right, share = right_words([word["text"] for word in line["words"]], ref.split())
        words += [word["confidence"] for word in line["words"]]
        outcomes += is_right
        shares.append(share)
    assert calibration_error(np.array(words), np.array(outcomes)) < 0.05
    assert calibration_error(np.array([line["confidence"] for line in found[:-1]]), np.array(shares)) < 0.05


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("others", [0, 1])
def test_log_probabilities_are_those_of_teacher_forcing(trained: Path, beam_size: int, others: int) -> None:
    translator = Translator.load(
        trained, device="cpu", precision="fp32", beam_size=beam_size, ensemble=[trained] * others
    )
    kept = TranslateOptions(keep_log_probs=True)
    srcs = [src for src, _ in tiny.pairs(20, 5)]
    found = list(translator.translate(srcs, kept))
    assert [t.text for t in found] == [t.text for t in translator.translate(srcs)]
    assert all(not t.log_probs for t in translator.translate(srcs))
    scorer: Scorer = translator.scorer
    for translation, src, score in zip(
        found, srcs, translator.score(srcs, [t.text for t in found]), strict=True
    ):
        [segment] = translation.log_probs
        assert score.score == pytest.approx(translation.score, abs=1e-5)
        penalty = ((5 + len(segment.log_probs)) / 6) ** translator.decoding.length_penalty
        assert sum(segment.log_probs) / penalty == pytest.approx(translation.score, abs=1e-5)
        assert sum(segment.lengths) == len(translation.text)
        assert segment.num_src_tokens == len(translator.tokenizers.src.encode([src])[0])
        # Shorter and shorter beginnings, scored by teacher forcing as if they had not ended yet.
        [ids] = translator.tokenizers.tgt.encode([translation.text])
        model = scorer.ensemble
        hidden = model.hidden(model.sources(translator.tokenizers.src.encode([src])), model.targets_in([ids]))
        log_probs = model.log_probs([h[0] for h in hidden])
        expected = log_probs.gather(1, torch.tensor([*ids, translator.tokenizers.tgt.eos])[:, None])[:, 0]
        assert segment.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_each_segment_of_a_long_line_has_its_own_tokens(calibrated: Path) -> None:
    whole = Translator.load(calibrated, device="cpu", precision="fp32")
    translator = Translator(whole.model, whole.tokenizers, whole.decoding, max_source_tokens=9)
    line = "the old dog sees a cat . this boy hears the sad king ."
    translation = translator.translate_one(line, TranslateOptions(keep_log_probs=True))
    assert len(translation.log_probs) > 1
    for segment, following in pairwise([*translation.log_probs, None]):
        end = segment.start + sum(segment.lengths)
        assert translation.text[segment.start : end].strip() == translation.text[segment.start : end] != ""
        assert end == (len(translation.text) if following is None else following.start - 1)
    found = Confidence.load(calibrated).of(translation)
    assert [word.text for word in found.words] == translation.text.split()
    assert 0 < found.confidence < 1


def test_lines_that_are_not_translated_and_documents(calibrated: Path, tmp_path: Path) -> None:
    options = ["--confidence", "--on-error", "copy", "--max-line-tokens", 8]
    code, out, _ = tiny.mtkit("translate", calibrated, *options, stdin="the dog " * 9)
    assert (code, out) == (0, f"0.0000\t{'the dog ' * 9}\n")
    document = tmp_path / "a.xlf"
    document.write_text(
        '<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2"><file source-language="en" '
        'target-language="fr" original="a" datatype="plaintext"><body><trans-unit id="1">'
        "<source>the dog sees a cat .</source></trans-unit></body></file></xliff>"
    )
    [line] = translate(calibrated, document, "--confidence")
    assert line.partition("\t")[2] == translate(calibrated, document)[0]
    code, _, err = tiny.mtkit("translate", calibrated, document, "--confidence", "-o", tmp_path / "b.xlf")
    assert code == 2 and "no --json, --n-best, --scores, --confidence" in tiny.one_line(err)


def test_an_ensemble_has_a_calibration_of_its_own(calibrated: Path, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(calibrated, tmp_path / "run")
    ensemble = ["--ensemble", trained]
    code, _, err = tiny.mtkit("translate", run, "--confidence", *ensemble, stdin="the dog\n")
    assert code == 5
    assert "the confidence of this ensemble is not calibrated (run `mtkit calibrate" in tiny.one_line(err)
    assert "with the same --ensemble" in err
    code, _, err = tiny.mtkit("calibrate", run, *ensemble, *write_pairs(tmp_path, 100, 7), "-q")
    assert (code, err) == (0, "")
    assert (run / "best" / "confidence.json").read_bytes() == (
        calibrated / "best" / "confidence.json"
    ).read_bytes()
    [line] = translate(run, "--confidence", *ensemble, stdin="the dog sees a cat .\n")
    [alone] = translate(run, "--confidence", stdin="the dog sees a cat .\n")
    assert line.split("\t")[1] == alone.split("\t")[1] and line != alone


def test_a_job_is_resumed(calibrated: Path, corpus: Path, tmp_path: Path) -> None:
    options = [corpus / "test.src", "--confidence", "--resume", "-o", tmp_path / "out"]
    translate(calibrated, *options)
    whole = (tmp_path / "out").read_text()
    note = tmp_path / "out.mtkit-job"
    note.write_text(
        json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "finished output"})
    )
    (tmp_path / "out").write_text("".join(whole.splitlines(keepends=True)[:5]))
    translate(calibrated, *options)
    assert (tmp_path / "out").read_text() == whole
    code, _, err = tiny.mtkit("translate", calibrated, *options, "--json")
    assert code == 2 and "was written without --json" in tiny.one_line(err)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["translate", "--confidence"], 5, "confidence is not calibrated (run `mtkit calibrate "),
        (["translate", "--json", "--scores"], 2, "--scores cannot be combined with --json"),
        (["translate", "--confidence", "--protect"], 2, "--protect cannot be combined with --confidence"),
        (["translate", "--confidence", "--scores"], 2, "--scores cannot be combined with --confidence"),
        (["translate", "--confidence", "--sample"], 2, "--confidence cannot be combined with --sample"),
        (["calibrate"], 3, "24 lines to calibrate on, but it takes 100"),
        (["calibrate", "--src", "x"], 2, "--src and --ref belong together"),
        (["calibrate", "--tag", "<x>"], 2, "--tag needs --src"),
    ],
)
def test_mistakes_are_one_line(trained: Path, arguments: list[str], code: int, message: str) -> None:
    command, *options = arguments
    quiet = ["-q"] if command == "calibrate" else []
    found, out, err = tiny.mtkit(command, trained, *options, *quiet, stdin="the dog\n")
    assert (found, out) == (code, "")
    assert message in tiny.one_line(err)
    assert not (trained / "best" / "confidence.json").exists()


def test_pairs_must_match(trained: Path, tmp_path: Path) -> None:
    src, ref = (tiny.write_lines(tmp_path / str(n), ["a"] * n) for n in (3, 4))
    code, _, err = tiny.mtkit("calibrate", trained, "--src", src, "--ref", ref)
    assert code == 3
    assert "4 in" in tiny.one_line(err)
