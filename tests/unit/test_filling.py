"""Copies of TMX and XLIFF files with translations: all other bytes unchanged, tags in place, approved targets kept."""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny

from mtkit.data.documents import read_units
from mtkit.data.filling import fill, lines_to_fill
from mtkit.errors import DataError

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<!-- a comment -->
<tmx version="1.4">
<header srclang="en"/><body>
  <tu tuid="1">
    <tuv xml:lang="en-US"><seg>Click <bpt i="1">&lt;b></bpt>here<ept i="1">&lt;/b></ept> &amp; wait<ph/>.</seg></tuv>
  </tu>
  <tu><prop type='x'>y</prop><tuv xml:lang="en"><seg><![CDATA[A <dog>.]]></seg></tuv>
  <tuv xml:lang="de-DE" creationid="me"><seg>Hund</seg></tuv></tu>
  <tu><tuv xml:lang="fr"><seg>Un chat.</seg></tuv></tu>
</body>
</tmx>
"""

XLIFF_12 = """<?xml version="1.0"?>
<x:xliff version="1.2" xmlns:x="urn:oasis:names:tc:xliff:document:1.2">
<x:file source-language="en-US" original="a" datatype="x"><x:body>
  <x:trans-unit id="1">
    <x:source>Hello <x:g id="1">big</x:g><x:x id="2"/> world</x:source>
    <x:alt-trans><x:source>old</x:source><x:target>alt</x:target></x:alt-trans>
  </x:trans-unit>
  <x:trans-unit id="2"><x:source> One
     two </x:source><x:target state="new" xml:lang="de"/></x:trans-unit>
  <x:trans-unit id="3" approved="yes"><x:source>Yes</x:source><x:target>Ja</x:target></x:trans-unit>
  <x:trans-unit id="4"><x:source>Yes</x:source><x:target state="final">Ja</x:target></x:trans-unit>
  <x:group translate="no"><x:trans-unit id="5"><x:source>No</x:source></x:trans-unit>
  <x:trans-unit id="6" translate="yes"><x:source>Six</x:source></x:trans-unit></x:group>
  <x:trans-unit id="7"><x:source>A. B.</x:source>
    <x:seg-source><x:mrk mtype="seg" mid="0">A.</x:mrk> <x:g id="9"><x:mrk mtype="seg">B.</x:mrk></x:g></x:seg-source>
  </x:trans-unit>
