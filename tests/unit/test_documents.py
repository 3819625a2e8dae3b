"""TMX, XLIFF and spreadsheets as pairs: languages, inline code, faults with their line, constant memory."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
import tiny

from mtkit.config.sections import DataConfig, SourceConfig
from mtkit.data.documents import (
    MAX_SEGMENT_CHARS,
    open_workbook,
    read_spreadsheet,
    read_translation_units,
    read_units,
    text_in,
)
from mtkit.data.filling import fill, lines_to_fill
from mtkit.data.readers import Columns
from mtkit.data.recognize import recognize
from mtkit.data.sources import open_sources
from mtkit.errors import ConfigError, DataError

EN_DE = Columns(None, ("en", "de"))


def tmx(*units: str, head: str = "") -> str:
    header = '<header creationtool="x" segtype="sentence" srclang="en" datatype="xml"/>'
    return (
        f'<?xml version="1.0"?>\n{head}<tmx version="1.4">\n{header}\n<body>\n'
        + "\n".join(units)
        + "\n</body></tmx>"
    )


def tu(**texts: str) -> str:
    variants = "".join(
        f'<tuv xml:lang="{tag.replace("_", "-")}"><seg>{text}</seg></tuv>' for tag, text in texts.items()
    )
    return f"<tu>{variants}</tu>"


def pairs_in(
    tmp_path: Path, text: str | bytes, name: str = "a.tmx", columns: Columns = EN_DE
) -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [tuple(pair) for _, pair in read_translation_units(path, columns)]


def test_units_with_the_lines_at_which_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    path.write_text(tmx(tu(en="A dog.", de="Ein Hund."), tu(de="Zwei\n   Hunde.", en="Two\n   dogs.")))
    assert list(read_translation_units(path, EN_DE)) == [
        (5, ("A dog.", "Ein Hund.")),
        (6, ("Two dogs.", "Zwei Hunde.")),
    ]


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [
        ("en", {"en_US": "color", "en": "colour"}, "colour"),
        ("en", {"EN_us": "color"}, "color"),
        ("en-GB", {"en_US": "color", "en_GB": "colour"}, "colour"),
        ("pt-BR", {"pt": "trem"}, "trem"),
        ("en", {"en_US": "color", "en_GB": "colour"}, "color"),
        ("de", {"den": "x"}, ""),
    ],
)
def test_language_tags(tmp_path: Path, wanted: str, there: dict[str, str], found: str) -> None:
    text = tmx(tu(**there, xx="target"), tu(**{wanted.replace("-", "_"): "other", "xx": "other"}))
    pairs = pairs_in(tmp_path, text, columns=Columns(None, (wanted, "xx")))
    assert pairs[0] == ((found, "target") if found else ("other", "other"))


def test_columns_name_the_tags(tmp_path: Path) -> None:
    text = tmx(tu(EN_US="a", EN_GB="b", DE_AT="c"))
    assert pairs_in(tmp_path, text, columns=Columns(("EN-GB", "DE-AT"), ("en", "de"))) == [("b", "c")]


def test_inline_code_is_dropped_and_highlighted_text_is_kept(tmp_path: Path) -> None:
    text = 'Click <bpt i="1">&lt;b <sub>x</sub>&gt;</bpt><hi>here</hi><ept i="1">&lt;/b&gt;</ept>&amp; wait<ph/>.'
    assert pairs_in(tmp_path, tmx(tu(en=text, de="Hier<it pos='begin'>x</it>."))) == [
        ("Click here& wait.", "Hier.")
    ]


def test_incomplete_units_are_skipped(tmp_path: Path) -> None:
    text = tmx(tu(en="A."), tu(en="B.", de=""), tu(fr="C.", de="C."), tu(en="D.", de="D."))
    assert pairs_in(tmp_path, text) == [("D.", "D.")]


XLIFF_12 = """<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file source-language="en-US" target-language="de" original="a" datatype="x"><body>
<trans-unit id="1"><source>Hello <g id="1">big</g><x id="2"/> world</source>
<seg-source><mrk mtype="seg">no</mrk></seg-source><target>Hallo <g id="1">große</g> Welt</target>
<alt-trans><source>old</source><target>alt</target></alt-trans></trans-unit>
<group><trans-unit id="2"><source>Untranslated</source></trans-unit></group>
</body></file></xliff>"""

XLIFF_20 = """<xliff version="2.0" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="de-DE">
<file id="f">
<unit id="1"><segment><source>One <pc id="1">two</pc></source><target>Eins <pc id="1">zwei</pc></target></segment>
<ignorable><source> </source></ignorable>
<segment><source>A<ph id="2"/><cp hex="0009"/>B</source><target>C</target></segment>
</unit></file></xliff>"""


def test_xliff(tmp_path: Path) -> None:
    assert pairs_in(tmp_path, XLIFF_12, "a.xlf") == [("Hello big world", "Hallo große Welt")]
    assert pairs_in(tmp_path, XLIFF_20, "a.xliff") == [("One two", "Eins zwei"), ("A\tB", "C")]
    assert pairs_in(tmp_path, XLIFF_20, "a.xlf", Columns(None, ("de", "en")))[0] == ("Eins zwei", "One two")
    (tmp_path / "b.xlf").write_text(XLIFF_12)
    assert [unit.texts for unit in read_units(tmp_path / "b.xlf")][1] == {"en-US": "Untranslated"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_compression(tmp_path: Path, encoding: str) -> None:
    text = tmx(tu(en="naïve", de="naïv"), head='<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n').replace("?>", "?>", 1)
    assert pairs_in(tmp_path, text.encode(encoding)) == [("naïve", "naïv")]
    assert pairs_in(tmp_path, gzip.compress(text.encode(encoding)), "a.tmx.gz") == [("naïve", "naïv")]


BOMB = '<!DOCTYPE tmx [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (tmx(tu(en="&b;", de="x"), head=BOMB), "a.tmx:2: the file declares the entity 'a'"),
        (
            tmx(tu(en="x", de="x"), head='<!DOCTYPE t [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n'),
            "declares the entity",
        ),
        (
            tmx(tu(en="&nbsp;", de="x"), head='<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'),
            "a.tmx:6: unknown entity &nbsp;",
        ),
        (tmx(tu(en="A", de="B"))[:-20], "not well-formed XML"),
        ("<tmx><body><tu><tuv xml:lang='en'><seg>a</tuv>", "a.tmx:1: not well-formed XML: mismatched tag"),
        ("plain text", "a.tmx:1: not well-formed XML"),
        ("", "a.tmx:1: not well-formed XML: no element found"),
        ("<html></html>", "not TMX: the first element is <html>"),
        (tmx("<tu><tuv><seg>a</seg></tuv></tu>"), "a.tmx:5: <tuv> without xml:lang"),
        (tmx(tu(en="A", fr="B"), tu(fr="C")), "no unit has both 'en' and 'de'; there are: 'en', 'fr'"),
        (tmx(tu(en="a <seg>b</seg>", de="x")), "<seg> inside a segment"),
        (tmx(tu(en="x" * (MAX_SEGMENT_CHARS + 1), de="x")), "a segment of more than 1,048,576 characters"),
    ],
)
def test_faults(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        pairs_in(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tmx/>", "not XLIFF: the first element is <tmx>"),
        (XLIFF_20.replace("0009", "zz"), "without a hexadecimal"),
        (XLIFF_20.replace("<source>", "<source><source/>", 1), "<source> inside a segment"),
    ],
)
def test_xliff_faults(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pairs_in(tmp_path, text, "a.xlf")


PEAK = """
import sys
from pathlib import Path
from mtkit.data.documents import read_side
print(sum(1 for _ in read_side(Path(sys.argv[1]), "en")))
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """The peak of a process that reads 12 MB is that of one that reads 1 MB, although all is in one line."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh <&", k=9)) for _ in range(50)]
    unit = tu(en=escape(" ".join(words)), de=escape(" ".join(words)))

    def peak(num_units: int) -> int:
        path = tmp_path / f"{num_units}.tmx"
        path.write_text(tmx(*[unit] * num_units).replace("\n", ""))
        child = [sys.executable, "-c", PEAK, str(path)]
        found = subprocess.run(
            child, env=tiny.child_environment(), capture_output=True, text=True, check=True
        )
        number, kib = map(int, found.stdout.split())
        assert number == num_units
        return kib

    assert peak(10_000) < peak(1_000) + 2048


def sheet(path: Path, rows: list[list[object]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_spreadsheet(tmp_path: Path) -> None:
    rows = [
        ["id", "de", "en"],
        [1, "Ein Hund.", "A dog."],
        [None, None, None],
        [2, "3,5\nkg", 3.5],
        [3, None, 4.0],
        [4, "a_x000D_\nb_x000d_c", "A_x0041_"],
    ]
    path = sheet(tmp_path / "a.xlsx", rows)
    assert list(read_spreadsheet(path, EN_DE)) == [
        (2, ("A dog.", "Ein Hund.")),
        (4, ("3.5", "3,5 kg")),
        (5, ("4", "")),
        (6, ("A_x0041_", "a b c")),
    ]
    assert next(read_spreadsheet(path, Columns(("de", "id"), ("en", "de")))) == (2, ("Ein Hund.", "1"))


def test_sheets_that_are_not_read_are_told(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = sheet(tmp_path / "a.xlsx", [["en", "de"], ["A dog.", "Ein Hund."]])
    book = openpyxl.load_workbook(path)
    book.create_sheet()
    book.save(path)
    assert recognize([str(path)], (None, None)).notes == ()
    book.create_sheet().append([None, "A cat."])
    book.save(path)
    assert recognize([str(path)], (None, None)).notes == (f"{path}: only the first of 3 sheets is read",)


def change_sheet(path: Path, old: str, new: str) -> None:
    name = "xl/worksheets/sheet1.xml"
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    assert old.encode() in files[name]
    files[name] = files[name].replace(old.encode(), new.encode())
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in files.items():
            archive.writestr(entry, content)


def test_a_spreadsheet_with_more_rows_and_columns_than_it_declares(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.xlsx", [["en", "de"], ["A dog.", "Ein Hund."], ["A cat.", "Eine Katze."]])
    change_sheet(path, '<dimension ref="A1:B3"/>', '<dimension ref="A1:A2"/>')
    assert [pair for _, pair in read_spreadsheet(path, EN_DE)] == [
        ("A dog.", "Ein Hund."),
        ("A cat.", "Eine Katze."),
    ]


def test_spreadsheet_faults(tmp_path: Path) -> None:
    from datetime import date

    path = sheet(tmp_path / "a.xlsx", [["en", "de"], [date(2020, 1, 1), "x"]])
    with pytest.raises(DataError, match=r"a\.xlsx, row 2: .*not text"):
        list(read_spreadsheet(path, EN_DE))
    with pytest.raises(DataError, match="no column 'fr'"):
        list(read_spreadsheet(path, Columns(("en", "fr"), ("en", "de"))))
    damaged = tmp_path / "b.xlsx"
    damaged.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a spreadsheet, or a damaged one"):
        list(read_spreadsheet(damaged, EN_DE))
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("xl/worksheets/sheet1.xml")
    start = entry.header_offset + 30 + len(entry.filename)
    record = (
        path.read_bytes().rindex(entry.filename.encode()) - 46
    )  # has the flags at 8, the compression at 10
    for at, message in ((start, "damaged"), (record + 8, "password"), (record + 10, "damaged")):
        data = bytearray(path.read_bytes())
        data[at] = 0xFF
        damaged.write_bytes(data)
        with pytest.raises(DataError, match=message):
            list(read_spreadsheet(damaged, EN_DE))
    bomb = tmp_path / "c.xlsx"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b"\0" * (66 << 20))
    with pytest.raises(DataError, match="unpacks to"):
        list(read_spreadsheet(bomb, EN_DE))


# --- as sources of a config -------------------------------------------------------------------------------------


def test_as_sources_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "a.tmx.gz").write_bytes(
        gzip.compress(tmx(tu(en_US="A dog.", de="Ein Hund.")).encode("utf-16"))
    )
    (tmp_path / "b.xlf").write_text(XLIFF_12)
    sheet(tmp_path / "c.xlsx", [["de", "en"], ["Ja", "Yes"]])
    configs = [SourceConfig(path=name) for name in ("a.tmx.gz", "b.xlf", "c.xlsx")]
    data = DataConfig(root=str(tmp_path), src="en", tgt="de", train=tuple(configs))
    sources = open_sources(configs, data, "train")
    assert [[pair for _, pair in source.read()] for source in sources] == [
        [("A dog.", "Ein Hund.")],
        [("Hello big world", "Hallo große Welt")],
        [("Yes", "Ja")],
    ]
    numbers = [next(source.read())[0] for source in sources]
    locations = [source.location(number) for source, number in zip(sources, numbers, strict=True)]
    assert [location.removeprefix(f"{tmp_path}/") for location in locations] == [
        "a.tmx.gz:5",
        "b.xlf:3",
        "c.xlsx: row 2",
    ]
    before = [source.fingerprint() for source in sources]
    (tmp_path / "b.xlf").write_text(XLIFF_12.replace("Welt", "Erde"))
    after = [source.fingerprint() for source in open_sources(configs, data, "train")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.parametrize("name", ["a.tmx", "a.xlf", "a.xlsx"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    configs = [SourceConfig(path=name)]
    with pytest.raises(DataError, match=f"no such file.*{name}|{name}.*no such file"):
        open_sources(
            configs, DataConfig(root=str(tmp_path), src="en", tgt="de", train=tuple(configs)), "train"
        )


def test_init_recognizes_them(tmp_path: Path) -> None:
    (tmp_path / "a.tmx").write_text(tmx(tu(EN_us="A dog.", de_AT="Ein Hund.")))
    (tmp_path / "b.xlf").write_text(XLIFF_20)
    sheet(tmp_path / "c.xlsx", [["en", "de"], ["Yes", "Ja"]])
    for name in ("a.tmx", "b.xlf", "c.xlsx"):
        found = recognize([str(tmp_path / name)], (None, None))
        assert (found.languages, found.entries) == (("en", "de"), [{"path": str(tmp_path / name)}])
    (tmp_path / "d.tmx").write_text(tmx(tu(en="a", de="b", fr="c")))
    with pytest.raises(ConfigError, match="expected two languages, got en, de, fr"):
        recognize([str(tmp_path / "d.tmx")], (None, None))
    assert recognize([str(tmp_path / "d.tmx")], ("fr", "en")).languages == ("fr", "en")


def test_similar_tags_are_no_text_of_the_other_side() -> None:
    texts = {"en-GB": "colour", "en-US": "color"}
    assert text_in(texts, "en", "en-GB") == "color"
    assert text_in(texts, "en-GB", "en") == "colour"
    assert text_in({"en-GB": "colour"}, "en", "en-GB") == ""
    assert text_in({"eng": "dog", "jpn": "犬"}, "ja") == "犬"
    assert text_in({"por-BR": "cachorro", "pt-PT": "cão"}, "pt-BR") == "cachorro"
    cantonese = {"yue": "佢", "zh": "他"}
    assert [text_in(cantonese, tag, other) for tag, other in (("zh", "yue"), ("yue", "zh"))] == ["他", "佢"]
    assert text_in({"yue": "佢"}, "zh", "yue") == ""


@pytest.mark.filterwarnings("ignore:.*will be removed")
def test_what_a_copy_of_a_spreadsheet_would_lose_is_refused(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.xlsx", [["en", "de"], ["Yes", "Ja"]])
    rule = '<extLst><ext uri="{78C0D931-6437-407d-A8EE-F0AAD7539E65}"/></extLst>'
    change_sheet(path, "</worksheet>", f"{rule}</worksheet>")
    with pytest.warns(UserWarning, match="will be removed"):  # reading loses nothing
        assert [pair for _, pair in read_spreadsheet(path, EN_DE)] == [("Yes", "Ja")]
    with pytest.raises(DataError, match=r"a copy would lose: Conditional Formatting extension"):
        list(lines_to_fill(path, ("en", "de"), keep_tags=False))
    from openpyxl.comments import Comment

    path = sheet(tmp_path / "b.xlsx", [["en"], ["Yes"]])
    with open_workbook(path, to_write=True) as book:
        book.active["A2"].comment = Comment("politely", "a translator")
        book.save(path)
    with pytest.raises(DataError, match="comments or macros, which a copy would lose or change"):
        list(lines_to_fill(path, ("en", "de"), keep_tags=False))


def test_a_new_column_is_beside_the_last_one_with_text(tmp_path: Path) -> None:
    """Not beside the last one with a format, and not inside of a merged cell."""
    path = sheet(tmp_path / "a.xlsx", [["en", "note"], ["A dog.", "x"]])
    with open_workbook(path, to_write=True) as book:
        book.active.merge_cells("B1:C1")
        book.active["XFD2"].number_format = "0.00"
        book.save(path)
    with open(tmp_path / "b.xlsx", "wb") as output:
        fill(path, output, iter(["Ein Hund."]), ("en", "de"))
    assert list(read_spreadsheet(tmp_path / "b.xlsx", EN_DE)) == [(2, ("A dog.", "Ein Hund."))]
    with open_workbook(tmp_path / "b.xlsx", to_write=True) as book:
        assert (book.active["D1"].value, book.active["D2"].value) == ("de", "Ein Hund.")


def test_a_copy_of_a_spreadsheet_keeps_the_formats_inside_of_cells(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    from openpyxl.cell.rich_text import CellRichText, TextBlock
    from openpyxl.cell.text import InlineFont

    rich = CellRichText("A ", TextBlock(InlineFont(b=True), "big"), " dog.")
    path = sheet(tmp_path / "a.xlsx", [["en", "note"], [rich, "x"], ["A cat.", rich]])
    lines = list(lines_to_fill(path, ("en", "de"), keep_tags=False))
    assert lines == ["A big dog.", "A cat."]
    with open(tmp_path / "b.xlsx", "wb") as output:
        fill(path, output, iter(["Ein großer Hund.", "Eine Katze."]), ("en", "de"))
    with open_workbook(tmp_path / "b.xlsx", to_write=True) as book:
        rows = [list(row) for row in book.active.iter_rows(values_only=True)]
    assert rows == [["en", "note", "de"], [rich, "x", "Ein großer Hund."], ["A cat.", rich, "Eine Katze."]]
    assert isinstance(rows[1][0], CellRichText) and rows[1][0][1].font.b
