"""Diagnoses, from recorded logs and translations of runs that were broken on purpose, and from text.

tests/integration/test_diagnose.py trains these runs, and records them in tests/data/diagnosis.json.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

from mtkit.config.loading import dump_config, load_config
from mtkit.data.readers import Pair
from mtkit.evaluation.history import History, Sample, read_history
from mtkit.training.diagnosis.curves import Levels, find_in_curves
from mtkit.training.diagnosis.outputs import find_in_outputs
from mtkit.training.diagnosis.pairing import find_in_pairing, measure_pairing
from mtkit.training.diagnosis.texts import TokenCounts, TrainingText, find_in_set, find_in_training_text

RECORDED = json.loads((Path(__file__).parents[1] / "data/diagnosis.json").read_text(encoding="utf-8"))
LEVELS = Levels(vocab_size=96, frequencies=3.3)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    root = tiny.write_corpus(tmp_path / "corpus")
    return tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=root)


def kinds(findings: object) -> set[str]:
    return {finding.kind for finding in findings}  # type: ignore[attr-defined]


def history_of(run: Path, log: list[dict[str, object]]) -> History:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log), encoding="utf-8")
    return read_history(run)


@pytest.mark.parametrize(
    ("name", "in_curves", "in_outputs", "overrides"),
    [
        ("healthy", set(), set(), []),
        ("low rate", {"chance", "learning-rate-low"}, {"endless-output"}, ["training.learning_rate=0.000001"]),
        ("high rate", {"learning-rate-high"}, {"endless-output"}, ["training.learning_rate=3.0"]),
        ("high rate, not clipped", {"learning-rate-high"}, {"same-output"}, ["training.clip_norm=null"]),
        ("in warm-up", {"too-few-updates"}, set(), ["training.warmup_steps=4000"]),
        ("few updates", {"too-few-updates"}, set(), []),
        ("copies", set(), {"copies"}, []),
        ("short targets", set(), {"short-output"}, []),
        ("endless targets", set(), {"endless-output"}, []),
        ("overfitting", {"overfitting"}, set(), []),
    ],
)  # fmt: skip
def test_runs_broken_on_purpose(
    tmp_path: Path, config: Path, name: str, in_curves: set[str], in_outputs: set[str], overrides: list[str]
) -> None:
    run = RECORDED[name]
    history = history_of(tmp_path, run["log"])
    loaded = load_config(config, overrides)
    curves = kinds(find_in_curves(history, loaded, LEVELS, has_ended=True))
    outputs = kinds(find_in_outputs([Sample(*sample) for sample in run["samples"]]))
    assert in_curves <= curves
    assert in_outputs <= outputs
    if name == "healthy":
        assert not curves | outputs


# --- logs ---------------------------------------------------------------------------------------------------------


def update(step: int, loss: float, norm: float = 0.8) -> dict[str, object]:
    return {"kind": "train", "step": step, "nll": loss, "grad_norm": norm, "lr": 1e-3, "epoch": step / 100}


def in_log(tmp_path: Path, config: Path, *log: dict[str, object], ended: bool = True) -> set[str]:
    history = history_of(tmp_path, list(log))
    return kinds(find_in_curves(history, load_config(config), Levels(8000, 6.0), has_ended=ended))


def falling(last: int) -> list[dict[str, object]]:
    return [update(step, 1.5 + 7 * 0.99 ** (step / 10)) for step in range(10, last + 1, 10)]


def test_a_loss_that_falls_is_in_order(tmp_path: Path, config: Path) -> None:
    assert in_log(tmp_path, config, *falling(5000)) == set()
    assert in_log(tmp_path, config, *falling(30)) == set()  # too early to say anything
    assert in_log(tmp_path, config) == set()


def test_divergence(tmp_path: Path, config: Path) -> None:
    diverged = {
        "kind": "diverged",
        "step": 5001,
        "reason": "the loss of step 5001 is not finite; its sentences: a:1",
    }
    rollback = {"kind": "rollback", "step": 4900}
    assert in_log(tmp_path, config, *falling(5000), diverged) == {"divergence"}
    assert in_log(tmp_path, config, *falling(5000), diverged, rollback) == set()  # training goes on
    assert in_log(tmp_path, config, *falling(5000), *[diverged, rollback] * 3) == {"divergence"}


def test_a_loss_that_rises_for_good(tmp_path: Path, config: Path) -> None:
    risen = [update(5000 + step, 5.5) for step in range(10, 3000, 10)]
    assert in_log(tmp_path, config, *falling(5000), *risen) == {"loss-rises"}
    spike = [update(5000 + step, 5.5) for step in range(10, 300, 10)]
    after = [update(5300 + step, 1.6) for step in range(10, 3000, 10)]
    assert in_log(tmp_path, config, *falling(5000), *spike, *after) == set()


def test_gradients(tmp_path: Path, config: Path) -> None:
    steps = range(10, 5000, 10)
    assert in_log(tmp_path, config, *(update(step, 9 - step / 1000, 40.0) for step in steps)) == {"gradient"}
    assert in_log(tmp_path, config, *(update(step, 4 - step / 9999, 1e-6) for step in steps)) == {"gradient"}


def test_training_that_ended_early(tmp_path: Path, config: Path) -> None:
    valid = [{"kind": "valid", "step": 100 * n, "loss": 6 - 0.25 * n} for n in range(1, 11)]
    assert in_log(tmp_path, config, *falling(1000), *valid) == {"too-few-updates"}
    assert in_log(tmp_path, config, *falling(1000), *valid, ended=False) == set()
    flat = [{"kind": "valid", "step": 100 * n, "loss": 3 + 1 / n} for n in range(1, 11)]
    assert in_log(tmp_path, config, *falling(1000), *flat) == set()
    assert in_log(tmp_path, config, *falling(4000), *valid) == set()  # the last quarter has no validation


# --- translations -------------------------------------------------------------------------------------------------


def sampled(translate: object, number: int = 30) -> list[Sample]:
    return [Sample(src, tgt, translate(src, tgt)) for src, tgt in tiny.pairs(number, 3)]  # type: ignore[operator]


def test_translations() -> None:
    assert kinds(find_in_outputs(sampled(lambda src, tgt: tgt))) == set()
    assert kinds(find_in_outputs(sampled(lambda src, tgt: "le chat ."))) == {"same-output"}
    assert kinds(find_in_outputs(sampled(lambda src, tgt: src))) == {"copies"}
    assert kinds(find_in_outputs(sampled(lambda src, tgt: ""))) == {"empty-output"}
    assert kinds(find_in_outputs(sampled(lambda src, tgt: tgt[:8]))) == {"short-output"}
    assert kinds(find_in_outputs(sampled(lambda src, tgt: tgt + " la la la la la la"))) == {"endless-output"}
    assert kinds(find_in_outputs(sampled(lambda src, tgt: "", number=5))) == set()  # too few to say anything
    same_refs = [Sample(f"{n}", "oui", "oui") for n in range(20)]
    assert kinds(find_in_outputs(same_refs)) == set()  # the references are all alike too
    same_language = [Sample(src, src, src) for src, _ in tiny.pairs(20, 3)]
    assert kinds(find_in_outputs(same_language)) == set()
    rest = sampled(lambda src, tgt: tgt)[5:]  # a few copies are usual, a few empty translations are not
    assert kinds(find_in_outputs([*sampled(lambda src, tgt: src)[:5], *rest])) == set()
    assert kinds(find_in_outputs([*sampled(lambda src, tgt: "")[:5], *rest])) == {"empty-output"}


# --- text ---------------------------------------------------------------------------------------------------------


def count(lines: Sequence[str]) -> TokenCounts:
    """Count as a tokenizer of the Latin alphabet does."""
    characters = "".join(lines)
    return TokenCounts(len(characters), sum(not c.isascii() for c in characters), 0)


def training_text(pairs: list[tuple[str, str]]) -> TrainingText:
    text = TrainingText([Pair(*pair) for pair in pairs])
    for pair in text.sample:
        text.add(pair)
    return text


def in_set(pairs: list[tuple[str, str]], train: list[tuple[str, str]] | None = None) -> set[str]:
    text = training_text(tiny.pairs(400, 0) if train is None else train)
    return kinds(find_in_set("set", "data.valid.0", [Pair(*pair) for pair in pairs], text, count, count))


def test_sets() -> None:
    pairs = tiny.pairs(60, 1)
    assert in_set(pairs) == set()
    assert in_set([(tgt, src) for src, tgt in pairs]) == {"swapped-sides"}
    assert in_set([(src, tgt[::-1]) for src, tgt in pairs]) == {"other-language"}
    assert in_set([(src, "".join(chr(ord(c) + 0x3C0) for c in tgt)) for src, tgt in pairs]) >= {
        "script",
        "vocabulary",
    }
    assert in_set(tiny.pairs(60, 0)) == {"test-in-training"}
    assert in_set(pairs[:3]) == set()  # too few words to tell a language


def test_scripts_without_spaces() -> None:
    rng = random.Random(1)

    def line(first: int) -> str:
        return "".join(chr(first + min(int(rng.expovariate(0.05)), 400)) for _ in range(30))

    train = [(line(0x4E00), f"{tgt}") for _, tgt in tiny.pairs(300, 0)]
    valid = [(line(0x4E00), f"{tgt}") for _, tgt in tiny.pairs(60, 1)]
    assert "swapped-sides" in in_set([(tgt, src) for src, tgt in valid], train)
    assert not in_set(valid, train) & {"swapped-sides", "other-language", "script"}
    assert in_set(train[:60], train) == {"test-in-training"}


def test_training_pairs() -> None:
    def found(pairs: list[tuple[str, str]], *, drops_duplicates: bool = False) -> set[str]:
        text = training_text(pairs)
        return kinds(find_in_training_text(text, count, count, drops_duplicates=drops_duplicates))

    pairs = tiny.pairs(200, 0)
    assert found(pairs) == set()
    assert found(pairs[:40] * 5) == {"duplicates"}
    assert found(pairs[:40] * 5, drops_duplicates=True) == set()
    assert found([(src, "" if i % 4 else tgt) for i, (src, tgt) in enumerate(pairs)]) >= {"empty-pairs"}
    assert found([(src, src if i % 4 else tgt) for i, (src, tgt) in enumerate(pairs)]) == {"equal-sides"}
    assert found([(src, tgt + "éééé") for src, tgt in pairs]) == {"vocabulary"}
    assert found([]) == set()


# --- pairs and the model ------------------------------------------------------------------------------------------


def test_sources_and_targets_that_do_not_belong_together() -> None:
    right = [Pair(f"word {n}", f"mot {n}") for n in range(60)]
    rng = random.Random(1)

    def score(srcs: Sequence[str], tgts: Sequence[str]) -> list[float]:
        return [
            -1.0 - (src.split()[1] != tgt.split()[1]) - rng.random()
            for src, tgt in zip(srcs, tgts, strict=True)
        ]

    def measured(pairs: list[Pair]) -> object:
        return measure_pairing(pairs, score)

    targets = [tgt for _, tgt in right]
    rng.shuffle(targets)
    shuffled = [Pair(src, tgt) for (src, _), tgt in zip(right, targets, strict=True)]
    shifted = [Pair(right[n].src, right[n - 1].tgt) for n in range(60)]
    good = measure_pairing(right, score)
    assert good is not None and good.wins > 0.9
    assert kinds(find_in_pairing(good, good, 1000)) == set()
    assert kinds(find_in_pairing(good, None, 1000)) == set()
    assert kinds(find_in_pairing(measure_pairing(shuffled, score), good, 1000)) == {"source-ignored"}
    [finding] = find_in_pairing(good, measure_pairing(shuffled, score), 1000)
    assert finding.kind == "misaligned-validation" and "line above" not in finding.seen
    [finding] = find_in_pairing(good, measure_pairing(shifted, score), 1000)
    assert finding.kind == "misaligned-validation" and "the source one line above it" in finding.seen
    assert measured(right[:5]) is None
    blind = measure_pairing(right, lambda srcs, tgts: [-1.0] * len(tgts))
    assert blind is not None and blind.wins == 0.5


# --- the command --------------------------------------------------------------------------------------------------


def make_folder(run: Path, config: Path, name: str) -> Path:
    history_of(run, RECORDED[name]["log"])
    (run / "config.yaml").write_text(dump_config(load_config(config)), encoding="utf-8")
    return run


def test_a_run_of_which_only_the_log_is_left(tmp_path: Path, config: Path) -> None:
    run = make_folder(tmp_path / "run", config, "high rate")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('damage\n{"kind": "train", "st')
    code, out, err = tiny.mtkit("diagnose", run)
    assert (code, err) == (0, "")
    assert out.startswith("1. ")
    assert "[learning-rate-high]\n   usually: the learning rate is too high" in out
    assert "   change:  lower training.learning_rate" in out
    assert "checked: all 400 training pairs" in out
    assert "not checked: 1 line of metrics.jsonl, which is damaged" in out
    assert "not checked: the tokenizers: " in out
    assert "not checked: the model: " in out
    code, out, _ = tiny.mtkit("diagnose", run, "--json")
    found = json.loads(out)
    assert (code, list(found)) == (0, ["run", "findings", "checked", "unchecked"])
    assert set(found["findings"][0]) == {"kind", "seen", "meaning", "change"}


def test_a_whole_run_and_data_that_is_gone(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=tmp_path / "gone")
    run = make_folder(tmp_path / "run", path, "healthy")
    code, out, err = tiny.mtkit("diagnose", run)
    assert (code, err) == (0, "")
    assert out.startswith("nothing wrong found\n")
    assert "not checked: the training pairs: data.root: no such folder" in out


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("", "no such folder"),
        ("metrics.jsonl", "no metrics.jsonl"),
        ("config.yaml", "no config.yaml: not a run folder"),
    ],
)
def test_folders_that_cannot_be_diagnosed(tmp_path: Path, config: Path, missing: str, message: str) -> None:
    run = make_folder(tmp_path / "run", config, "healthy")
    if missing:
        (run / missing).unlink()
    code, out, err = tiny.mtkit("diagnose", run if missing else tmp_path / "no")
    assert (code, out) == (5, "")
    assert message in tiny.one_line(err)
