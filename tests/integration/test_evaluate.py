"""`mtkit evaluate` with several systems and test sets: its formats, its warnings, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from mtkit.cli import evaluation_tables
from mtkit.cli.test_sets import split_pair
from mtkit.errors import ConfigError
from mtkit.evaluation.metrics import Score, score, score_sentences
from mtkit.evaluation.significance import compare
from mtkit.translation.robustness import KINDS

REFS = [tgt for _, tgt in tiny.pairs(30, seed=5)]
GOOD = [line.replace("le ", "un ") for line in REFS]
BAD = [" ".join(line.split()[::2]) for line in REFS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with references and two systems."""
    for name, lines in (("ref", REFS), ("good", GOOD), ("bad", BAD), ("src", ["a line"] * 30)):
        tiny.write_lines(tmp_path / f"{name}.txt", lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*arguments: object) -> str:
    """Return what `mtkit evaluate` prints to stdout; nothing on stderr."""
    code, out, err = tiny.mtkit("evaluate", *arguments)
    assert (code, err) == (0, "")
    return out


def refused(code: int, *arguments: object) -> str:
    found, out, err = tiny.mtkit("evaluate", *arguments)
    assert (found, out) == (code, ""), err
    return tiny.one_line(err)


FILES = ("bad.txt", "good.txt", "--ref", "ref.txt")
FEW = ("--resamples", 50)


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_systems_are_compared_with_the_first(folder: Path, test: Any) -> None:
    more = [] if test == "bs" else ["--paired", "ar", "--trials", 60]
    [found] = json.loads(evaluate(*FILES, *FEW, *more, "--seed", 3, "--format", "json"))
    assert (found["name"], found["sentences"]) == ("ref.txt", 30)
    assert [system["name"] for system in found["systems"]] == ["bad.txt", "good.txt"]
    expected = compare([BAD, GOOD], [REFS], test=test, num_bootstrap=50, num_trials=60, seed=3)
    assert [s["scores"] for s in found["systems"]] == [
        [one.as_dict() for one in scores] for scores in expected
    ]
    assert all("p_value" not in one for one in found["systems"][0]["scores"])
    assert all(0 < one["p_value"] <= 1 for one in found["systems"][1]["scores"])


def test_without_a_paired_test_each_system_has_its_own_scores(folder: Path) -> None:
    for off, size in ((["--paired", "none", *FEW], 50), (["--resamples", 0], 0)):
        [found] = json.loads(evaluate(*FILES, *off, "--json"))
        for system, hyps in zip(found["systems"], (BAD, GOOD), strict=True):
            expected = score(hyps, [REFS], num_bootstrap=size)
            assert system["scores"] == [one.as_dict() for one in expected]


def test_the_baseline_can_be_any(folder: Path) -> None:
    for systems, baseline in ((["bad.txt", "good.txt"], "good.txt"), (["bad.txt"], "./good.txt")):
        [found] = json.loads(
            evaluate(*systems, "--ref", "ref.txt", "--baseline", baseline, *FEW, "--json", "--metric", "ter")
        )
        assert [Path(system["name"]).name for system in found["systems"]] == ["good.txt", "bad.txt"]
        [good], [bad] = (system["scores"] for system in found["systems"])
        assert "p_value" in bad and "p_value" not in good