</x:body></x:file></x:xliff>
"""

XLIFF_20 = """<xliff version="2.1" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en">
<file id="f"><unit id="1"><originalData><data id="d">\\n</data></originalData>
<segment id="s" state="initial" subState="x:y"><source>One <pc id="1">two</pc><ph id="2" dataRef="d"/></source>
</segment>
<ignorable><source> </source></ignorable>
<segment><source><sc id="3"/>A<ec startRef="3"/><cp hex="0007"/>B</source><target>C</target></segment>
<segment state="reviewed"><source>D</source><target>D</target></segment>
</unit></file></xliff>
"""


def filled(
    path: Path, text: str, translate: Callable[[str], str], *, keep_tags: bool = False
) -> tuple[list[str], str]:
    """Write a document and return its lines and its copy with a translation of each."""
    path.write_text(text, encoding="utf-8", newline="")
    lines = list(lines_to_fill(path, ("en", "de"), keep_tags=keep_tags))
    output = io.BytesIO()
    fill(path, output, iter([translate(line) for line in lines]), ("en", "de"))
    copy = output.getvalue().decode()
    ElementTree.fromstring(copy)
    return lines, copy


def test_tmx(tmp_path: Path) -> None:
    lines, copy = filled(tmp_path / "a.tmx", TMX, str.upper)
    assert lines == ["Click here & wait.", "A <dog>."]
    new = '\n    <tuv xml:lang="de" creationtool="mtkit"><seg>CLICK HERE &amp; WAIT.</seg></tuv>\n  </tu>\n  <tu><prop'
    expected = TMX.replace("\n  </tu>\n  <tu><prop", new, 1).replace(
        '<tuv xml:lang="de-DE" creationid="me"><seg>Hund</seg></tuv>',
        '<tuv xml:lang="de-DE" creationtool="mtkit"><seg>A &lt;DOG&gt;.</seg></tuv>',
    )
    assert copy == expected


def test_tags_come_along(tmp_path: Path) -> None:
    def swap(line: str) -> str:
        return re.sub(r"Click (<g1>here</g1>) & wait(<x3/>)", r"\2Warte & \1", line)

    lines, copy = filled(tmp_path / "a.tmx", TMX, swap, keep_tags=True)
    assert lines == ["Click <g1>here</g1> & wait<x3/>.", "A <dog>."]
    assert '<seg><ph/>Warte &amp; <bpt i="1">&lt;b></bpt>here<ept i="1">&lt;/b></ept>.</seg>' in copy


def test_xliff_12(tmp_path: Path) -> None:
    lines, copy = filled(tmp_path / "a.xlf", XLIFF_12, str.upper)
    assert lines == ["Hello big world", "One two", "Six", "A.", "B."]
    state = 'state="needs-review-translation" state-qualifier="leveraged-mt"'
    expected = (
        XLIFF_12.replace("<x:file ", '<x:file target-language="de" ')
        .replace("world</x:source>", f"world</x:source>\n    <x:target {state}>HELLO BIG WORLD</x:target>")
        .replace(
            '<x:target state="new" xml:lang="de"/>',
            f'<x:target {state.split(" ")[0]} xml:lang="de" {state.split(" ")[1]}> ONE TWO </x:target>',
        )
        .replace("Six</x:source>", f"Six</x:source><x:target {state}>SIX</x:target>")
        .replace(
            "</x:seg-source>",
            f'</x:seg-source>\n    <x:target {state}><x:mrk mtype="seg" mid="0">A.</x:mrk> '
            '<x:g id="9"><x:mrk mtype="seg">B.</x:mrk></x:g></x:target>',
        )
    )
    assert copy == expected


DIVIDED = """<xliff version="1.2"><file source-language="en" target-language="de" original="a"><body>
<trans-unit id="1"><source>A. B.</source>
<seg-source><mrk mtype="seg" mid="0">A.</mrk> <mrk mtype="seg" mid="1"><x id="1"/></mrk>
<mrk mtype="seg">B.</mrk></seg-source>
<target>old</target></trans-unit>
</body></file></xliff>
"""


def test_parts_of_a_unit(tmp_path: Path) -> None:
    """A part of tags alone stays; where a part with text has no translation, the target is what it was."""
    lines, copy = filled(tmp_path / "a.xlf", DIVIDED, str.lower)
    assert lines == ["A.", "", "B."]
    parts = '<mrk mtype="seg" mid="0">a.</mrk> <mrk mtype="seg" mid="1"><x id="1"/></mrk>\n<mrk mtype="seg">b.</mrk>'
    assert parts in copy and "old" not in copy
    _, copy = filled(tmp_path / "a.xlf", DIVIDED, lambda line: line.replace("B.", ""))
    assert copy == DIVIDED


def test_xliff_20(tmp_path: Path) -> None:
    lines, copy = filled(tmp_path / "a.xlf", XLIFF_20, str.lower, keep_tags=True)
    assert lines == ["One <g1>two</g1><x3/>", "<g1>A</g1>\x07B"]
    expected = (
        XLIFF_20.replace("<xliff ", '<xliff trgLang="de" ')
        .replace('<segment id="s" state="initial" subState="x:y">', '<segment id="s" state="translated">')
        .replace(
            'dataRef="d"/></source>',
            'dataRef="d"/></source><target>one <pc id="1">two</pc><ph id="2" dataRef="d"/></target>',
        )
        .replace("<segment><source><sc", '<segment state="translated"><source><sc')
        .replace("<target>C</target>", '<target><sc id="3"/>a<ec startRef="3"/>b</target>')
    )
    assert copy == expected


@pytest.mark.parametrize(
    ("translation", "content"),
    [
        ("<g1>zwei</g1> eins<x3/>", '<pc id="1">zwei</pc> eins<ph id="2" dataRef="d"/>'),
        ("eins zwei", "eins zwei"),
        ("<g1>eins zwei<x3/>", "eins zwei"),
        ("</g1>eins<g1> zwei<x3/>", "eins zwei"),
        ("<g1>eins</g1> zwei<x3/><x3/>", "eins zwei"),
        ("<g1>eins</g1> <g7>zwei<x3/>", "eins &lt;g7&gt;zwei"),
    ],
)
def test_tags_that_do_not_fit_are_left_out(tmp_path: Path, translation: str, content: str) -> None:
    translations = iter([translation])
    _, copy = filled(tmp_path / "a.xlf", XLIFF_20, lambda _: next(translations, ""), keep_tags=True)
    assert f"<target>{content}</target>" in copy


@pytest.mark.parametrize("keep_tags", [False, True])
def test_white_space_at_the_ends_comes_once(tmp_path: Path, keep_tags: bool) -> None:
    text = XLIFF_20.replace("One <pc id", "<pc id").replace(">two<", ">  two<")
    _, copy = filled(tmp_path / "a.xlf", text, str.lower, keep_tags=keep_tags)
    inner = '<pc id="1">  two</pc><ph id="2" dataRef="d"/>' if keep_tags else "  two"
    assert f"<target>{inner}</target>" in copy


def test_a_unit_inside_a_unit_is_filled_once(tmp_path: Path) -> None:
    unit = '<tu><tuv xml:lang="en"><seg>A</seg></tuv>{}</tu>'
    text = f'<tmx version="1.4"><header/><body>{unit.format(unit.format(""))}</body></tmx>'
    new = '<tuv xml:lang="de" creationtool="mtkit"><seg>a</seg></tuv></tu></tu>'
    assert filled(tmp_path / "a.tmx", text, str.lower) == (["A"], text.replace("</tu></tu>", new))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "iso-8859-1", "windows-1252"]
)
@pytest.mark.parametrize("text", [TMX, XLIFF_12, XLIFF_20])
def test_nothing_else_changes(tmp_path: Path, text: str, encoding: str) -> None:
    name = "UTF-16" if encoding.startswith("utf-16") else encoding.removesuffix("-sig")
    declared = f'<?xml version="1.0" encoding="{name}"?>\r\n' + re.sub(r"<\?xml.*\?>\n", "", text).replace(
        "Click", "ÄÖÜ"
    )
    content = declared.encode(encoding)
    path = tmp_path / ("a.tmx" if "<tmx" in text else "a.xlf")
    path.write_bytes(content)
    lines = list(lines_to_fill(path, ("en", "de"), keep_tags=False))
    output = io.BytesIO()
    fill(path, output, iter([""] * len(lines)), ("en", "de"))
    unchanged = re.sub(r' (target-language|trgLang)="de"', "", output.getvalue().decode(encoding))
    assert unchanged.encode(encoding) == content
    compressed = path.with_name(path.name + ".gz")
    compressed.write_bytes(gzip.compress(content))
    translated = io.BytesIO()
    fill(compressed, translated, iter([f"Ärger {i} 漢" for i in range(len(lines))]), ("en", "de"))
    path.write_bytes(translated.getvalue())
    found = [text for unit in read_units(path) for tag, text in unit.texts.items() if tag[:2] == "de"]
    assert [text for text in found if "Ä" in text] == (
        ["Ärger 0 漢", "Ärger 1 漢", "Ärger 2 漢", "Ärger 3 漢 Ärger 4 漢"] if len(lines) == 5 else
        [f"Ärger {i} 漢" for i in range(len(lines))]
    )  # fmt: skip


def test_many_units_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = "".join(f'<tu>\n<tuv xml:lang="en"><seg>n{i} <ph/>é</seg></tuv>\n</tu>' for i in range(500))
    text = f'<tmx version="1.4"><header/><body>{units}</body></tmx>'

    def upper(line: str) -> str:
        return line.replace("n", "N").replace("é", "É")

    _, whole = filled(tmp_path / "a.tmx", text, upper, keep_tags=True)
    monkeypatch.setattr("mtkit.files.reading.BLOCK_BYTES", 7)
    assert filled(tmp_path / "a.tmx", text, upper, keep_tags=True)[1] == whole
    assert whole.count("<seg>N499 <ph/>É</seg>") == 1


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_target_language_is_added_wherever_a_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    text = XLIFF_12.replace("<x:body>", f"<!-- {'x' * 50} --><x:body>")
    whole = filled(tmp_path / "a.xlf", text, str.upper)
    monkeypatch.setattr("mtkit.files.reading.BLOCK_BYTES", size)
    monkeypatch.setattr("mtkit.data.documents._PARSED_BYTES", size)
    assert filled(tmp_path / "a.xlf", text, str.upper) == whole


PEAK = """
import sys
from pathlib import Path
from mtkit.data.filling import fill, lines_to_fill
path, languages = Path(sys.argv[1]), ("en", "de")
lines = (line.upper() for line in lines_to_fill(path, languages, keep_tags=False))
with open(path.with_suffix(".out"), "wb") as output:
    fill(path, output, lines, languages)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak)
