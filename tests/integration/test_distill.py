"""`mtkit distill`: targets from a teacher or a file, their filter and scores, and the student that learns them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console
from test_translate_documents import sheet, tmx

from mtkit.config.loading import config_to_dict, load_config, parse_config
from mtkit.errors import ConfigError, DataError
from mtkit.pipelines import Context, distillation_stages
from mtkit.pipelines.distillation import Distillation
from mtkit.pipelines.distillation_stages import choose_targets, compare_systems, write_targets
from mtkit.pipelines.records import describe_differences
from mtkit.pipelines.trainings import training
from mtkit.translation.mbr import make_utility
from mtkit.translation.model_folder import SHORTLIST_FILE
from mtkit.translation.translator import Translator

QUIET = Context(Console(quiet=True))
NUM_LINES, NUM_MONO = 12, 5


@pytest.fixture
def settings(tmp_path: Path, trained: Path) -> dict[str, Any]:
    """Settings of `write_targets`, with a corpus and text without references."""
    srcs, refs = (list(side) for side in zip(*tiny.pairs(NUM_LINES, 41), strict=True))
    tiny.write_lines(tmp_path / "t.src", srcs)
    tiny.write_lines(tmp_path / "t.tgt", refs)
    mono = tiny.write_lines(tmp_path / "mono", [src for src, _ in tiny.pairs(NUM_MONO, 42)])
    data = config_to_dict(load_config(trained / "config.yaml"))["data"]
    data |= {"root": str(tmp_path), "train": [{"src": "t.src", "tgt": "t.tgt"}], "valid": [], "test": []}
    return {
        "data": data, "seed": 1, "tags": {"train-0": "", "mono": ""}, "mono": [str(mono)],
        "teachers": [str(trained)], "decoding": {"beam_size": 3, "mbr_candidates": None}, "translations": None,
        "backward": None, "closest": 1, "max_ratio": None, "folder": str(tmp_path / "out"),
        "device": "cpu", "precision": "fp32", "num_threads": 1,
    }  # fmt: skip


def rows(settings: dict[str, Any], name: str) -> list[list[str]]:
    return [line.split("\t") for line in tiny.read_lines(Path(settings["folder"]) / f"{name}.tsv")]


def test_targets_are_the_best_translations_with_their_cross_entropies(
    settings: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    counts = write_targets(settings, QUIET)["counts"]
    assert sum(counts.values()) == NUM_LINES + NUM_MONO
    teacher = Translator.load(trained, device="cpu", precision="fp32", beam_size=3)
    scorer = Translator.load(
        trained, device="cpu", precision="fp32", length_penalty=1.0, penalty_kind="simple"
    )
    for name, file in (("train-0", "t.src"), ("mono", "mono")):
        found = rows(settings, name)
        srcs = tiny.read_lines(tmp_path / file)
        wanted = dict(zip(srcs, (each.text for each in teacher.translate(srcs)), strict=True))
        assert found and all(wanted[src] == tgt for src, tgt, _ in found)
        scores = scorer.score([row[0] for row in found], [row[1] for row in found])
        assert [float(row[2]) for row in found] == pytest.approx([-s.score for s in scores], abs=1e-3)
    assert write_targets(settings, QUIET)["counts"] == counts  # what is done is not done again


def test_the_translation_closest_to_the_reference_is_taken(
    settings: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    write_targets(settings | {"closest": 3}, QUIET)
    teacher = Translator.load(trained, device="cpu", precision="fp32", beam_size=3, n_best=3)
    srcs, refs = tiny.read_lines(tmp_path / "t.src"), tiny.read_lines(tmp_path / "t.tgt")
    wanted, best = {}, {}
    for src, ref, found in zip(srcs, refs, teacher.translate_n_best(srcs), strict=True):
        texts = [each.text for each in found]
        wanted[src] = texts[make_utility("bleu")(texts, [ref])[:, 0].argmax()]
        best[src] = texts[0]
    found_rows = rows(settings, "train-0")
    assert all(wanted[src] == tgt for src, tgt, _ in found_rows)
    assert any(best[src] != tgt for src, tgt, _ in found_rows)


def test_the_teacher_may_search_by_minimum_bayes_risk(
    settings: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    decoding = {"mbr": "chrf", "mbr_candidates": 4, "sample": False, "groups": 1}
    write_targets(settings | {"decoding": decoding}, QUIET)
    teacher = Translator.load(trained, device="cpu", precision="fp32", **decoding)
    srcs = tiny.read_lines(tmp_path / "t.src")
    wanted = dict(zip(srcs, (each.text for each in teacher.translate(srcs)), strict=True))
    found = rows(settings, "train-0")
    assert found and all(wanted[src] == tgt for src, tgt, _ in found)


def test_a_file_of_translations_takes_the_place_of_a_teacher(
    settings: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    given = [f"text {number} of another system" for number in range(NUM_LINES + NUM_MONO)]
    file = tiny.write_lines(tmp_path / "given", given)
    own = settings | {"teachers": [], "translations": str(file), "backward": str(trained)}
    assert write_targets(own, QUIET)["counts"] == {"kept": NUM_LINES + NUM_MONO}
    found = [*rows(settings, "train-0"), *rows(settings, "mono")]
    assert [row[1] for row in found] == given
    scorer = Translator.load(
        trained, device="cpu", precision="fp32", length_penalty=1.0, penalty_kind="simple"
    )
    scores = scorer.score(given, [row[0] for row in found])
    assert [float(row[2]) for row in found] == pytest.approx([-s.score for s in scores], abs=1e-3)
    for number in (-1, 1):
        lines = [*given, "one more"][: len(given) + number]
        own["translations"] = str(tiny.write_lines(tmp_path / f"given{number}", lines))
        own["folder"] = str(tmp_path / f"out{number}")
        wrong = NUM_LINES + NUM_MONO + number
        with pytest.raises(DataError, match=f"{wrong} lines, but the training corpora and `mono` have 17"):
            write_targets(own, QUIET)


def test_text_and_translations_may_be_documents(settings: dict[str, Any], tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    srcs = tiny.read_lines(tmp_path / "mono")
    given = [f"text {number} of another system" for number in range(NUM_LINES + NUM_MONO)]
    mono = sheet(tmp_path / "mono.xlsx", [("fr", "en"), *(("", src) for src in srcs)])
    book = openpyxl.load_workbook(mono)
    book.create_sheet().append(["en"])
    book.save(mono)
    file = tmx(tmp_path / "given.tmx", [("a cat", text) for text in given])
    settings |= {"mono": [str(mono)], "teachers": [], "translations": str(file)}
    told = io.StringIO()
    write_targets(settings, Context(Console(file=told, width=500)))
    assert f"{mono}: only the first of 2 sheets is read" in told.getvalue()
    wanted = [[src, text, "0.0000"] for src, text in zip(srcs, given[NUM_LINES:], strict=True)]
    assert rows(settings, "mono") == wanted


def test_the_dual_score_is_that_of_both_directions(settings: dict[str, Any], trained: Path) -> None:
    write_targets(settings | {"backward": str(trained)}, QUIET)
    scorer = Translator.load(
        trained, device="cpu", precision="fp32", length_penalty=1.0, penalty_kind="simple"
    )
    for src, tgt, entropy in rows(settings, "mono"):
        f, b = -scorer.score([src], [tgt])[0].score, -scorer.score([tgt], [src])[0].score
        assert float(entropy) == pytest.approx(abs(f - b) + (f + b) / 2, abs=1e-3)


def test_the_worst_pairs_are_left_out_of_all_corpora_together(tmp_path: Path) -> None:
    source = tmp_path / "translations"
    source.mkdir()
    for name, entropies in (("train-0", [0.1, 3.0, 0.2, 0.3]), ("mono", [2.0, 0.4])):
        tiny.write_lines(source / f"{name}.tsv", [f"s {e}\tt {e}\t{e:.4f}" for e in entropies])
    settings = {"translations": str(source), "names": ["train-0", "mono"], "folder": str(tmp_path / "out")}
    result = choose_targets(settings | {"drop_worst": 0.4}, QUIET)
    assert (result["pairs"], result["left_out"]) == ({"train-0": 3, "mono": 1}, 2)
    assert tiny.read_lines(tmp_path / "out" / "train-0.src") == ["s 0.1", "s 0.2", "s 0.3"]
    assert tiny.read_lines(tmp_path / "out" / "mono.tgt") == ["t 0.4"]
    result = choose_targets(settings | {"drop_worst": 0.0, "folder": str(tmp_path / "all")}, QUIET)
    assert (result["pairs"], result["limit"]) == ({"train-0": 4, "mono": 2}, None)


def test_what_cannot_be_is_refused(config: Path, tmp_path: Path) -> None:
    loaded = load_config(config)
    with pytest.raises(ConfigError, match="no teacher"):
        Distillation(loaded, (), {}).check()
    with pytest.raises(ConfigError, match="one translation of each line"):
        Distillation(loaded, (), {}, translations="x", closest=2).check()
    plan = Distillation(loaded, ("teacher",), {})
    plan.small.mkdir(parents=True)
    with pytest.raises(ConfigError, match="it is not a model"):
        plan.check()
    plan.small.rmdir()
    links = {"train": [{**loaded.data.train[0].model_dump(exclude_none=True), "alignments": "links"}]}
    values = config_to_dict(loaded)
    values["data"] |= links
    values["training"]["guided_alignment"] = 1.0
    with pytest.raises(ConfigError, match="machine translations have no alignments"):
        Distillation(parse_config(values), ("teacher",), {}).check()


@pytest.mark.parametrize("key", ["data.test.0.src=nowhere", "tokenizer={model: nowhere}"])
def test_a_file_that_only_the_student_reads_is_missed_at_once(config: Path, trained: Path, key: str) -> None:
    with pytest.raises(DataError, match=r"nowhere.*no such file"):
        Distillation(load_config(config, [key]), (str(trained),), {}).check()


@pytest.mark.parametrize("preset", ["student", "auto"])
def test_the_epochs_of_a_named_preset_are_no_end(tmp_path: Path, corpus: Path, preset: str) -> None:
    source = tiny.write_config(tmp_path / "c.yaml", run=tmp_path / "run", root=corpus)
    keys = [f"preset={preset}", "training={max_epochs: 5}"]
    plan = Distillation(load_config(source, keys), (), {}, translations="x")
    if preset == "auto":
        plan.check()
        return
    with pytest.raises(
        ConfigError, match=r"training\.max_steps: preset student would end with its own updates"
    ):
        plan.check()


def test_a_model_of_the_wrong_direction_is_refused(config: Path, trained: Path) -> None:
    values = config_to_dict(load_config(config))
    data = values["data"]
    backward = parse_config(values | {"data": data | {"src": data["tgt"], "tgt": data["src"]}})
    with pytest.raises(ConfigError, match="translates from en to fr, not from fr to en"):
        Distillation(backward, (str(trained),), {}).check()
    with pytest.raises(ConfigError, match="translates from en to fr, not from fr to en"):
        Distillation(load_config(config), (), {}, translations="x", backward=str(trained)).check()


def test_a_tag_that_the_teacher_does_not_know_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the teacher does not know the tag '<bt>'"):
        write_targets(settings | {"tags": {"train-0": "<bt>", "mono": ""}}, QUIET)


def test_the_students_config_names_the_teacher_and_keeps_what_is_validated_on(
    config: Path, trained: Path
) -> None:
    loaded = load_config(config)
    search = {"mbr": "chrf", "mbr_candidates": 4}
    plan = Distillation(loaded, (str(trained), "runs/b"), search, mono=("m",), keep_original=True)
    student = plan.student_config({"pairs": {"train-0": 7, "mono": 0}})
    original, targets = student.data.train
    assert original == loaded.data.train[0]
    how = f"{trained} + runs/b with mbr chrf of 4 hypotheses (distillation)"
    assert targets.synthetic == f"7 sentences translated by {how}"
    assert targets.src is not None and Path(targets.src).is_absolute()
    assert (student.data.valid, student.data.test) == (loaded.data.valid, loaded.data.test)
    widened = Distillation(loaded, (str(trained),), {"mbr": None}, closest=8)
    assert widened.teacher == f"{trained} with beam 8, of 8 the closest to the reference"


def test_each_option_is_a_part_of_the_plan(
    trained: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Distillation] = []

    def run(self: Distillation, *_: Any, **__: Any) -> dict[str, Any]:
        plans.append(self)
        return {"systems": []}

    monkeypatch.setattr(Distillation, "run", run)
    options = (
        "--mono", "a", "--mono", "b", "--backward", "back", "--closest", 3, "--max-ratio", 2, "--drop-worst", 0.1,
        "--keep-original", "--first", 50, "--best", 20, "--teacher-search", "mbr:chrf", "--mbr-candidates", 8,
    )  # fmt: skip
    code, _, err = tiny.mtkit("distill", trained, "--student", config, "-o", tmp_path / "s", *options)
    assert code == 0, err
    code, _, err = tiny.mtkit("distill", "--student", config, "-o", tmp_path / "s", "--translations", "file")
    assert code == 0, err
    first, second = plans
    decoding = {"mbr": "chrf", "sample": False, "groups": 1, "mbr_candidates": 8}
    assert first == Distillation(
        first.config, (str(trained),), decoding, mono=("a", "b"), backward="back", closest=3, max_ratio=2.0,
        drop_worst=0.1, keep_original=True, first=50, best=20,
    )  # fmt: skip
    assert (second.teachers, second.translations, second.max_ratio) == ((), "file", 3.0)


def test_the_beam_of_minimum_bayes_risk_has_no_size_of_its_own(config: Path, tmp_path: Path) -> None:
    options = ("--teacher-search", "mbr:chrf", "--beam-size", 4)
    code, _, err = tiny.mtkit("distill", "teacher", "--student", config, "-o", tmp_path / "s", *options)
    assert code == 2
    assert "--beam-size cannot be combined with --teacher-search mbr:METRIC" in tiny.one_line(err)


def test_a_student_may_start_from_a_model(config: Path) -> None:
    kept = [line for line in tiny.read_lines(config) if not line.startswith(("tokenizer:", "model:"))]
    loaded = load_config(tiny.write_lines(config, ["init: runs/other", *kept]), ["model.dropout=0.3"])
    student = Distillation(loaded, (), {}, translations="x").student_config({"pairs": {"train-0": 7}})
    for found in (student, parse_config(training("student", student).settings["config"])):
        assert found.tokenizer.model_fields_set == set() and found.model.model_fields_set == {"dropout"}


def test_an_option_that_is_new_in_a_second_call_is_noticed_at_its_default(
    config: Path, trained: Path
) -> None:
    loaded = load_config(config)
    before, after = (Distillation(loaded, (str(trained),), keys) for keys in ({}, {"beam_size": 5}))
    found = describe_differences(before._translate().settings, after._translate().settings)
    assert found == "decoding.beam_size: null -> 5"


def test_the_shortlist_of_the_teacher_and_the_held_out_files_are_inputs(
    config: Path, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    plan = Distillation(load_config(config), (str(teacher),), {})
    assert teacher / SHORTLIST_FILE not in plan._translate().inputs
    (teacher / SHORTLIST_FILE).touch()
    assert teacher / SHORTLIST_FILE in plan._translate().inputs
    for split, overrides in (("test", []), ("valid", ["data.test=[]"])):
        student = load_config(config, overrides)
        assert plan._compare(student).inputs[-2:] == (corpus / f"{split}.src", corpus / f"{split}.tgt")


def test_translations_of_another_job_are_replaced_when_started_over(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    for text, context in (("one", QUIET), ("two", Context(QUIET.console, fresh=True))):
        file = tiny.write_lines(tmp_path / text, [text] * (NUM_LINES + NUM_MONO))
        write_targets(settings | {"teachers": [], "translations": str(file)}, context)
        assert {row[1] for row in rows(settings, "mono")} == {text}


def test_a_large_test_set_is_compared_on_a_sample(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation_stages, "_MOST_COMPARED", 4)
    monkeypatch.setattr("mtkit.model.cpu.packing.can_multiply_int8", lambda: False)
    config = config_to_dict(load_config(trained / "config.yaml", [f"run={trained}"]))
    total = len(distillation_stages._held_out(parse_config(config)).srcs)
    told = io.StringIO()
    settings = {"config": config, "teachers": [], "num_threads": 1, "small": ""}
    found = compare_systems(settings, Context(Console(file=told, width=200)))
    assert found["lines"] == 4 < total
    assert f"on 4 of the {total:,} lines of" in told.getvalue()


@pytest.mark.slow
def test_a_student_from_the_command_line(trained: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "student"
    keys = (
        "training.max_steps=4",
        "validation.every_steps=2",
        "model.decoder_layers=1",
        "training.warmup_steps=0",
    )
    sets = [argument for key in keys for argument in ("--set", key)]
    arguments = (trained, "--student", config, "-o", run, "--beam-size", 2, "--max-ratio", 0, *sets)
    code, out, err = tiny.mtkit("distill", *arguments)
    assert code == 0, err
    for label in ("teacher, beam 5", "student, fp32, greedy", "student, fp32, greedy, shortlist"):
        assert label in out
    assert (run / "shortlist.safetensors").exists() and (tmp_path / "student-int8" / "manifest.json").exists()
    assert str(trained) in (run / "config.yaml").read_text("utf-8")
    aligner = json.loads((tmp_path / "student.stages/stages/shortlist.json").read_text())["result"]["aligner"]
    assert aligner in (str(trained), str(run))
    code, again, err = tiny.mtkit("distill", *arguments)
    assert code == 0 and err.count("done before") == 6
    assert again == out
    code, _, err = tiny.mtkit("distill", *arguments, "--drop-worst", 0.5)
    assert (
        code == 2
        and "stage targets was started with other settings or inputs: drop_worst: 0.02 -> 0.5" in err
    )