def test_tables(folder: Path) -> None:
    arguments = (*FILES, *FEW, "--metric", "bleu", "--metric", "ter")
    bad, good = compare([BAD, GOOD], [REFS], ["bleu", "ter"], num_bootstrap=50)

    def cell(one: Any) -> str:
        return f"{one.value:.2f} ± {one.confidence:.2f}"

    def difference(i: int, star: str = "*") -> str:
        assert good[i].p_value < 0.05
        return f"{good[i].value - bad[i].value:+.2f}, p = {good[i].p_value:.4f}{star}"

    shown = evaluate(*arguments)
    rows = [" ".join(line.split()) for line in shown.split("\n")]
    assert rows[0] == "System BLEU ± 95 % CI TER ± 95 % CI"
    assert rows[2:5] == [
        f"bad.txt (baseline) {cell(bad[0])} {cell(bad[1])}",
        f"good.txt {cell(good[0])} {cell(good[1])}",
        f"{difference(0)} {difference(1)}",
    ]
    notes = [
        f"BLEU|{bad[0].signature}",
        f"TER|{bad[1].signature}",
        "p: paired bootstrap resampling against bad.txt (30 sentences); * is p < 0.05: the difference is hardly "
        "chance",
    ]
    assert rows[6:] == [*notes, ""]
    assert len({len(line) for line in shown.split("\n")[2:4]}) == 1, "numbers end in one column"

    lines, star = evaluate(*arguments, "--format", "markdown").split("\n"), r"\*"
    best = [cell(one).replace(f"{one.value:.2f}", f"**{one.value:.2f}**", 1) for one in good]
    assert lines == [
        "| System | BLEU ± 95 % CI | TER ± 95 % CI |",
        "| --- | ---: | ---: |",
        f"| bad.txt (baseline) | {cell(bad[0])} | {cell(bad[1])} |",
        f"| good.txt | {best[0]}<br>{difference(0, star)} | {best[1]}<br>{difference(1, star)} |",
        "",
        f"- `{notes[0]}`",
        f"- `{notes[1]}`",
        f"- {notes[2].replace('*', star)}",
        "",
    ]

    lines = evaluate(*arguments, "--format", "latex").split("\n")
    assert lines[:3] == [f"% {note}" for note in notes]
    assert lines[3:7] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"System & BLEU $\pm$ 95 \% CI & TER $\pm$ 95 \% CI \\",
        r"\midrule",
    ]
    assert lines[7].startswith(f"bad.txt (baseline) & {bad[0].value:.2f} $\\pm$ ")
    assert lines[8].startswith(f"good.txt & \\textbf{{{good[0].value:.2f}}} $\\pm$ {good[0].confidence:.2f}")
    assert f"[${good[0].value - bad[0].value:+.2f}$, $p = {good[0].p_value:.4f}^{{*}}$]" in lines[8]
    assert lines[9:] == [r"\bottomrule", r"\end{tabular}", ""]


def test_names_in_tables_are_escaped_and_as_short_as_they_differ(folder: Path) -> None:
    for name, lines in (("a_1|x", GOOD), ("b&%", BAD)):
        (folder / "out" / name).mkdir(parents=True)
        tiny.write_lines(folder / "out" / name / "hyps.txt", lines)
    arguments = ("out/a_1|x/hyps.txt", "out/b&%/hyps.txt", "--ref", "ref.txt", "--resamples", 0)
    assert evaluate(*arguments).split("\n")[2].split()[0] == "a_1|x"
    markdown = evaluate(*arguments, "--format", "markdown").split("\n")
    assert markdown[2].startswith(r"| a\_1\|x | **")
    latex = evaluate(*arguments, "--format", "latex").split("\n")
    assert [line.partition(" & ")[0] for line in latex[7:9]] == [r"a\_1|x", r"b\&\%"]


def test_one_system_in_a_table(folder: Path) -> None:
    [bleu] = score(GOOD, [REFS], ["bleu"])
    shown = evaluate(
        "good.txt", "--ref", "ref.txt", "--metric", "bleu", "--resamples", 0, "--format", "markdown"
    )
    assert shown.split("\n")[2] == f"| good.txt | {bleu.value:.2f} |"


def test_bare_numbers_of_several_systems(folder: Path) -> None:
    out = evaluate(*FILES, "-q", "--resamples", 0, "--metric", "bleu", "--metric", "chrf")
    expected = [score(hyps, [REFS], ["bleu", "chrf"]) for hyps in (BAD, GOOD)]
    assert out == "".join(f"{bleu.value:.2f}\t{chrf.value:.2f}\n" for bleu, chrf in expected)


