"""Options of `mtkit translate` and `mtkit score`: effects, overrides and refusals, on a trained model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from mtkit.files import COMPRESSED_SUFFIXES
from mtkit.translation import loading

EXACT = ["-q", "--precision", "fp32"]


def translate(model: Path, *arguments: object, stdin: str | None = None) -> list[str]:
    code, out, err = tiny.mtkit("translate", model, *EXACT, *arguments, stdin=stdin)
    assert (code, err) == (0, ""), err
    return out.removesuffix("\n").split("\n")


def refused(*arguments: object, stdin: str = "the dog sees a cat .\n") -> str:
    code, out, err = tiny.mtkit(*arguments, stdin=stdin)
    assert (code, out) == (2, ""), err
    return tiny.one_line(err)


def with_decoding(trained: Path, folder: Path, **keys: str) -> Path:
    """Copy the model and change keys in the decoding section of its config."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints"))
    path = folder / "config.yaml"
    before, text = path.read_text().split("\ndecoding:\n")
    lines = [line for line in text.split("\n") if line.strip().split(":")[0] not in keys]
    path.write_text("\n".join([f"{before}\ndecoding:", *(f"  {k}: {v}" for k, v in keys.items()), *lines]))
    return folder


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--temperature", 0.5], "--temperature needs --sample"),
        (["--no-sample", "--seed", 0], "--seed needs --sample"),
        (["--sample", "--groups", 3], "--groups cannot be combined with --sample"),
        (["--scores", "--n-best", 1], "--scores cannot be combined with --n-best"),
        (["--mbr", "none", "--mbr-candidates", 4], "--mbr-candidates needs --mbr"),
        (["--top-p", 0], "--top-p: must be greater than 0, got 0.0 (the default is 1.0)"),
        (["--sample", "--temperature", 1e-30], "--temperature: must be at least 0.01, got 1e-30"),
        (["--length-penalty", 1e6], "--length-penalty: must be at most 5, got 1000000.0"),
        (["--length-penalty", -1e6], "--length-penalty: must be at least -5, got -1000000.0"),
        (["--max-length-ratio", 1e30], "--max-length-ratio: must be at most 1000, got 1e+30"),
        (["--coverage-penalty", 1e39], "--coverage-penalty: must be at most 100, got 1e+39"),
        (["--groups", 2, "--beam-size", 4, "--diversity", 1e39], "--diversity: must be at most 1000, got 1e+39"),
        (["-", "-"], "-: stdin can be read once"),
        (["--prefix", "-"], "-: stdin can be read once"),
        *((["-o", f"out{suffix}"], f"out{suffix} would be plain text") for suffix in COMPRESSED_SUFFIXES),
    ],
)  # fmt: skip
def test_refused_before_the_model_is_loaded(
    trained: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], what: str
) -> None:
    monkeypatch.setattr(loading, "load_stored_model", lambda path: pytest.fail("loaded"))
    assert what in refused("translate", trained, *options)


def test_other_commands_refuse_them_too(trained: Path, corpus: Path) -> None:
    benchmark = ["benchmark", "translate", trained, corpus / "test.src"]
    for against in ([], ["--against", "transformers"]):
        assert "--compute-type needs --against ctranslate2" in refused(
            *benchmark, "--compute-type", "int8", *against
        )
    assert "unknown system 'marian'" in refused(*benchmark, "--against", "marian")
    assert "--beam-size needs --model" in refused("evaluate", "a", "--ref", "b", "--beam-size", 2)
    score = ["score", trained, corpus / "test.src", corpus / "test.tgt"]
    assert "--length-penalty: " in refused(*score, "--length-penalty", 1e6)
    assert "-: stdin can be read once" in refused("score", trained, "-", "-")


