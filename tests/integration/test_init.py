"""`mtkit init`: files are recognized, and `check` accepts the YAML."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from mtkit.config.loading import load_config
from mtkit.data.order import BatchOrder
from mtkit.data.readers import Pair
from mtkit.data.recognize import recognize
from mtkit.data.tokenizer import make_tokenizers
from mtkit.demo.generator import generate
from mtkit.errors import ConfigError, DataError
from mtkit.training.preset import choose_values
from mtkit.training.starter import make_starter_config

EN, DE = ["Hello.", "A dog."], ["Hallo.", "Ein Hund."]
LINES = "".join(f"{line}\n" for line in EN)
BOTH = dict(zip(EN, DE, strict=True))


def write(folder: Path, name: str) -> None:
    """Write two pairs in the format that the file name indicates; for parallel files, one side."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(BOTH.items())
    if name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        columns: dict[str, list[Any]] = {"id": [1, 2]}
        if "nested" in name:
            columns["translation"] = [{"en": en, "de": de} for en, de in rows]
        else:
            columns |= {"en": EN, "de": DE}
        parquet.write_table(pyarrow.table(columns), path)
        return
    if ".tsv" in name:
        header = "source\ttarget\n" if "header" in name else ""
        text = header + "".join(f"{en}\t{de}\n" for en, de in rows)
    elif ".csv" in name:
        header = {"codes": "id,en,de", "sides": "source,target,note"}[Path(name).stem.split("-")[0]]
        cells = {"id": '1,"{}","{}"', "source": '"{}","{}",x'}[header.split(",")[0]]
        text = f"{header}\n" + "".join(cells.format(*row) + "\n" for row in rows)
    elif ".jsonl" in name:
        objects = [{"translation": {"en": en, "de": de}} if "nested" in name else {"x": 1, "en": en, "de": de}
                   for en, de in rows]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in objects)
    else:
        text = LINES
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


