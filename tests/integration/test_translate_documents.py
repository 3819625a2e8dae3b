"""TMX, XLIFF and spreadsheets as input and output of `mtkit translate`, and as input of `mtkit evaluate`."""

from __future__ import annotations

import gzip
import re
import signal
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
import tiny

from mtkit.cli.document_output import DocumentOutput
from mtkit.data.documents import read_side
from mtkit.data.filling import fill

PAIRS = tiny.pairs(9, 5)


def tmx(path: Path, pairs: list[tuple[str, str]], languages: tuple[str, str] = ("en-GB", "fr")) -> Path:
    """Write a translation memory; an empty text is left out."""
    units = []
    for pair in pairs:
        variants = (
            f'<tuv xml:lang="{tag}"><seg>{escape(text)}</seg></tuv>'
            for tag, text in zip(languages, pair, strict=True)
            if text
        )
        units.append(f"<tu>{''.join(variants)}</tu>\n")
    text = f'<?xml version="1.0"?>\n<tmx version="1.4"><header/><body>\n{"".join(units)}</body></tmx>\n'
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def xliff(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write XLIFF 2.0; an empty target is left out."""
    segments = (
        f"<unit id='u{i}'><segment><source>{src}</source>{tgt and f'<target>{tgt}</target>'}</segment></unit>"
        for i, (src, tgt) in enumerate(pairs)
    )
    path.write_text(
        f"<xliff version='2.0' srcLang='en' trgLang='fr'><file id='f'>{''.join(segments)}</file></xliff>"
    )
    return path


def sheet(path: Path, rows: list[tuple[str, ...]]) -> Path:
    """Write a spreadsheet."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append([cell or None for cell in row])
    book.save(path)
    return path


def translate(*arguments: object, stdin: str = "") -> str:
    code, out, err = tiny.mtkit("translate", *arguments, "-q", "--precision", "fp32", stdin=stdin)
    assert code == 0, err
    return out


def test_a_line_for_each_unit(trained: Path, tmp_path: Path) -> None:
    pairs = [*PAIRS[:3], ("", "un chat ."), ("a cat\n   sees a dog .", ""), *PAIRS[3:]]
    lines = [" ".join(src.split()) for src, _ in pairs]
    expected = translate(trained, stdin="".join(f"{line}\n" for line in lines))
    assert expected.split("\n")[3] == ""
    for document in (
        tmx(tmp_path / "a.tmx", pairs),
        tmx(tmp_path / "b.tmx.gz", pairs),
        xliff(tmp_path / "c.xlf", pairs),
        sheet(tmp_path / "d.xlsx", [("en", "fr"), *pairs]),
    ):
        assert translate(trained, document) == expected
    text = tiny.write_lines(tmp_path / "e.txt", lines)
    both = translate(trained, text, tmp_path / "a.tmx", "-o", tmp_path / "out.txt")
    assert (both, (tmp_path / "out.txt").read_text()) == ("", expected * 2)


def test_shards_and_resuming(trained: Path, tmp_path: Path) -> None:
    document = tmx(tmp_path / "a.tmx", PAIRS)
    expected = translate(trained, document)
    assert "".join(translate(trained, document, "--shard", f"{i}/4") for i in range(1, 5)) == expected
    output = tmp_path / "out.txt"
    assert translate(trained, document, "-o", output, "--resume") == ""
    output.write_text("".join(expected.splitlines(keepends=True)[:4]) + "le ch")
    note = output.with_name("out.txt.mtkit-job")
    note.write_text(note.read_text().replace("finished output", "x"))
    assert translate(trained, document, "-o", output, "--resume") == ""
    assert output.read_text() == expected
    tmx(document, PAIRS[::-1])
    code, _, err = tiny.mtkit("translate", trained, document, "-o", output, "--resume")
    assert (code, "another input" in err) == (2, True)


def test_columns(trained: Path, tmp_path: Path) -> None:
    expected = translate(trained, tmx(tmp_path / "a.tmx", PAIRS))
    other = tmx(tmp_path / "b.tmx", PAIRS, ("x-english", "fr"))
    assert translate(trained, other, "--columns", "x-english", "fr") == expected
    rows = sheet(tmp_path / "c.xlsx", [("French", "English"), *((tgt, src) for src, tgt in PAIRS)])
    assert translate(trained, rows, "--columns", "English", "French") == expected
    code, _, err = tiny.mtkit("translate", trained, "--columns", "en", "fr")
    assert (code, "--columns needs a document" in tiny.one_line(err)) == (2, True)


def test_a_test_set_from_a_document(trained: Path, tmp_path: Path) -> None:
    def scores(*arguments: object) -> str:
        code, out, err = tiny.mtkit("evaluate", *arguments, "-q", "--resamples", 0)
        assert code == 0, err
        return out

    model = ("--model", trained, "--precision", "fp32")
    tmx(tmp_path / "all.tmx", PAIRS)
    sheet(tmp_path / "all.xlsx", [("en", "fr"), *PAIRS])
    xliff(tmp_path / "some.xlf", [*PAIRS, ("a dog .", "")])
    src, tgt = (
        tiny.write_lines(tmp_path / name, list(lines))
        for name, lines in zip("st", zip(*PAIRS, strict=True), strict=True)
    )
    expected = scores(*model, "--src", src, "--ref", tgt)
    for name in ("all.tmx", "all.xlsx", "some.xlf"):
        assert scores(*model, "--test", tmp_path / name) == expected
    both = tmp_path / "all.tmx"
    assert scores(*model, "--src", both, "--ref", both) == expected
    hyps = tmp_path / "hyps"
    hyps.write_text(translate(trained, src))
    assert scores(hyps, "--test", tmp_path / "some.xlf", "--langs", "en-fr") == expected
    assert scores(hyps, "--ref", both, "--langs", "en-fr") == expected


def test_documents_without_what_is_scored(trained: Path, tmp_path: Path) -> None:
    some = xliff(tmp_path / "some.xlf", [*PAIRS, ("a dog .", "")])
    for arguments, code, message in (
        (["--src", some, "--ref", some], 3, "some.xlf:1: no text for 'fr'"),
        (
            ["--test", some, "--columns", "de", "fr"],
            3,
            "there are: 'en', 'fr' (name them: --columns SRC TGT)",
        ),
        (["--test", tmp_path / "none.tmx"], 3, "none.tmx: no such file (check the path)"),
        (["--test", tmp_path / "a.docx"], 2, "--test: unknown file type"),
        (["--test", some, "--ref", some], 2, "--test cannot be combined"),
    ):
        found, _, err = tiny.mtkit("evaluate", "--model", trained, *arguments)
        assert (found, message in tiny.one_line(err)) == (code, True), err
    found, _, err = tiny.mtkit("evaluate", some, "--test", some)
    assert (found, "--langs en-de" in tiny.one_line(err)) == (2, True)


# --- documents as output ----------------------------------------------------------------------------------------------


def texts(path: Path, language: str) -> list[str]:
    """Return the texts of a document in a language."""
    return [text for _, text in read_side(path, language)]


@pytest.mark.parametrize("kind", ["tmx", "xlf"])
def test_a_copy_with_the_targets(trained: Path, tmp_path: Path, kind: str) -> None:
    pairs = [*PAIRS[:4], ("a cat sees a dog .", ""), *PAIRS[4:]]
    source = (tmx if kind == "tmx" else xliff)(tmp_path / f"a.{kind}", pairs)
    expected = translate(trained, source).splitlines()
    output = tmp_path / f"b.{kind}"
    for resume in ([], ["--resume"]):
        assert translate(trained, source, "-o", output, *resume) == ""
        assert texts(output, "fr") == expected
        assert texts(output, "en") == [src for src, _ in pairs]
        if not resume:
            assert {path.name for path in tmp_path.iterdir()} == {source.name, output.name}
            output.unlink()
    assert {path.name for path in tmp_path.iterdir()} == {
        source.name,
        output.name,
        f"{output.name}.mtkit-job",
    }
    code, _, err = tiny.mtkit("translate", trained, source, "-o", output, "--resume", "--precision", "fp32")
    assert (code, err) == (0, f"{output} is complete\n")
    output.write_text(output.read_text().replace("chien", "loup"))
    code, _, err = tiny.mtkit("translate", trained, source, "-o", output, "--resume", "--precision", "fp32")
    assert (code, "modified after its job had finished" in tiny.one_line(err)) == (2, True)


def test_a_copy_of_a_spreadsheet(trained: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    source = sheet(tmp_path / "a.xlsx", [("id", "en"), *((str(i), src) for i, (src, _) in enumerate(PAIRS))])
    book = openpyxl.load_workbook(source)
    book.active["D3"], book.active["B3"].font = "=1+1", openpyxl.styles.Font(bold=True)
    book.save(source)
    expected = translate(trained, source).splitlines()
    for output in (tmp_path / "b.xlsx", tmp_path / "c.xlsx"):
        translate(trained, source, "-o", output)
        assert texts(output, "fr") == expected
        copy = openpyxl.load_workbook(output).active
        assert (copy["D3"].value, copy["B3"].font.b, copy["A3"].value) == ("=1+1", True, "1")
        source = output  # whose target column is there
    formula = tmp_path / "d.xlsx"
    with formula.open("wb") as file:
        fill(source, file, iter(["=1+1", "", "\x07x"]), ("en", "fr"))
    assert [cell.data_type for cell in openpyxl.load_workbook(formula).active["E"][:4]] == ["s"] * 4
    assert texts(formula, "fr")[:3] == ["=1+1", expected[1], "x"]


def test_sheets_that_are_not_translated_are_told(trained: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    source = sheet(tmp_path / "a.xlsx", [("en", "fr"), *PAIRS[:2]])
    book = openpyxl.load_workbook(source)
    book.create_sheet().append(["en"])
    book.save(source)
    note = f"{source}: only the first of 2 sheets is read"
    assert note in tiny.mtkit("translate", trained, source, "-o", tmp_path / "b.xlsx")[2]
    assert note in tiny.mtkit("evaluate", "--model", trained, "--test", source, "--resamples", 0)[2]
    assert note in tiny.mtkit("backtranslate", trained, source, "-o", tmp_path / "c.tsv")[2]


def test_a_spreadsheet_that_a_copy_would_damage(trained: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    merged, chart = (sheet(tmp_path / name, [("en", "fr"), *PAIRS]) for name in ("a.xlsx", "b.xlsx"))
    book = openpyxl.load_workbook(merged)
    book.active.merge_cells("A3:B3")
    book.save(merged)
    with zipfile.ZipFile(chart, "a") as archive:
        archive.writestr("xl/charts/chart1.xml", "<chart/>")
    for source, message in (
        (merged, "a.xlsx, row 3: a merged cell in the target column"),
        (chart, "xl/charts/chart1.xml"),
    ):
        code, _, err = tiny.mtkit("translate", trained, source, "-o", tmp_path / "out.xlsx", "-q")
        assert (code, message in tiny.one_line(err)) == (3, True), err
    assert {path.name for path in tmp_path.iterdir()} == {"a.xlsx", "b.xlsx"}


def test_a_document_is_written_at_the_end(trained: Path, tmp_path: Path) -> None:
    """A job that fails leaves the old document; with --resume, it also leaves what continues the job."""
    bad = "the dog sees <big>"  # longer than it may be
    source = tmx(tmp_path / "a.tmx", [*PAIRS, (f"{bad} " * 30, ""), *PAIRS])
    output = tmp_path / "b.tmx"
    output.write_text("an earlier translation")
    limited = ["--read-ahead", 4, "--max-line-tokens", 50, "--precision", "fp32", "-q"]
    code, _, err = tiny.mtkit("translate", trained, source, "-o", output, *limited)
    assert (code, "line 10: " in tiny.one_line(err)) == (3, True)
    assert output.read_text() == "an earlier translation"
    assert {path.name for path in tmp_path.iterdir()} == {"a.tmx", "b.tmx"}
    output.unlink()
    assert tiny.mtkit("translate", trained, source, "-o", output, *limited, "--resume")[0] == 3
    lines = output.with_name("b.tmx.mtkit-lines")
    done = lines.read_text()
    assert (not output.exists(), done.count("\n")) == (True, 9)
    skipping = [*limited, "--on-error", "skip"]
    assert tiny.mtkit("translate", trained, source, "-o", output, *skipping, "--resume")[0] == 0
    expected = translate(trained, source, *limited[:4], "--on-error", "skip").splitlines()
    assert texts(output, "fr") == expected
    assert not lines.exists()


def test_sigterm_leaves_no_lines_behind(tmp_path: Path) -> None:
    document = DocumentOutput(tmp_path / "a.tmx", tmp_path / "b.tmx", ("en", "fr"), False, resume=False)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    document.lines.touch()
    try:
        with pytest.raises(SystemExit, match="143"), document.temporary_lines():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []


def test_a_document_written_after_a_crash(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = xliff(tmp_path / "a.xlf", PAIRS), tmp_path / "b.xlf"
    with monkeypatch.context() as patch:
        patch.setattr("mtkit.data.filling.fill", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert tiny.mtkit("translate", trained, source, "-o", output, "--resume", "-q")[0] == 130
    assert not output.exists()
    monkeypatch.setattr("mtkit.cli.translate.load_translator", None)  # all is translated
    assert tiny.mtkit("translate", trained, source, "-o", output, "--resume", "-q") == (0, "", "")
    assert len(texts(output, "fr")) == len(PAIRS)


def test_protected_tags_come_along(trained: Path, tmp_path: Path) -> None:
    source = xliff(tmp_path / "a.xlf", [('the <pc id="1">small dog</pc> sees a cat<ph id="2"/> .', "")])
    output = tmp_path / "b.xlf"
    translate(trained, source, "-o", output, "--protect")
    target = output.read_text().partition("<target>")[2].partition("</target>")[0]
    assert re.fullmatch(r'.*<pc id="1">.+</pc>.*', target)
    assert target.count('<ph id="2"/>') == 1
    translate(trained, source, "-o", output)
    assert "<pc" not in output.read_text().partition("<target>")[2]


@pytest.mark.parametrize(
    ("files", "options", "code", "message"),
    [
        (["a.tmx"], ["-o", "b.xlf"], 2, "is XLIFF, so the input must be one file of this kind"),
        (["a.tmx", "a.tmx"], ["-o", "b.tmx"], 2, "is TMX, so the input must be one file of this kind"),
        (["-"], ["-o", "b.tmx"], 2, "is TMX, so the input must be one file of this kind"),
        (["a.tmx"], ["-o", "b.tmx", "--shard", "1/2"], 2, "a document is written as a whole"),
        (
            ["a.tmx"],
            ["-o", "b.tmx", "--n-best", "2"],
            2,
            "no --json, --n-best, --scores, --confidence, --alignment or --alternatives",
        ),
        (["a.tmx"], ["-o", "a.tmx"], 2, "a.tmx is also another file of this command"),
        (["a.tmx"], ["-o", "b.tmx.gz"], 2, "would be plain text, not .gz"),
        (["a.tmx"], ["-o", "none/b.tmx"], 5, "none: no such folder"),
        (["a.xlf"], ["-o", "b.xlf"], 3, "a.xlf:1: the source language is 'de', not 'en'"),
    ],
)
def test_documents_that_cannot_be_written(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tmx(Path("a.tmx"), PAIRS)
    Path("a.xlf").write_text(xliff(Path("a.xlf"), PAIRS).read_text().replace("srcLang='en'", "srcLang='de'"))
    before = tiny.tree(tmp_path)
    found, _, err = tiny.mtkit("translate", trained, *files, *options)
    assert (found, message in tiny.one_line(err)) == (code, True), err
    assert tiny.tree(tmp_path) == before