def test_the_time_to_the_first_translation_is_that_of_the_same_search(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`translate` refuses a beam size if the model's config enables sampling, and so does the benchmark."""
    commands: list[list[str]] = []

    def fake(*_: object, command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(lines=list)

    monkeypatch.setattr("mtkit.benchmark.translate.benchmark_translate", fake)
    sampling = with_decoding(trained, tmp_path / "model", sample="true")
    for model, *options in ([sampling], [trained, "--beam-size", "2"]):
        assert tiny.mtkit("benchmark", "translate", model, corpus / "test.src", *options) == (0, "", "")
        assert ("--beam-size" in commands[-1]) == bool(options)
    line = refused("benchmark", "translate", sampling, corpus / "test.src", "--beam-size", 2)
    assert "--beam-size cannot be combined with decoding.sample" in line


def test_a_compressed_output_is_refused_for_each_process(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    line = refused("translate", trained, corpus / "test.src", "-o", tmp_path / "out.gz")
    assert f"(write to {tmp_path / 'out'}, then compress it)" in line
    assert list(tmp_path.iterdir()) == []


def test_torchrun_deals_out_the_shards_itself(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused("translate", trained, corpus / "test.src", "-o", tmp_path / "out", "--shard", "1/2")
    assert "--shard cannot be combined with torchrun" in line
    assert list(tmp_path.iterdir()) == []


def test_a_rank_without_a_world_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert "RANK is '1', but WORLD_SIZE does not tell" in refused("translate", trained)


def test_the_command_line_overrides_the_config(trained: Path, corpus: Path, tmp_path: Path) -> None:
    plain = translate(trained, corpus / "test.src")
    keys = {"sample": "true", "temperature": "5.0", "mbr": "chrf", "mbr_candidates": "4", "suppress": "[un]"}
    model = with_decoding(trained, tmp_path / "model", **keys)
    assert translate(model, corpus / "test.src") != plain
    back = ["--no-sample", "--mbr", "none", "--suppress", ""]
    assert translate(model, corpus / "test.src", *back) == plain
    assert translate(model, corpus / "test.src", "--seed", 2)  # samples are what the config asks for
    constraints = tiny.write_lines(tmp_path / "constraints", ["chat"])
    line = refused("translate", model, "--constraints", constraints)
    assert "--constraints cannot be combined with --sample, which the model's config enables" in line


def test_the_config_decides_where_the_command_line_is_silent(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    suppressed = translate(trained, corpus / "test.src", "--suppress", "un")
    assert suppressed != translate(trained, corpus / "test.src")
    model = with_decoding(trained, tmp_path / "model", suppress="[un]")
    assert translate(model, corpus / "test.src") == suppressed


@pytest.mark.parametrize("kind", ["gnmt", "simple"])
@pytest.mark.parametrize("penalty", [-5, 5])
def test_scores_are_numbers_at_the_bounds_of_the_length_penalty(
    trained: Path, corpus: Path, kind: str, penalty: int
) -> None:
    options = ["--penalty-kind", kind, "--length-penalty", penalty, "--coverage-penalty", 100]
    rows = translate(trained, corpus / "test.src", *options, "--scores", "--max-length-ratio", 20)
    assert all(abs(float(row.split("\t")[0])) < 1e30 for row in rows)


@pytest.mark.parametrize("temperature", [0.01, 100])
def test_samples_at_the_bounds_of_the_temperature(trained: Path, corpus: Path, temperature: float) -> None:
    rows = translate(trained, corpus / "test.src", "--sample", "--temperature", temperature)
    assert len(rows) == 16


@pytest.mark.parametrize("tag", ["", "the", "cat .", "<2fr>", "\u2581the"])
def test_tags_that_are_not_symbols(trained: Path, tag: str) -> None:
    assert "is not a single token of the source vocabulary" in refused("translate", trained, "--tag", tag)


def test_json_has_what_the_other_formats_have(trained: Path, corpus: Path) -> None:
    def output(*options: object) -> list[str]:
        code, out, err = tiny.mtkit("translate", trained, corpus / "test.src", "-q", *options)
        assert (code, err) == (0, "")
        return out.splitlines()

    aligned = ("--alignment", "pharaoh")
    found = list(map(json.loads, output("--json", "--n-best", 2, *aligned)))
    lines = [
        f"{number} ||| {each['text']} ||| {' '.join(f'{s}-{t}' for s, t in each['alignment'])} ||| {each['score']:.6f}"
        for number, line in enumerate(found, 1)
        for each in line["n_best"]
    ]
    assert lines == output("--n-best", 2, *aligned)
    best = [{key: value for key, value in line.items() if key != "n_best"} for line in found]
    assert best == [line["n_best"][0] for line in found]
    assert [f"{line['score']:.6f}\t{line['text']}" for line in map(json.loads, output("--json"))] == output(
        "--scores"
    )


def test_every_line_has_an_alignment_field(trained: Path) -> None:
    text = "the small dog sees a cat .\n\nthe king likes my bird .\n"
    rows = translate(trained, "--alignment", "pharaoh", stdin=text)
    assert [len(row.split(" ||| ")) for row in rows] == [2, 2, 2]
    assert rows[1] == " ||| "
    rows = translate(trained, "--alignment", "pharaoh", "--scores", stdin=text)
    assert rows[1] == "0.000000\t ||| "
    rows = translate(trained, "--alignment", "pharaoh", "--n-best", 2, stdin=text)
    assert [len(row.split(" ||| ")) for row in rows] == [4] * 5
    assert rows[2] == "2 |||  |||  ||| 0.000000"


@pytest.mark.parametrize(
    ("options", "others", "what"),
    [
        (["--n-best", 2], [], "written with --n-best"),
        ([], ["--n-best", 2], "written without --n-best"),
        (["--scores"], [], "written with --scores"),
        (["--alignment", "pharaoh"], ["--scores"], "without --scores"),
        (["--alternatives", 2], [], "written with --alternatives"),
        (["--n-best", 2, "--alignment", "pharaoh"], ["--n-best", 2], "written with --alignment"),
        (["--n-best", 2], ["--n-best", 2, "--alignment", "pharaoh"], "written without --alignment"),
        (
            ["--n-best", 2, "--shard", "1/2"],
            ["--n-best", 2, "--shard", "2/2"],
            "not the output of a job that begins at line 9",
        ),
        (["--n-best", 2], ["--n-best", 2, "--shard", "1/4"], "has 15 lines, but there are 4 to translate"),
    ],
)
def test_an_output_with_other_options_is_not_resumed(
    trained: Path, corpus: Path, tmp_path: Path, options: list[object], others: list[object], what: str
) -> None:
    output = tmp_path / "out"
    job = ["translate", trained, corpus / "test.src", *EXACT, "-o", output]
    assert tiny.mtkit(*job, *options)[0] == 0
    before = output.read_bytes()
    assert what in refused(*job, *others, "--resume")
    assert output.read_bytes() == before


def test_a_job_is_not_resumed_with_another_shortlist(trained: Path, corpus: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    output = tmp_path / "out"
    job = ["translate", model, corpus / "test.src", *EXACT, "-o", output, "--resume"]
    assert tiny.mtkit(*job)[0] == 0
    assert tiny.mtkit("shortlist", model, "-q")[0] == 0
    assert "was written by a job with other options" in refused(*job)


@pytest.mark.parametrize("n_best", [[], ["--n-best", 2]])
def test_a_job_with_alignment_is_resumed_at_an_empty_line(
    trained: Path, tmp_path: Path, n_best: list[object]
) -> None:
    source = tiny.write_lines(tmp_path / "in", ["the dog sees a cat .", "", "my bird hears this king ."])
    job = ["translate", trained, source, *EXACT, "--alignment", "pharaoh", *n_best, "-o", tmp_path / "out"]
    assert tiny.mtkit(*job, "--resume")[0] == 0
    whole, note = (tmp_path / "out").read_bytes(), tmp_path / "out.mtkit-job"
    said = {
        name: digest for name, digest in json.loads(note.read_text()).items() if name != "finished output"
    }
    note.write_text(json.dumps(said))  # as of a job that was stopped
    (tmp_path / "out").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b"mon oi")
    assert tiny.mtkit(*job, "--resume") == (0, "", "")
    assert (tmp_path / "out").read_bytes() == whole


def test_pairs_with_tabs_or_an_empty_side_are_left_out_and_counted(trained: Path, tmp_path: Path) -> None:
    src = tiny.write_lines(tmp_path / "src", ["a dog", "a\tdog", "a cat", "a cat", "", "a dog"])
    tgt = tiny.write_lines(tmp_path / "tgt", ["un chien", "un chien", "un\tchat", "un chat", "", " "])
    code, out, err = tiny.mtkit("score", trained, src, tgt, "--minimum", -1000)
    assert (code, out) == (0, "a dog\tun chien\na cat\tun chat\n")
    assert err == "kept 2 of 6 pairs; dropped whatever their score: 2 empty, 2 with tabs\n"
    code, out, err = tiny.mtkit("score", trained, src, tgt)
    assert (code, out.count("\n"), err) == (0, 6, "")


@pytest.mark.parametrize("options", [[], ["--alignment", "pharaoh"]])
def test_scoring_reports_its_progress(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr("mtkit.translation.options._PROGRESS_SECONDS", -1.0)
    files = [tiny.write_lines(tmp_path / text, [text] * 100) for text in ("a dog", "un chien")]
    code, out, err = tiny.mtkit("score", trained, *files, *options)
    assert (code, out.count("\n")) == (0, 100)
    assert tiny.one_line(err).startswith("100 of 100 lines, ")


@pytest.mark.parametrize("option", ["--prefix", "--constraints"])
@pytest.mark.parametrize("num_lines", [15, 17])
def test_parallel_files_have_as_many_lines(
    trained: Path, corpus: Path, tmp_path: Path, option: str, num_lines: int
) -> None:
    beside = tiny.write_lines(tmp_path / "beside", [""] * num_lines)
    code, out, err = tiny.mtkit("translate", trained, corpus / "test.src", option, beside)
    assert (code, out) == (3, "")
    assert f"beside: {num_lines} lines, but the input has 16" in err


def test_a_job_that_is_not_resumable_removes_the_note_of_an_older_one(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    note = tmp_path / "out.mtkit-job"
    note.write_text("{}")
    (tmp_path / "out").write_text("le chat\n")
    job = ["translate", trained, corpus / "test.src", *EXACT, "-o", tmp_path / "out"]
    assert "was written by a job with another model and other options and another input" in refused(
        *job, "--resume"
    )
    assert tiny.mtkit(*job)[0] == 0
    assert not note.exists()


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_an_output_without_a_name(trained: Path, corpus: Path, output: str) -> None:
    assert "is no name of a file" in refused("translate", trained, corpus / "test.src", "-o", output)


def test_an_output_that_stdin_is_read_from_stays_what_it_is(trained: Path, tmp_path: Path) -> None:
    path = tiny.write_lines(tmp_path / "big.en", ["the small dog"] * 3)
    with path.open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "mtkit", "translate", str(trained), "-o", str(path)],
            stdin=stdin, capture_output=True, text=True, env=tiny.child_environment(),
        )  # fmt: skip
    assert done.returncode == 2 and "is also another file of this command" in done.stderr
    assert tiny.read_lines(path) == ["the small dog"] * 3


def test_a_checkpoint_is_found_through_links_and_from_inside(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prod").symlink_to(trained / "best")
    whole = tiny.mtkit("translate", trained, corpus / "test.src", *EXACT)
    assert tiny.mtkit("translate", tmp_path / "prod", corpus / "test.src", *EXACT) == whole
    monkeypatch.chdir(trained / "best")
    assert tiny.mtkit("translate", ".", corpus / "test.src", *EXACT) == whole
