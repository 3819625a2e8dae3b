"""The model card: metadata that hubs read, and what it says of data, scores and training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from mtkit.config.loading import load_config
from mtkit.config.sections import Config, DecodingConfig
from mtkit.evaluation import metrics
from mtkit.training import results
from mtkit.training.card import write_card
from mtkit.training.results import TEST_METRICS, TrainResult, TranslationSetup
from mtkit.training.robustness import Robustness
from mtkit.translation.robustness import make_copies, measure

FACTS = {
    "parameters": 8_900_000, "processor": "Some CPU", "precision": "bf16", "src_tokens": 7000, "tgt_tokens": 8000,
    "vocabulary": {"source": 4000, "target": 4000},
    "pairs": {"kept": 390, "empty": 3, "too_long": 7, "ratio": 0, "duplicate": 0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKIT_CACHE", str(tmp_path / "cache"))


def make_config(folder: Path, *overrides: str) -> Config:
    root = tiny.write_corpus(folder / "data")
    config = tiny.write_config(folder / "config.yaml", run=folder / "my run", root=root)
    return load_config(config, overrides)


def make_card(
    config: Config,
    *,
    sentences: int = 120,
    example: str = 'It\'s "a" dog.',
    robustness: Robustness | None = None,
) -> tuple[dict[str, Any], str]:
    """Write the card of a run with one test set and return its metadata and its text."""
    run = Path(config.run)
    run.mkdir(exist_ok=True)
    refs = [f"le chien {number} voit ." for number in range(sentences)]
    hyps = [*refs[:-5], *["un chat ."] * 5]
    setup = TranslationSetup("bf16", "cpu", DecodingConfig())
    tests = []
    if sentences:
        scores = metrics.score(hyps, [refs], TEST_METRICS, tgt="fr")
        tests = [results.TestResult("news|2024", hyps, scores, setup, 2.0, robustness)]
    result = TrainResult(run, "step 300 is the last", 300, 41.5, 280, tests, example)
    write_card(config, result, {"news|2024": refs})
    text = (run / "README.md").read_text(encoding="utf-8")
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def write_log(run: Path) -> None:
    run.mkdir(exist_ok=True)
    records = [{"kind": "train", "step": step, "epoch": step / 50, "target_tokens_per_second": 4321.4,
                "seconds": step / 2} for step in (100, 300)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "facts.json").write_text(json.dumps(FACTS))


def test_metadata_are_those_of_the_hub(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    config = make_config(tmp_path, "data.tgt=no", "init=Helsinki-NLP/opus-mt-en-fr",
                         "data.train=[{hub: wmt/wmt16, config: de-en}]")  # fmt: skip
    metadata, _ = make_card(config)
    assert metadata["language"] == ["en", "no"]  # not false
    assert metadata["datasets"] == ["wmt/wmt16"]
    card = hub.ModelCard((tmp_path / "my run/README.md").read_text(encoding="utf-8"))
    assert (card.data.license, card.data.base_model) == ("unknown", "Helsinki-NLP/opus-mt-en-fr")
    found = {result.metric_type: result for result in card.data.eval_results}
    assert set(found) == {"bleu", "chrf"}
    assert (found["bleu"].task_type, found["bleu"].dataset_name) == ("translation", "news|2024")
    assert found["bleu"].metric_value == metadata["model-index"][0]["results"][0]["metrics"][0]["value"]


def test_a_folder_is_no_base_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/base").mkdir(parents=True)
    config = make_config(tmp_path, "init=runs/base")
    write_log(Path(config.run))
    metadata, body = make_card(config, sentences=0)
    assert "base_model" not in metadata
    assert "Fine-tuned from runs/base." in body
    assert (
        "It was fine-tuned on 390 pairs, starting from runs/base, whose training data it has also seen"
        in body
    )
    assert "nothing else" not in body


def test_what_is_known_is_said(tmp_path: Path) -> None:
    config = make_config(tmp_path, "data.train=[{src: train.src, tgt: train.tgt, license: CC BY 2.0}]")
    write_log(Path(config.run))
    _, body = make_card(config, robustness=Robustness(reason="it was slow"))
    digest = hashlib.sha256((tmp_path / "data/train.src").read_bytes()).hexdigest()
    for expected in (
        "# en → fr translation model", "Trained with mtkit for 300 updates (step 300 is the last).",
        "echo 'It'\\''s \"a\" dog.' | mtkit translate .", 'translate_one("It\'s \\"a\\" dog.")',
        "| training | `{src: train.src, tgt: train.tgt}` | CC BY 2.0 | train.src: `" + digest,
        "| validation | `{src: valid.src, tgt: valid.tgt}` | not given |", "390 of 400 training pairs were used",
        "8.9 M parameters", "4,000 pieces", "training: 4,321 target tokens/s on Some CPU", "2 min 30 s, 6.0 epochs",
        "translating: 60.0 sentences/s, beam 5, bf16 on cpu", "because it was slow; the option `robustness` of",
        "the best validation: bleu 41.50 at update 280", "tok:13a", "bs:1000\\|seed:12345", "| news\\|2024 | BLEU |",
    ):  # fmt: skip
        assert expected in body, expected
    [row] = [line for line in body.split("\n") if line.startswith("| news\\|2024 | BLEU |")]
    low, high = map(float, row.split(" | ")[3].split(" to "))
    refs = [f"le chien {number} voit ." for number in range(120)]
    [own] = metrics.score([*refs[:-5], *["un chat ."] * 5], [refs], ["bleu"], tgt="fr", num_bootstrap=1000)
    assert own.mean is not None and own.confidence is not None
    assert (low, high) == (round(own.mean - own.confidence, 2), round(own.mean + own.confidence, 2))
    assert low < float(row.split(" | ")[2]) < high


def test_methods_are_told(tmp_path: Path) -> None:
    _, body = make_card(make_config(tmp_path))
    assert "SimCut" not in body
    keys = ["training.simcut=3", "tokenizer.bpe_dropout=0.2", "augment.upper=0.1", "data.reverse=true"]
    _, body = make_card(make_config(tmp_path, *keys, "training.minimum_risk={}"))
    methods = "SimCut 3, BPE-dropout 0.2, augmented pairs, pairs in both directions, minimum-risk training"
    assert f"\n- {methods}\n" in body


def test_robustness_is_told(tmp_path: Path) -> None:
    copies, _ = make_copies(
        ["A dog.", "A cat."], [["Ein Hund.", "Ein Kater."]], ["all capitals", "single words"]
    )
    hyps = [["Ein Hund.", "Eine Katze."], ["EIN HUND.", "a a a a"], ["Ein", "Hund", "Katze"]]
    found = [measure(copy, own, TEST_METRICS) for copy, own in zip(copies, hyps, strict=True)]
    robustness = Robustness(found, left_out={"typos": "there is nothing to change"})
    _, body = make_card(make_config(tmp_path), robustness=robustness)
    section = body.partition("## Robustness\n\n")[2].partition("\n\n## ")[0].split("\n")
    (_, before), (_, after) = (([score.value for score in result.scores]) for result in found[:2])
    assert section[0].startswith(
        "2 lines of news|2024, changed; the option `robustness` of `mtkit evaluate` changes whole test"
    )
    assert (
        section[2] == "| copy | lines | BLEU | Δ | chrF2 | Δ | loops | copies | too long | too short | lost |"
    )
    assert section[4].startswith("| clean | 2 | ")
    assert section[5].endswith(f" | {after:.2f} | {after - before:+.2f} | 1 | 0 | 0 | 0 | – |")
    assert section[6] == "| single words | 3 | – | – | – | – | 0 | 0 | 0 | 0 | – |"
    assert section[-1] == "Left out: typos, because there is nothing to change."


def test_what_is_not_known_is_said_too(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    for name in ("train.src", "valid.src"):
        (tmp_path / "data" / name).unlink()
    metadata, body = make_card(config, sentences=0)
    assert "model-index" not in metadata
    assert "No test set was given" in body
    assert "| training | `{src: train.src, tgt: train.tgt}` | not given | not available |" in body
    assert "## Speed\n\nNot measured." in body
    _, body = make_card(config, sentences=20)
    assert "| not computed |" in body  # of so few sentences, an interval would say little