def test_several_test_sets_and_references(folder: Path) -> None:
    """Of several sets, a file has the translations one after the other, and a folder a file for each."""
    tiny.write_lines(folder / "short.src", ["a line"] * 10)
    tiny.write_lines(folder / "short.ref", REFS[5:15])
    tiny.write_lines(folder / "both.txt", [*GOOD, *BAD[5:15]])
    (folder / "test").mkdir()
    tiny.write_lines(folder / "test" / "src.hyps.txt", GOOD)
    tiny.write_lines(folder / "test" / "short.hyps.txt", BAD[5:15])
    sets = ["--test", "src.txt,ref.txt,good.txt", "--test", "short.src,short.ref"]
    options = ["--metric", "bleu", "--resamples", 0]
    first, second = score(GOOD, [REFS, GOOD], ["bleu"]), score(BAD[5:15], [REFS[5:15]], ["bleu"])
    assert "nrefs:2" in first[0].signature
    for hyps in ("both.txt", "test"):
        found = json.loads(evaluate(hyps, *sets, *options, "--json"))
        assert found == [
            {"name": "src", "scores": [first[0].as_dict()]},
            {"name": "short", "scores": [second[0].as_dict()]},
        ]
    text = evaluate("both.txt", *sets, *options)
    assert text == f"src\n{first[0].format()}\nshort\n{second[0].format()}\n"
    markdown = evaluate("both.txt", *sets, *options, "--format", "markdown").split("\n")
    assert markdown[0] == "| Test set | System | BLEU |"
    assert markdown[2:4] == [
        f"| src | both.txt | {first[0].value:.2f} |",
        f"| short | both.txt | {second[0].value:.2f} |",
    ]
    assert markdown[5:7] == [
        f"- `BLEU|{first[0].signature} (src)`",
        f"- `BLEU|{second[0].signature} (short)`",
    ]
    twice = json.loads(evaluate("both.txt", *(["--test", "short.src,short.ref"] * 4), *options, "--json"))
    assert [of_set["name"] for of_set in twice] == ["short", "short-2", "short-3", "short-4"]

    line = refused(3, "good.txt", *sets)
    assert "good.txt: 30 lines, but the test sets have 30 + 10 = 40" in line
    shutil.copy("src.txt", "x")
    assert "no references" in refused(2, "test")
    line = refused(2, "test", "--test", "x,ref.txt")
    assert "no x.hyps.txt" in line
    assert "(there are: short.hyps.txt, src.hyps.txt)" in line
    (folder / "test" / "short.hyps.txt").unlink()
    assert evaluate("test", "--ref", "ref.txt", *options) == evaluate(
        "good.txt", "--ref", "ref.txt", *options
    )


def test_a_tsv_is_read_in_the_order_of_the_languages_in_its_name(folder: Path) -> None:
    """Unless --columns gives the order."""
    tiny.write_lines(folder / "test.en-fr.tsv", [f"a line of five words\t{ref}" for ref in REFS])
    options = ["--metric", "bleu", "--resamples", 0]
    own = evaluate("good.txt", "--ref", "ref.txt", *options)
    assert evaluate("good.txt", "--test", "test.en-fr.tsv", "--langs", "en-fr", *options) == own
    assert evaluate("good.txt", "--test", "test.en-fr.tsv", "--columns", 1, 2, *options) == own
    tiny.write_lines(folder / "lines.txt", ["a line of five words"] * 30)
    code, out, err = tiny.mtkit(
        "evaluate", "lines.txt", "--test", "test.en-fr.tsv", "--langs", "fr-en", *options
    )
    assert (code, "100.00" in out) == (0, True)
    assert "test.en-fr.tsv: by its name, fr is the second column (if not: --columns 1 2)" in err


