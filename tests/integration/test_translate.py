"""`mtkit translate` and `mtkit score` beyond plain beam search, from the command line."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

EXACT = ["-q", "--precision", "fp32"]


def translate(trained: Path, *arguments: object, stdin: str | None = None) -> list[str]:
    code, out, err = tiny.mtkit("translate", trained, *EXACT, *arguments, stdin=stdin)
    assert (code, err) == (0, ""), err
    return out.removesuffix("\n").split("\n")


def test_an_ensemble_of_one_is_the_model(trained: Path, corpus: Path) -> None:
    alone = translate(trained, corpus / "test.src", "--scores")
    twice = translate(trained, corpus / "test.src", "--scores", "--ensemble", trained)
    assert [line.split("\t")[1] for line in twice] == [line.split("\t")[1] for line in alone]
    for one, other in zip(alone, twice, strict=True):
        assert float(one.split("\t")[0]) == pytest.approx(float(other.split("\t")[0]), abs=2e-5)


def test_an_ensemble_needs_one_vocabulary(trained: Path, tmp_path: Path, corpus: Path) -> None:
    other = tmp_path / "other"
    config = tiny.write_config(tmp_path / "config.yaml", run=other, root=corpus)
    assert tiny.mtkit("train", config, "tokenizer.vocab_size=80", "training.max_steps=1")[0] == 0
    code, _, err = tiny.mtkit("translate", trained, "--ensemble", other, stdin="a\n")
    assert code == 2
    assert "its tokenizer differs from that of" in tiny.one_line(err)


def test_samples_do_not_depend_on_the_batch_or_the_shard(trained: Path, corpus: Path) -> None:
    options = [corpus / "test.src", "--sample", "--n-best", 2, "--seed", 4, "--top-p", 0.95]

    def texts(*more: object) -> list[str]:
        return [line.rpartition(" ||| ")[0] for line in translate(trained, *options, *more)]

    whole = texts()
    assert texts("--batch-tokens", 1, "--read-ahead", 3) == whole
    assert [x for i in (1, 2, 3) for x in texts("--shard", f"{i}/3")] == whole
    assert texts("--seed", 5) != whole


def test_minimum_risk_and_other_searches_translate(trained: Path, corpus: Path) -> None:
    srcs, tgts = tiny.read_lines(corpus / "train.src")[:40], tiny.read_lines(corpus / "train.tgt")[:40]
    text = "".join(f"{line}\n" for line in srcs)
    for options in (
        ["--mbr", "chrf", "--mbr-candidates", 6],
        ["--mbr", "bleu", "--mbr-candidates", 6, "--sample", "--temperature", 0.5],
        ["--groups", 2, "--beam-size", 4],
        ["--stop", "unbeaten", "--penalty-kind", "simple", "--coverage-penalty", 0.1],
        ["--stop", "certain", "--no-repeat-ngram", 4, "--min-pieces", 2],
    ):
        hyps = translate(trained, *options, stdin=text)
        assert sum(hyp == tgt for hyp, tgt in zip(hyps, tgts, strict=True)) > 20, options


def test_prefixes_and_constraints_of_each_line(trained: Path, corpus: Path, tmp_path: Path) -> None:
    srcs = tiny.read_lines(corpus / "test.src")[:3]
    text = "".join(f"{line}\n" for line in srcs)
    prefix = tiny.write_lines(tmp_path / "prefix", ["un roi", "", "le"])
    hyps = translate(trained, "--prefix", prefix, stdin=text)
    assert hyps[0].startswith("un roi") and hyps[2].startswith("le")
    assert hyps[1] == translate(trained, stdin=text)[1]
    wanted = tiny.write_lines(tmp_path / "wanted", ["oiseau\ttriste", "", "vieux|vert"])
    hyps = translate(trained, "--constraints", wanted, stdin=text)
    assert "oiseau" in hyps[0] and "triste" in hyps[0]
    assert hyps[1] == translate(trained, stdin=text)[1]
    assert "vieux" in hyps[2] or "vert" in hyps[2]


def test_constraints_that_cannot_be_met(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """The translations before that line are kept."""
    srcs = tiny.read_lines(corpus / "test.src")[:3]
    wanted = tiny.write_lines(tmp_path / "wanted", ["", "", "语言"])
    arguments = ["translate", trained, *EXACT, "--constraints", wanted]
    code, out, err = tiny.mtkit(*arguments, stdin="".join(f"{line}\n" for line in srcs))
    assert code == 3
    assert "line 3: the constraint '语言' cannot be met" in tiny.one_line(err)
    assert out.count("\n") == 2
    short = tiny.write_lines(tmp_path / "short", ["chat"])
    code, _, err = tiny.mtkit("translate", trained, *EXACT, "--prefix", short, stdin="a\nb\n")
    assert code == 3
    assert f"{short}: ends before line 2" in tiny.one_line(err)


def test_lines_before_one_that_is_not_text_are_kept(trained: Path, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes((corpus / "test.src").read_bytes() + b"\xff\n")
    code, out, err = tiny.mtkit("translate", trained, path, *EXACT)
    assert code == 3
    assert f"{path}:17: not UTF-8" in tiny.one_line(err)
    assert out.removesuffix("\n").split("\n") == translate(trained, corpus / "test.src")


@pytest.mark.parametrize(
    ("options", "skipped", "copied"),
    [
        ([], "", "{}"),
        (["--n-best", 2], "{n} |||  ||| 0.000000", "{n} ||| {} ||| 0.000000"),
        (["--alignment", "pharaoh", "--scores"], "0.000000\t ||| ", "0.000000\t{} ||| "),
    ],
)
def test_bad_lines_do_not_end_a_job(
    trained: Path, corpus: Path, tmp_path: Path, options: list[object], skipped: str, copied: str
) -> None:
    """One line is not text, another has constraints that cannot be met; the first of them used to stop the job."""
    lines = [line.encode() for line in tiny.read_lines(corpus / "test.src")[:6]]
    lines[2] = b"the \xff dog"
    source, wanted = tmp_path / "in", tmp_path / "wanted"
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    tiny.write_lines(wanted, ["", "", "", "", "语言", ""])
    job = ["translate", trained, source, *EXACT, "--constraints", wanted, *options, "--resume", "-o"]
    for on_error, form in (("skip", skipped), ("copy", copied)):
        output = tmp_path / on_error
        code, _, err = tiny.mtkit(*job, output)
        assert (code, f"{source}:3: not UTF-8" in tiny.one_line(err)) == (3, True)
        begun = tiny.read_lines(output)
        code, _, err = tiny.mtkit(*job, output, "--on-error", on_error)
        assert code == 0
        said = err.split("\n")
        what = "left empty" if on_error == "skip" else "copied"
        assert said[0].startswith(f"{what}: {source}:3: not UTF-8")
        assert said[1].startswith(f"{what}: line 5: the constraint '语言' cannot be met")
        assert said[2:] == [f"2 lines were not translated but {what}: 3, 5", ""]
        found = tiny.read_lines(output)
        each = len(begun) // 2
        assert found[:each] == begun[:each]
        bad = [form.format(text, n=n) for text, n in (("the \ufffd dog", 3), (lines[4].decode(), 5))]
        assert [found[2 * each], found[3 * each + 1]] == bad
        assert len(found) == 4 * each + 2


def test_suppressed_words_do_not_appear(trained: Path, corpus: Path) -> None:
    assert any("un" in line.split() for line in translate(trained, corpus / "test.src"))
    hyps = translate(trained, corpus / "test.src", "--suppress", "un")
    assert not any("un" in line.split() for line in hyps)


def test_paragraphs_are_translated_sentence_by_sentence(trained: Path, corpus: Path) -> None:
    srcs = [line.replace(" .", ".").capitalize() for line in tiny.read_lines(corpus / "test.src")[:3]]
    alone = translate(trained, stdin="".join(f"{line}\n" for line in srcs))
    text = f"{srcs[0]} {srcs[1]}\n\n{srcs[2]}\n"
    assert translate(trained, "--split-sentences", stdin=text) == [f"{alone[0]} {alone[1]}", "", alone[2]]


def test_score_filters_a_corpus(trained: Path, corpus: Path, tmp_path: Path) -> None:
    src, tgt = tiny.read_lines(corpus / "test.src"), tiny.read_lines(corpus / "test.tgt")
    wrong = tiny.write_lines(tmp_path / "tgt", tgt[:8] + tgt[8:][::-1])
    arguments = ["score", trained, corpus / "test.src", wrong, "--precision", "fp32"]
    _, out, _ = tiny.mtkit(*arguments)
    scores = [float(line) for line in out.split("\n")[:-1]]
    limit = sorted(scores)[6]
    code, out, err = tiny.mtkit(*arguments, "--minimum", limit - 1e-6)
    assert (code, err) == (0, "kept 10 of 16 pairs\n")
    texts = zip(src, tgt[:8] + tgt[8:][::-1], scores, strict=True)
    assert out == "".join(f"{s}\t{t}\n" for s, t, score in texts if score >= limit - 1e-6)


def test_pairs_that_are_too_long_to_be_scored(trained: Path, tmp_path: Path) -> None:
    src = tiny.write_lines(tmp_path / "src", ["the dog sees a cat .", "dog " * 600, "the cat sees a dog ."])
    tgt = tiny.write_lines(tmp_path / "tgt", ["le chien un chat voit .", "chien", "le chat un chien voit ."])
    code, out, err = tiny.mtkit("score", trained, src, tgt)
    assert (code, out.count("\n")) == (3, 1)
    assert "source line 2: " in tiny.one_line(err)
    code, out, err = tiny.mtkit("score", trained, src, tgt, "--minimum", -1000)
    assert (code, err) == (0, "kept 2 of 3 pairs; dropped whatever their score: 1 too long\n")
    assert out.startswith("the dog") and "\nthe cat" in out and out.count("\n") == 2


def assert_same_but_for_rounding(path: Path, other: Path) -> None:
    """Check that two outputs hold the same lines; the last digit of a score may differ, because batches differ."""
    for mine, theirs in zip(tiny.read_lines(path), tiny.read_lines(other), strict=True):
        *fields, score = mine.split(" ||| ")
        *expected, expected_score = theirs.split(" ||| ")
        assert fields == expected
        if fields:
            assert float(score) == pytest.approx(float(expected_score), abs=1e-5)
        else:
            assert score == expected_score


@pytest.mark.parametrize(
    ("options", "moments"),
    [([], (30, 90, 200)), pytest.param(["--n-best", 2, "--beam-size", 2], (90,), marks=pytest.mark.slow)],
)
def test_a_killed_job_resumes_where_it_stopped(
    trained: Path, corpus: Path, tmp_path: Path, options: list[object], moments: tuple[int, ...]
) -> None:
    """After a kill -9 at this number of lines, nothing is lost or doubled."""
    whole = tmp_path / "whole.txt"
    job = ["translate", trained, corpus / "train.src", *EXACT, "--read-ahead", 16, *options, "-o"]
    assert tiny.mtkit(*job, whole)[0] == 0
    output = tmp_path / "out.txt"
    for lines in moments:
        process = tiny.fork(*job, output, "--resume")
        deadline = time.monotonic() + 120
        while not output.exists() or output.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with output.open("ab") as file:  # a line that was half written
            file.write(b"le chi")
    before = output.read_bytes()
    other_input = ["translate", trained, corpus / "train.tgt", *job[3:]]
    other_search = [*job[:-1], "--length-penalty", 0.5, "-o"]
    for other, what in ((other_input, "another input"), (other_search, "other options")):
        code, _, err = tiny.mtkit(*other, output, "--resume")
        assert (code, f"out.txt was written by a job with {what}" in err) == (2, True)
    assert output.read_bytes() == before
    assert tiny.mtkit(*job, output, "--resume") == (0, "", "")
    assert_same_but_for_rounding(output, whole)
    before = output.read_bytes()
    loud = [argument for argument in job if argument != "-q"]
    assert tiny.mtkit(*loud, output, "--resume") == (0, "", f"{output} is complete\n")
    for other, what in ((other_input, "another input"), (other_search, "other options")):
        assert f"was written by a job with {what}" in tiny.mtkit(*other, output, "--resume")[2]
    assert output.read_bytes() == before


def test_torchrun_processes_share_the_work(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = translate(trained, corpus / "test.src")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert tiny.mtkit("translate", trained, corpus / "test.src", *EXACT, "-o", tmp_path / "out")[0] == 0
    parts = [tmp_path / f"out.{number}-of-3" for number in (1, 2, 3)]
    assert "".join(part.read_text() for part in parts).removesuffix("\n").split("\n") == whole


def test_benchmark_reports_speed_and_shares(trained: Path, corpus: Path) -> None:
    code, out, err = tiny.mtkit(
        "benchmark",
        "translate",
        trained,
        corpus / "test.src",
        "--ref",
        corpus / "test.tgt",
        "--json",
        "--rounds",
        1,
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert sum(report["shares"].values()) == pytest.approx(1.0)
    [speed] = report["speeds"]
    assert speed["sentences_per_second"] > 0 and 0 <= speed["bleu"] <= 100


@pytest.mark.parametrize(
    "keys", [[], ["model.activation=swiglu", "model.norm=rmsnorm", "model.num_kv_heads=1"]]
)
def test_ctranslate2_translates_the_same(corpus: Path, tmp_path: Path, keys: list[str]) -> None:
    pytest.importorskip("ctranslate2")
    config = tiny.write_config(tmp_path / "config.yaml", run=tmp_path / "run", root=corpus)
    assert tiny.mtkit("train", config, "training.max_steps=60", "decoding.length_penalty=0", *keys)[0] == 0
    code, out, err = tiny.mtkit(
        "benchmark", "translate", tmp_path / "run", corpus / "test.src", "--against", "ctranslate2",
        "--compute-type", "float32", "--precision", "fp32", "--json", "--rounds", 1, "--beam-size", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)["speeds"][1]["same_as_first"] >= 15 / 16


def test_refused_options(trained: Path, corpus: Path) -> None:
    for arguments, what in (
        (["--resume"], "--resume needs -o"),
        (["--resume", "-o", "-"], "--resume needs a file"),
        (["--shard", "3/2"], "must be i/n"),
        (["--on-error", "ignore"], "unknown action 'ignore' (stop, skip, copy)"),
        (
            ["--on-error", "copy", "--alternatives", 2],
            "--on-error copy cannot be combined with --alternatives",
        ),
        (["--mbr", "comet"], "--mbr"),
        (["--groups", 2, "--beam-size", 3], "not a multiple of groups"),
        (["--stop", "soon"], "--stop"),
        (["--top-p", 0], "--top-p"),
        (["--tag", "<2xx yy>"], "is not a single token of the source vocabulary"),
    ):
        code, out, err = tiny.mtkit("translate", trained, corpus / "test.src", *arguments)
        assert (code, out) == (2, ""), arguments
        assert what in tiny.one_line(err)
    assert os.environ.get("RANK") is None


def test_alignments_and_attention(trained: Path, corpus: Path, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "attention.npz"
    plain = translate(trained, corpus / "test.src")
    rows = translate(trained, corpus / "test.src", "--alignment", "pharaoh", "--attention", path)
    assert [row.split(" ||| ")[0] for row in rows] == plain
    srcs = tiny.read_lines(corpus / "test.src")
    with np.load(path) as archive:
        for number, (src, row) in enumerate(zip(srcs, rows, strict=True), 1):
            text, links = row.split(" ||| ")
            for s, t in (map(int, link.split("-")) for link in links.split()):
                assert s < len(src.split()) and t < len(text.split())
            weights = archive[f"weights-{number}-1"]
            assert weights.shape[1:] == (len(archive[f"tgt-{number}-1"]), len(archive[f"src-{number}-1"]))
            assert weights.sum(-1) == pytest.approx(1.0, abs=1e-5)


WRITTEN = Path(__file__).parent.parent / "data" / "protect.en-de.tsv"


def test_a_model_stores_the_usual_length_of_its_sources(trained: Path, corpus: Path, tmp_path: Path) -> None:
    from mtkit.data.batching import length_quantile
    from mtkit.data.tokenizer import load_tokenizers
    from mtkit.training.averaging import write_average
    from mtkit.translation.loading import usual_src_tokens

    src = load_tokenizers(trained).src
    lengths = np.array([len(ids) for ids in src.encode(tiny.read_lines(corpus / "train.src"))])
    assert usual_src_tokens(trained) == length_quantile(lengths) < lengths.max() + 1
    average = tmp_path / "average"
    write_average([trained / "best"], average)
    assert usual_src_tokens(average) == usual_src_tokens(trained)


def test_all_placeholders_of_the_written_set_survive(trained: Path) -> None:
    """Real sentences with numbers, tags and addresses, to a model that has seen nothing like them.

    Its vocabulary lacks digits, so that numbers too are taken out and put back.
    """
    from mtkit.data.tokenizer import load_tokenizers
    from mtkit.translation.model_folder import find_checkpoint, tokenizer_folder
    from mtkit.translation.placeholders import protect, unknown_spans

    tokenizers = load_tokenizers(tokenizer_folder(find_checkpoint(trained)))
    lines = [line.split("\t")[0] for line in tiny.read_lines(WRITTEN)]
    hyps = translate(trained, "--protect", stdin="".join(f"{line}\n" for line in lines))
    for line, hyp in zip(lines, hyps, strict=True):
        placeholders = protect(line, unknown_spans(tokenizers, line)).placeholders
        for text in {placeholder.text for placeholder in placeholders}:
            assert hyp.count(text) >= [placeholder.text for placeholder in placeholders].count(text), (
                line,
                hyp,
            )
        assert "⁇" not in hyp


def test_numbers_urls_and_tags_survive(trained: Path) -> None:
    """The set is written by hand; the model has never seen any of it."""
    lines = [
        "<b>the small dog</b> sees a cat .",
        "the king <br/> likes my bird {name} .",
        "this boy hears <i>a horse</i> .",
        "the 語 dog follows <a href='x'>the old king</a> .",
    ]
    hyps = translate(trained, "--protect", stdin="".join(f"{line}\n" for line in lines))
    kept = [["<b>", "</b>"], ["<br/>", "{name}"], ["<i>", "</i>"], ["語", "<a href='x'>", "</a>"]]
    for hyp, wanted in zip(hyps, kept, strict=True):
        assert all(hyp.count(text) == 1 for text in wanted), hyp


def test_links_of_protected_lines_are_between_the_visible_words(trained: Path) -> None:
    line = "see https://a.org/b <b>the small dog</b> sees a cat ."
    rows = translate(trained, "--protect", "--alignment", "pharaoh", "--n-best", 3, stdin=f"{line}\n")
    assert len(rows) == 3
    for row in rows:
        number, text, links, _ = row.split(" ||| ")
        pairs = [tuple(map(int, link.split("-"))) for link in links.split()]
        assert number == "1"
        assert all(text.count(placeholder) == 1 for placeholder in ("https://a.org/b", "<b>", "</b>"))
        assert all(s < len(line.split()) and t < len(text.split()) for s, t in pairs)
        assert any("a.org" in text.split()[t] for s, t in pairs if s == 1)


def test_attention_never_overwrites_another_file(trained: Path, corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text((corpus / "test.src").read_text())
    before, output = source.read_bytes(), tmp_path / "out.txt"
    for clash in (["--attention", source], ["-o", output, "--attention", output]):
        code, _, err = tiny.mtkit("translate", trained, source, *clash)
        assert code == 2
        assert "also another file of this command" in tiny.one_line(err)
    assert source.read_bytes() == before
    output.write_text("old\n")
    nowhere = tmp_path / "nowhere/a.npz"
    assert tiny.mtkit("translate", trained, source, "-o", output, "--attention", nowhere)[0] == 5
    assert output.read_text() == "old\n"


def test_an_output_with_more_lines_than_the_input_is_not_resumed(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.txt"
    output.write_text("a line\n" * 100)
    (tmp_path / "out.txt.mtkit-job").write_text("{}")
    code, _, err = tiny.mtkit("translate", trained, corpus / "test.src", "-o", output, "--resume")
    assert code == 2
    assert "the output has 100 lines, but there are 16 to translate" in tiny.one_line(err)


def test_only_jobs_started_with_resume_are_resumed(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """Nothing is appended to the output of another model or job, or to one changed since."""
    output, note = tmp_path / "out", tmp_path / "out.mtkit-job"
    job = ["translate", trained, corpus / "test.src", *EXACT, "-o", output]

    def refused(what: str) -> None:
        before = output.read_bytes()
        code, out, err = tiny.mtkit(*job, "--resume")
        assert (code, out) == (2, "")
        assert what in tiny.one_line(err)
        assert output.read_bytes() == before

    output.write_text("le chat\nun ch")
    refused("was written without --resume, so its job is unknown (delete it, or write to another file)")
    output.write_text("")
    assert tiny.mtkit(*job, "--resume") == (0, "", "")
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\n") + 1])
    refused("was modified after its job had finished")
    output.write_text("")  # emptied, it is begun anew, though the note says that it was finished
    assert tiny.mtkit(*job, "--resume") == (0, "", "")
    assert output.read_bytes() == whole
    assert tiny.mtkit(*job) == (0, "", "")
    assert not note.exists()
    refused("was written without --resume")
    output.unlink()
    stdin = (corpus / "test.src").read_text()
    job = ["translate", trained, *EXACT, "-o", output, "--resume"]
    for _ in range(2):  # nobody can say of a pipe that it brings the same again: it is read
        assert tiny.mtkit(*job, stdin=stdin) == (0, "", "")
        assert output.read_bytes() == whole
    code, _, err = tiny.mtkit(*job, stdin="the dog sees a cat .\n")
    assert (code, "the output has 16 lines, but there are 1 to translate" in tiny.one_line(err)) == (2, True)


def test_lines_before_one_without_a_translation_are_kept(trained: Path, tmp_path: Path) -> None:
    source, wanted = tmp_path / "in.txt", tmp_path / "constraints.txt"
    source.write_text("the dog sees a cat .\n" * 3)
    wanted.write_text("\n\nchien chien\n")
    code, out, err = tiny.mtkit(
        "translate", trained, source, "--constraints", wanted, "--no-repeat-ngram", 1, "-q"
    )
    assert (code, out.count("\n")) == (3, 2)
    assert "no translation meets all constraints" in tiny.one_line(err)