@pytest.mark.parametrize(
    ("files", "options", "train"),
    [
        (["train.en", "train.de"], {}, [{"src": "train.en", "tgt": "train.de"}]),
        (["train.de", "train.en"], {"languages": ("en", None)}, [{"src": "train.en", "tgt": "train.de"}]),
        (["en.txt", "de.txt"], {}, [{"src": "en.txt", "tgt": "de.txt"}]),
        (["c_en.txt.gz", "c_de.txt.gz"], {}, [{"src": "c_en.txt.gz", "tgt": "c_de.txt.gz"}]),
        (["train.src", "train.tgt"], {"languages": ("en", "de")}, [{"src": "train.src", "tgt": "train.tgt"}]),
        (["a.en", "b.en", "a.de", "b.de"], {}, [{"src": "a.en", "tgt": "a.de"}, {"src": "b.en", "tgt": "b.de"}]),
        (["news.en-de.tsv"], {}, [{"path": "news.en-de.tsv"}]),
        (["news-en-de/train.tsv.gz"], {}, [{"path": "train.tsv.gz"}]),
        (["header-en-de.tsv"], {}, [{"path": "header-en-de.tsv", "columns": ["source", "target"]}]),
        (["codes.csv"], {}, [{"path": "codes.csv"}]),
        (["sides-en-de.csv"], {}, [{"path": "sides-en-de.csv", "columns": ["source", "target"]}]),
        (["flat.jsonl"], {}, [{"path": "flat.jsonl"}]),
        (["nested.jsonl"], {}, [{"path": "nested.jsonl"}]),
        (["flat.parquet"], {}, [{"path": "flat.parquet"}]),
        (["nested.parquet"], {}, [{"path": "nested.parquet"}]),
        (["x/flat.parquet", "codes.csv"], {}, [{"path": "codes.csv"}, {"path": "x/flat.parquet"}]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and isinstance(value[0], str) else "",
)  # fmt: skip
def test_files_are_recognized(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    options: dict[str, Any],
    train: list[Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files:
        write(tmp_path, name)
    made = make_starter_config(
        sorted(files) if len(files) == 2 and "codes.csv" in files else files, **options
    )
    Path("my.yaml").write_text(made.text)
    config = load_config("my.yaml")
    assert (made.languages, made.num_pairs, made.missing) == (("en", "de"), 2 * len(train), ("valid", "test"))
    assert (config.data.src, config.data.tgt) == ("en", "de")
    found = [entry.model_dump(exclude_none=True, mode="json") for entry in config.data.train]
    assert found == train


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (
            ["train.src", "train.tgt"],
            "train.src: the file name does not contain a language (name the languages with `src`",
        ),
        (["train.en", "train.de-at"], "train.de-at: the file name does not contain a language"),
        (["train.en"], "train.en: expected two parallel files, got 1"),
        (["a.en", "b.en"], "source and target are both 'en'"),
        (["a.en", "a.de", "b.fr", "b.de"], "b.fr: the languages are fr and de, not en and de"),
        (["pairs.tsv"], "pairs.tsv: the file name does not contain its languages"),
        (["my-mt/pairs.tsv"], "pairs.tsv: the file name does not contain its languages"),
        (["sides.csv"], "sides.csv: the columns do not name the languages"),
        (["."], ".: a folder, not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_languages_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], part: str
) -> None:
    folder = tmp_path / "corpora"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in files:
        if name != ".":
            write(folder, name)
    with pytest.raises(ConfigError) as told:
        make_starter_config(files)
    assert part in str(told.value)


@pytest.mark.parametrize("num_pairs", [2500, 6000])
def test_the_number_of_epochs_is_that_of_the_tokenized_corpus(tmp_path: Path, num_pairs: int) -> None:
    """A small vocabulary has short pieces, so an epoch has more batches than with a large one."""
    pairs = list(generate("en-de", num_pairs, 1, "train"))
    for side, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        (tmp_path / f"train.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    made = make_starter_config([str(tmp_path / f"train.{side}") for side in ("en", "de")])
    (tmp_path / "my.yaml").write_text(made.text, encoding="utf-8")
    config, (_, length) = choose_values(load_config(tmp_path / "my.yaml"))
    assert f"{config.preset}, {config.training.max_steps:,} updates" in made.text
    tokenizers = make_tokenizers(config.tokenizer, [Pair(*pair) for pair in pairs])
    lengths = [
        np.array([len(ids) for ids in tokenizer.encode(lines)])
        for tokenizer, lines in zip((tokenizers.src, tokenizers.tgt), zip(*pairs, strict=True), strict=True)
    ]
    per_epoch = len(BatchOrder(*lengths, config.training.batch_token_budget, 1))
    said = float(re.search(r"about ([\d.]+) epochs", length)[1])  # type: ignore[index]
    assert config.training.max_steps / per_epoch == pytest.approx(said, rel=0.2)  # type: ignore[operator]


def test_validation_and_test_sets_beside_the_training_files(tmp_path: Path) -> None:
    names = ["valid_2013", "dev.x", "test.a", "wmt-newstest2014", "devtest", "more", "validity", "train"]
    names += ["latest", "contest", "train-test", "new-testament", "wmttest2022"]
    for name in names:
        for side in ("en", "de"):
            write(tmp_path, f"{name}.{side}.gz")
        for hidden in (".test", "._test", "~$test"):
            write(tmp_path, f"{hidden}.{side}.gz")
    write(tmp_path, "test.alone.en")
    made = make_starter_config([str(tmp_path / f"train.{side}.gz") for side in ("en", "de")])
    (tmp_path / "my.yaml").write_text(made.text)
    data = load_config(tmp_path / "my.yaml").data
    assert data.root == str(tmp_path)
    assert [entry.src for entry in data.valid] == ["dev.x.en.gz", "valid_2013.en.gz"]
    found = ["devtest.de.gz", "test.a.de.gz", "wmt-newstest2014.de.gz", "wmttest2022.de.gz"]
    assert [entry.tgt for entry in data.test] == found
    assert made.missing == ()
    first = tmp_path / "devtest.en.gz"
    assert made.notes[1].startswith(
        f"test pairs, found by their names: {first}, {tmp_path / 'devtest.de.gz'}, "
    )


def test_the_command_writes_a_config_that_check_accepts(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [corpus / "train.src", corpus / "train.tgt"]
    code, out, err = tiny.mtkit("init", *files, "--src", "en", "--tgt", "fr", "-o", "my config.yaml")
    assert (code, err) == (0, "")
    assert out == (
        "my config.yaml: en -> fr, 400 training pairs\n"
        f"validation pairs, found by their names: {corpus / 'valid.src'}, {corpus / 'valid.tgt'}\n"
        f"test pairs, found by their names: {corpus / 'test.src'}, {corpus / 'test.tgt'}\n"
        "    mtkit check 'my config.yaml'\n    mtkit train 'my config.yaml'\n"
    )
    small = [
        "model.d_model=16",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "training.batch_tokens=400",
    ]
    code, out, err = tiny.mtkit("check", "my config.yaml", *small)
    assert (code, err) == (0, "")
    assert "valid      valid: 24 pairs" in out
    assert "test       test: 16 pairs" in out
    before = Path("my config.yaml").read_text()
    code, _, err = tiny.mtkit("init", *files, "--src", "en", "--tgt", "fr", "-o", "my config.yaml")
    assert (code, tiny.one_line(err)) == (
        2, "error: my config.yaml: the file already exists (choose another with -o)"
    )  # fmt: skip
    assert Path("my config.yaml").read_text() == before
    assert tiny.mtkit("init", *files, "--src", "en", "--tgt", "fr", "-o", "-")[1] == before


def test_with_the_config_on_stdout_what_is_missing_is_told_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = ["a " * 600] * 3
    tiny.write_lines(tmp_path / "train.en", [*long, "a"])
    tiny.write_lines(tmp_path / "train.de", [*long, "a"])
    code, out, err = tiny.mtkit("init", "train.en", "train.de", "-o", "-")
    assert code == 0 and out.startswith("# en to de")
    for told in ("will be left out: longer than", "no validation pairs found", "no test pairs found"):
        assert told in err and told not in out


def test_unequal_files_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_lines(tmp_path / "train.en", ["a", "b"])
    tiny.write_lines(tmp_path / "train.de", ["a"])
    code, out, err = tiny.mtkit("init", "train.en", "train.de")
    assert (code, out) == (3, "")
    assert "train.en: 2 lines, but 1 in" in tiny.one_line(err)
    assert not Path("en-de.yaml").exists()


def test_empty_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for side in ("en", "de"):
        tiny.write_lines(tmp_path / f"train.{side}", [])
    code, _, err = tiny.mtkit("init", "train.en", "train.de")
    assert (code, tiny.one_line(err)) == (3, "error: train.en:1: no training pairs (the files are empty)")


@pytest.mark.parametrize(
    ("files", "languages"),
    [
        (["train.en", "train.zh-hans"], ("en", "zh-hans")),
        (["train.en", "train.zh-cn"], ("en", "zh-cn")),
        (["train.en", "train.pt-br"], ("en", "pt-br")),
        (["en-gb.txt", "fr-ca.txt"], ("en-gb", "fr-ca")),
        (["un-en.txt", "un-fr.txt"], ("en", "fr")),
        (["OpenSubtitles.en-zh_cn.en", "OpenSubtitles.en-zh_cn.zh_cn"], ("en", "zh_cn")),
        (["TED.en-pt_br.tsv"], ("en", "pt_br")),
        (["corpus-zh_TW-en.tsv"], ("zh_TW", "en")),
        (["my_corpus_en_de.tsv"], ("en", "de")),
        (["corpus.fr-ca.tsv"], ("fr", "ca")),
        (["corpus_en_de.en", "corpus_en_de.de"], ("en", "de")),
        (["x.zho_Hans-eng_Latn.tsv"], ("zho_Hans", "eng_Latn")),
        (["en-to-fr.tsv"], ("en", "fr")),
        (["my-en.tsv"], ("my", "en")),
        (["en-fr/my-set.tsv"], ("en", "fr")),
    ],
)
def test_names_of_files_tell_the_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], languages: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("a\tb\n" if name.endswith(".tsv") else "a\n")
    assert recognize(files, (None, None)).languages == languages


@pytest.mark.parametrize(
    ("first", "columns"),
    [
        ("yes\toui", None),
        ("fr\ten", ["en", "fr"]),
        ("eng\tfra", ["eng", "fra"]),
        ("hin\teng", ["hin", "eng"]),
    ],
)
def test_short_words_are_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, columns: list[str] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.tsv", "x.en-fr.tsv"):
        Path(name).write_text(f"{first}\nHello.\tBonjour.\n")
        found = recognize([name], ("en", "fr") if name == "x.tsv" else (None, None))
        assert found.languages == ("en", "fr")
        assert found.entries == [{"path": name} | ({"columns": columns} if columns else {})]


@pytest.mark.parametrize(
    ("name", "text", "wanted", "languages", "columns", "note"),
    [
        ("x.en-fr.tsv", "Yes.\tOui.", ("fr", "en"), ("fr", "en"), [2, 1], "fr from column 2 and en from column 1"),
        ("x.en-fr.tsv", "Yes.\tOui.", ("fr", None), ("fr", "en"), [2, 1], "fr from column 2"),
        ("x.en-fr.tsv", "Yes.\tOui.", (None, "eng"), ("fr", "eng"), [2, 1], "fr from column 2"),
        ("x.en-fr.tsv", "Yes.\tOui.", ("eng", None), ("eng", "fr"), None, None),
        ("x.fr-ca.tsv", "Yes.\tOui.", ("en", "fr"), ("en", "fr"), None, None),
        ("en-fr/x.tsv", "Oui.\tYes.", ("fr", "en"), ("fr", "en"), None, "fr from column 1 and en from column 2"),
        ("x.en-fr.tsv", "source\ttarget", ("fr", "en"), ("fr", "en"), ["target", "source"], "column 'target'"),
        ("x.csv", "en,fr", ("fr", None), ("fr", "en"), None, None),
        ("x.csv", "eng,fra", ("fr", "en"), ("fr", "en"), ["fra", "eng"], None),
        ("x.csv", "German,Sorbian", ("hsb", "de"), ("hsb", "de"), ["German", "Sorbian"],
         "reading hsb from column 'German' and de from column 'Sorbian'"),
    ],
)  # fmt: skip
def test_columns_follow_the_direction_or_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    wanted: tuple[str | None, str | None],
    languages: tuple[str, str],
    columns: list[object] | None,
    note: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(f"{text}\n")
    found = recognize([name], wanted)
    assert (found.languages, found.entries) == (
        languages, [{"path": name} | ({"columns": columns} if columns else {})]
    )  # fmt: skip
    assert found.notes == () if note is None else note in found.notes[0]


def test_text_files_have_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for side in ("en", "fr"):
        Path(f"train.{side}").write_text("Yes.\n")
    code, out, err = tiny.mtkit("init", "train.en", "train.fr", "--columns", "a", "b")
    assert (code, out, "text files have no columns" in err) == (2, "", True)


def test_the_command_takes_columns_and_tells_those_it_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.en-fr.tsv").write_text("Yes.\tOui.\n")
    Path("four.csv").write_text("id,English,French,note\n1,Yes.,Oui.,x\n")
    assert (
        "train.en-fr.tsv: reading fr from column 2" in tiny.mtkit("init", "train.en-fr.tsv", "--src", "fr")[1]
    )
    [entry] = load_config("fr-en.yaml").data.train
    assert entry.columns == ("2", "1")
    four = ("init", "four.csv", "--src", "en", "--tgt", "fr")
    assert "with --columns" in tiny.mtkit(*four)[2]
    code, out, err = tiny.mtkit(*four, "--columns", "English", "French")
    assert (code, err) == (0, "")
    assert "four.csv: " not in out
    assert load_config("en-fr.yaml").data.train[0].columns == ("English", "French")


def damaged_parquet() -> bytes:
    """Return a table with a column whose name is not UTF-8."""
    import pyarrow
    from pyarrow import parquet

    file = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"<name>": ["x"]}), file, store_schema=False)
    return bytes(file.getvalue()).replace(b"<name>", b"\xffname>")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"en,de\rHello,Hallo\r", r"a\.csv:1: not CSV"),  # line ends of an old Mac
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: the first line is not a JSON object"),
        ("a.parquet", damaged_parquet(), r"a\.parquet: cannot be read: .*utf-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_errors_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        recognize([name], (None, None))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "train.en"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"train\.en: a pipe, which cannot be read again"):
        recognize([str(pipe), "train.de"], (None, None))


def hold_out(*arguments: object) -> tuple[int, str, str]:
    return tiny.mtkit("init", *arguments, "--src", "en", "--tgt", "fr", "-o", "my.yaml")


def rows(name: str) -> list[str]:
    return Path(name).read_text(encoding="utf-8").splitlines()


def test_pairs_are_held_out_by_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [f"src {i % 90}\ttgt {i}" for i in range(120)]  # 30 sources have two translations
    tiny.write_lines(tmp_path / "all.tsv", [*pairs, " \tblank", "blank\t"])
    code, out, err = hold_out("all.tsv", "--hold-out", 10)
    assert (code, err) == (0, "")
    parts = {split: rows(f"my.data/{split}.tsv") for split in ("train", "valid", "test")}
    sources = {split: {row.split("\t")[0] for row in part} for split, part in parts.items()}
    assert (len(parts["valid"]), len(parts["test"])) == (10, 10)
    assert len(set.union(*sources.values())) == sum(map(len, sources.values())) == 90
    # all pairs of the other sources are there, in their order, and the first one of each that is held out
    assert parts["train"] == [row for row in pairs if row.split("\t")[0] in sources["train"]]
    assert {*parts["valid"], *parts["test"]} <= set(pairs[:90])
    files = [f"my.data/{split}.tsv" for split in parts]
    lines = [f"{files[0]}: {len(parts['train'])} pairs", f"{files[1]}: 10 pairs", f"{files[2]}: 10 pairs"]
    assert out.splitlines()[:3] == lines
    data = load_config("my.yaml").data
    splits = (data.train, data.valid, data.test)
    assert [os.path.join(str(data.root), str(of_split[0].path)) for of_split in splits] == files
    # the same again: nothing of the first division is taken for a validation or test set
    Path("my.yaml").rename("old.yaml")
    Path("my.data").rename("old.data")
    tiny.write_lines(tmp_path / "all.tsv", [*reversed(pairs)])
    assert hold_out("all.tsv", "--hold-out", 10)[0] == 0
    assert {split: {row.split("\t")[0] for row in rows(f"my.data/{split}.tsv")} for split in parts} == sources


def test_only_what_is_missing_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_lines(tmp_path / "all.tsv", [f"{src}\t{tgt}" for src, tgt in tiny.pairs(200, 1)])
    tiny.write_lines(tmp_path / "valid.tsv", [f"{src}\t{tgt}" for src, tgt in tiny.pairs(20, 2)])
    assert hold_out("all.tsv", "--hold-out", 5)[0] == 0
    assert not Path("my.data/valid.tsv").exists()
    assert len(rows("my.data/test.tsv")) == 5
    test = tmp_path / "test.tsv"
    Path("my.data/test.tsv").rename(test)
    code, out, err = hold_out("all.tsv", "--hold-out", 5)
    assert (code, out) == (2, "")
    assert "nothing to hold out" in tiny.one_line(err)
    test.unlink()
    code, out, err = hold_out("all.tsv", "--hold-out", 5)
    assert (code, out) == (2, "")
    assert "my.yaml: exists already" in tiny.one_line(err)
    Path("my.yaml").unlink()
    shutil.rmtree("my.data")
    code, out, err = hold_out("all.tsv", "--hold-out", 100)
    assert (code, out) == (3, "")
    assert "too few to hold out 1 x 100" in tiny.one_line(err)
    Path("valid.tsv").write_text("no tab\n")
    code, out, err = hold_out("all.tsv", "--hold-out", 5)
    assert (code, out) == (3, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tsv", "valid.tsv"]