def test_sets_of_sacrebleu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sets of sacreBLEU, two systems: a table in which each set is a heading."""
    refs_of = {"wmt19": [REFS[:10]], "wmt20": [REFS[10:], GOOD[10:]]}

    def load(name: str, src: str, tgt: str) -> tuple[list[str], list[list[str]]]:
        assert (src, tgt) == ("en", "fr")
        return ["a line"] * len(refs_of[name][0]), refs_of[name]

    monkeypatch.setattr("mtkit.evaluation.metrics.load_test_set", load)
    sets = ["--test-set", "wmt19", "--test-set", "wmt20", "--langs", "en-fr", "--metric", "chrf"]
    rows = [" ".join(line.split()) for line in evaluate("bad.txt", "good.txt", *sets, *FEW).split("\n")]
    expected = [
        compare([hyps[part] for hyps in (BAD, GOOD)], refs, ["chrf"], num_bootstrap=50)
        for part, refs in zip((slice(10), slice(10, 30)), refs_of.values(), strict=True)
    ]
    assert rows[2] == "wmt19" and rows[7] == "wmt20"
    for start, ([bad], [good]) in zip((3, 8), expected, strict=True):
        assert rows[start] == f"bad.txt (baseline) {bad.value:.2f} ± {bad.confidence:.2f}"
        assert rows[start + 1] == f"good.txt {good.value:.2f} ± {good.confidence:.2f}"
        assert rows[start + 2].startswith(f"{good.value - bad.value:+.2f}, p = {good.p_value:.4f}")
    assert rows[12] == f"chrF2|{expected[0][0][0].signature} (wmt19)"
    assert "nrefs:2" in rows[13]


def test_scores_of_sentences(folder: Path) -> None:
    options = ["--metric", "bleu", "--metric", "ter", "--resamples", 0, "--segments", "scores.tsv", "-q"]
    evaluate(*FILES, *options)
    header, *rows = (line.split("\t") for line in tiny.read_lines(folder / "scores.tsv"))
    by_system = [score_sentences(hyps, [REFS], ["bleu", "ter"]) for hyps in (BAD, GOOD)]
    assert header == ["test set", "sentence", "system", *(f"{s.name}|{s.signature}" for s in by_system[0])]
    assert "eff:yes" in header[3]
    assert rows == [
        ["ref.txt", str(i + 1), name, f"{bleu.values[i]:.6f}", f"{ter.values[i]:.6f}"]
        for name, (bleu, ter) in zip(("bad.txt", "good.txt"), by_system, strict=True)
        for i in range(30)
    ]


def test_scores_of_sentences_with_different_numbers_of_references(folder: Path) -> None:
    tiny.write_lines(folder / "both.txt", BAD * 2)
    sets = ["--test", "src.txt,ref.txt", "--test", "src.txt,ref.txt,good.txt"]
    names = ["--metric", "bleu", "--metric", Path(__file__).parents[1] / "token_f1.py"]
    evaluate("both.txt", *sets, *names, "--resamples", 0, "--segments", "scores.tsv", "-q")
    header, *rows = tiny.read_lines(folder / "scores.tsv")
    assert len(rows) == 60
    assert "BLEU|nrefs:var|" in header and "token F1|nrefs:var-mean|" in header


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["bad.txt", "./bad.txt", "--ref", "ref.txt"], 2, ["./bad.txt: given twice, as bad.txt"]),
        (["bad.txt", "bad.txt", "--ref", "ref.txt"], 2, ["bad.txt: given twice (leave out one)"]),
        ([*FILES, "--format", "html"], 2, ["--format: unknown format 'html'", "markdown"]),
        ([*FILES, "--format", "latex", "--json"], 2, ["--json cannot be combined with --format latex"]),
        ([*FILES, "--paired", "t-test"], 2, ["--paired: unknown test 't-test'", "bs, ar or none"]),
        ([*FILES, "--paired", "bs", "--resamples", "0"], 2, ["--paired bs needs resamples"]),
        (["bad.txt", "--ref", "ref.txt", "--paired", "ar"], 2, ["--paired ar needs two systems"]),
        ([*FILES, "--seed", "0"], 2, ["--seed"]),
        ([*FILES, "--metric", "comet23"], 2, ["unknown metric 'comet23'"]),
        ([*FILES, "--metric", "bleu-moses"], 2, ["bleu-moses needs the target language", "--langs en-de"]),
        ([*FILES, "--segments", "ref.txt"], 2, ["--segments: ref.txt is also another file"]),
        ([*FILES, "--segments", "s.tsv.gz"], 2, ["--segments: s.tsv.gz would be plain text"]),
        ([*FILES, "--segments", "none/s.tsv"], 2, ["--segments: none/s.tsv cannot be written"]),
        ([*FILES, "--segments", "-"], 2, ["--segments: - cannot be written"]),
        ([*FILES, "--tag", "<2fr>"], 2, ["--tag needs --model"]),
        ([*FILES, "--device", "cpu"], 2, ["--device needs --model"]),
        ([*FILES, "--precision", "fp32"], 2, ["--precision needs --model"]),
        ([*FILES, "--workers", "2"], 2, ["--workers needs --model"]),
        ([*FILES, "--threads", "2"], 2, ["--threads needs --model"]),
        (["good.txt", "short", "--ref", "ref.txt"], 3, ["short: 1 line, but 30 in ref.txt"]),
        (["good.txt", "empty", "--ref", "ref.txt"], 3, ["empty: 0 lines, but 30 in ref.txt"]),
        (["good.txt", "bad.txt", "--ref", "empty"], 3, ["empty: nothing to score"]),
        (["good.txt", "latin", "--ref", "ref.txt"], 3, ["latin:2: not UTF-8: 0xe9"]),
        (["good.txt", "--ref", "ref.txt", "--ref", "short"], 3, ["ref.txt: 30 lines, but 1 in short"]),
        (["good.txt", "--ref", "ref.txt", "--baseline", "god.txt"], 3, ["did you mean good.txt?"]),
        (["good.txt", "--test", "ref.txt"], 2, ["--test", "text files: --test SRC,REF"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused(folder: Path, arguments: list[str], code: int, parts: list[str]) -> None:
    tiny.write_lines(folder / "short", ["un chien"])
    (folder / "empty").touch()
    (folder / "latin").write_bytes(b"un chat\nun \xe9l\n")
    line = refused(code, *arguments)
    assert [part for part in parts if part not in line] == [], line
    assert not (folder / "s.tsv.gz").exists()


def test_what_is_pointed_out(folder: Path) -> None:
    tiny.write_lines(folder / "again.txt", GOOD)
    tiny.write_lines(folder / "other.txt", [tgt for _, tgt in tiny.pairs(30, seed=77)])
    options = ["--ref", "ref.txt", "--resamples", 0, "--metric", "bleu"]
    code, out, err = tiny.mtkit("evaluate", "good.txt", "again.txt", "other.txt", *options)
    assert (code, out != "") == (0, True)
    assert err.split("\n") == [
        "again.txt: the same translations as good.txt",
        "other.txt: no closer to its own references (ref.txt) than to those of other lines: is it a translation of "
        "this test set, in this order?",
        "",
    ]
    assert tiny.mtkit("evaluate", "good.txt", "again.txt", *options, "-q")[2] == ""


def test_models_and_files(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """A file is compared with a model on the model's own test set; what a broken model does not reach is kept."""
    hyps = tmp_path / "hyps.txt"
    hyps.write_text(tiny.mtkit("translate", trained, corpus / "test.src")[1])
    options = ["--metric", "bleu", "--resamples", 20, "--json"]
    [found] = json.loads(evaluate(hyps, "--model", trained, "-q", *options))
    assert [system["name"] for system in found["systems"]] == [str(hyps), str(trained)]
    one, other = (system["scores"][0] for system in found["systems"])
    assert other.pop("p_value") == 1 / 21, "as in sacreBLEU, although there is no difference"
    assert one == other
    for output_format, words in (("text", " no difference\n"), ("latex", r" [no difference] \\" + "\n")):
        arguments = (hyps, "--model", trained, *options[:-1], "--format", output_format)
        _, out, err = tiny.mtkit("evaluate", *arguments)
        assert words in out
        assert err == f"{trained}: the same translations as {hyps}\n"
    as_baseline = ["--baseline", trained, "--beam-size", 3]
    [turned] = json.loads(evaluate(hyps, *as_baseline, "-q", *options))
    assert [system["name"] for system in turned["systems"]] == [str(trained), str(hyps)]
    [alone] = json.loads(evaluate("--model", trained, "-q", *options))
    assert alone["scores"][0]["score"] == one["score"]
    assert alone["name"] == found["name"] == "test"

    broken = shutil.copytree(trained, tmp_path / "broken")
    for weights in broken.rglob("model.safetensors"):
        weights.write_bytes(b"broken")
    code, out, err = tiny.mtkit("evaluate", hyps, "--model", broken, "--model", trained, "-q", *options)
    assert (code, str(broken) in tiny.one_line(err)) == (5, True)
    [kept] = json.loads(out)
    assert kept["scores"][0]["score"] == one["score"]
    code, out, err = tiny.mtkit("evaluate", "--model", broken, "-q", *options)
    assert (code, out) == (5, "")

    german = shutil.copytree(trained, tmp_path / "german")
    config = (german / "config.yaml").read_text().replace("tgt: fr\n", "tgt: de\n")
    for side in ("src", "tgt"):
        config = config.replace(f"test.{side}", f"valid.{side}")
    (german / "config.yaml").write_text(config)
    for more in ((), ("--baseline", german)):
        _, out, err = tiny.mtkit("evaluate", "--model", trained, "--model", german, *more, *options)
        assert f"{german}: translates into de, not fr as {trained}" in err
        assert json.loads(out)[0]["name"] == "test", "the test set of the first --model"