"""


def test_memory_does_not_grow_with_the_document(tmp_path: Path) -> None:
    """The peak of a process that fills 4 MB, all in one line, is that of one that fills 1 MB."""

    def peak(num_units: int) -> int:
        path = tmp_path / f"{num_units}.tmx"
        unit = f'<tu><tuv xml:lang="en"><seg>{"a dog &amp; a cat " * 50}</seg></tuv></tu>'
        path.write_text(f'<tmx version="1.4"><header/><body>{unit * num_units}</body></tmx>')
        child = [sys.executable, "-c", PEAK, str(path)]
        return int(
            subprocess.run(child, env=tiny.child_environment(), capture_output=True, check=True).stdout
        )

    assert peak(4000) < peak(1000) + 2048


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xlf", XLIFF_20.replace('srcLang="en"', 'srcLang="is"'), "xlf:1: the source language is 'is', not 'en'"),
        ("a.xlf", XLIFF_20.replace('srcLang="en"', 'trgLang="fr" srcLang="en"'), "target language is 'fr', not 'de'"),
        ("a.tmx", TMX.replace('"en', '"is'), "no unit has 'en'; there are: 'is-US', 'is', 'de-DE', 'fr'"),
        ("a.tmx", TMX[:-10], "not well-formed XML: unclosed token"),
        ("a.tmx", TMX.replace('"tmx14.dtd"', '"x" [<!ENTITY a "b">]'), "a.tmx:2: the file declares the entity 'a'"),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        filled(tmp_path / name, text, str.upper)


def test_a_compressed_spreadsheet_is_no_xml(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx.gz"
    path.write_bytes(gzip.compress(b"PK"))
    with pytest.raises(DataError, match="not a spreadsheet"):
        list(lines_to_fill(path, ("en", "de"), keep_tags=False))


def test_another_number_of_translations(tmp_path: Path) -> None:
    (tmp_path / "a.tmx").write_text(TMX)
    for number in (1, 3):
        with pytest.raises(DataError, match="segments than translations"):
            fill(tmp_path / "a.tmx", io.BytesIO(), iter(["x"] * number), ("en", "de"))