def test_robustness_in_all_formats(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """Of one model and of two, with the scores that the clean test set has otherwise."""
    for side in ("src", "tgt"):
        tiny.write_lines(tmp_path / f"few.{side}", tiny.read_lines(corpus / f"test.{side}")[:4])
    test = ["--test", f"{tmp_path / 'few.src'},{tmp_path / 'few.tgt'}", "--metric", "chrf"]
    [usual] = json.loads(evaluate("--model", trained, "-q", *test, "--resamples", 0, "--json"))
    options = [*test, "--robustness"]
    [found] = json.loads(evaluate("--model", trained, "-q", *options, "--json"))
    [system] = found["systems"]
    clean, *changed = system["copies"]
    assert (found["name"], clean["scores"][0]["score"]) == ("few", usual["scores"][0]["score"])
    assert {copy["copy"] for copy in changed} | set(found["left_out"]) == set(KINDS)
    capitals = next(copy for copy in changed if copy["copy"] == "all capitals")
    difference = capitals["scores"][0]["score"] - clean["scores"][0]["score"]
    assert capitals["scores"][0]["difference"] == pytest.approx(difference)

    models = ["--model", trained, "--model", shutil.copytree(trained, tmp_path / "other")]
    code, out, err = tiny.mtkit("evaluate", *models, *options)
    assert (code, "system" in out, "chrF2|nrefs:1|" in out) == (0, True, True)
    assert " lines, for each model\n" in err
    header, _, *rows = evaluate(*models, *options, "--format", "markdown").split("\n")
    titles = "copy | system | lines | chrF2 | Δ | loops | copies | too long | too short | lost"
    assert header == f"| {titles} |"
    assert len([row for row in rows if row.startswith("| ")]) == 2 * len(system["copies"])
    latex = evaluate("--model", trained, *options, "--format", "latex")
    assert "\\begin{tabular}{lrrrrrrrr}" in latex

    assert "--robustness needs --model" in refused(2, "a.txt", "--ref", "b.txt", "--robustness")
    for others in (["--analysis"], ["--paired", "bs"], ["-q"]):
        assert "--robustness cannot be combined with" in refused(2, *models, "--robustness", *others)


def test_a_tag_must_be_a_token(trained: Path, corpus: Path) -> None:
    test = f"{corpus / 'test.src'},{corpus / 'test.tgt'}"
    line = refused(2, "--model", trained, "--test", test, "--tag", "<2xx>")
    assert "--tag: '<2xx>' is not a single token of the source vocabulary" in line
    assert "--tag needs --src, --test or --test-set" in refused(2, "--model", trained, "--tag", "<2xx>")


@pytest.mark.parametrize(("metric", "higher_is_better", "color"), [("BLEU", True, 32), ("TER", False, 31)])
def test_colors_tell_better_from_worse(
    monkeypatch: pytest.MonkeyPatch, metric: str, higher_is_better: bool, color: int
) -> None:
    console = Console(force_terminal=True, color_system="standard", width=80, no_color=False)
    monkeypatch.setattr(evaluation_tables, "make_console", lambda stream: console)
    base = Score(metric, 10.0, "v:1", higher_is_better=higher_is_better)
    other = Score(metric, 20.0, "v:1", p_value=0.001, higher_is_better=higher_is_better)
    results = [evaluation_tables.SetScores("test", 9, ["base", "other"], [[base], [other]])]
    assert f"\x1b[{color}m+10.00, p = 0.0010*" in evaluation_tables.render(results, "text", quiet=False)


@pytest.mark.parametrize(
    ("langs", "pair"),
    [
        ("en-de", ("en", "de")),
        ("en-zh-TW", ("en", "zh-TW")),
        ("zh-Hant-TW-en", ("zh-Hant-TW", "en")),
        ("eng_Latn-zho_Hans", ("eng_Latn", "zho_Hans")),
    ],
)
def test_codes_with_regions(langs: str, pair: tuple[str, str]) -> None:
    assert split_pair(langs) == pair


@pytest.mark.parametrize("langs", ["en", "en-", "en-zh-tw", "a-b-c-d"])
def test_what_is_no_pair_of_languages(langs: str) -> None:
    with pytest.raises(ConfigError, match="--langs"):
        split_pair(langs)


def test_segments_do_not_overwrite_what_is_read(folder: Path) -> None:
    Path("test.tsv").write_text("a\tb\n")
    for options in (
        [FILES[0], "--test", "test.tsv"],
        [FILES[0], "--test", "src.txt,test.tsv"],
        [*FILES, "--analysis", "--labels", "test.tsv"],
    ):
        code, _, err = tiny.mtkit("evaluate", *options, "--langs", "en-de", "--segments", "test.tsv")
        assert code == 2 and "test.tsv is also another file of this command" in tiny.one_line(err)
