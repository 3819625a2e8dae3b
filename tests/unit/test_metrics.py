"""Scores equal those of sacreBLEU's library and command; mistakes are reported in one line.

Some tests start another Python: for the `sacrebleu` command, and because the folder of sacreBLEU's test sets is
fixed when it is imported.
"""

import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args
from urllib.error import URLError

import pytest
import sacrebleu
import sacrebleu.dataset.base
from sacrebleu.dataset.base import Dataset
from sacrebleu.dataset.fake_sgml import FakeSGMLDataset
from sacrebleu.dataset.plain_text import PlainTextDataset
from sacrebleu.dataset.wmt_xml import WMTXMLDataset

from mtkit.config.choices import METRICS
from mtkit.config.sections import BleuTokenizer
from mtkit.errors import ConfigError, DataError
from mtkit.evaluation import metrics
from mtkit.languages import BLEU_TOKENIZERS
from mtkit.translation.mbr import make_utility

HYPS = [
    "Ein Mann fährt mit dem Fahrrad durch die Stadt.",
    "Zwei Hunde spielen im Schnee",
    "Das Kind, das einen roten Ball hat, lacht!",
    "",
    "Eine Frau kocht um 18:30 Uhr eine Suppe.",
    "EIN JUNGE SPRINGT INS WASSER.",
    "Drei Leute (alle in Gelb) warten an der Haltestelle.",
    "Ein alter Mann liest auf einer Bank im Park seine Zeitung.",
]
REFS = [
    "Ein Mann fährt auf einem Fahrrad durch die Stadt.",
    "Zwei Hunde spielen im Schnee.",
    "Das Kind mit dem roten Ball lacht.",
    "Niemand ist da.",
    "Um 18:30 Uhr kocht eine Frau Suppe.",
    "Ein Junge springt ins Wasser.",
    "Drei Leute in Gelb warten an einer Haltestelle.",
    "Ein alter Mann sitzt im Park auf einer Bank und liest seine Zeitung.",
]
MORE_REFS = [
    "Ein Mann radelt durch die Stadt.",
    "Im Schnee spielen zwei Hunde.",
    "Das Kind, das einen roten Ball hält, lacht!",
    "Es ist niemand zu sehen.",
    "Eine Frau kocht um halb sieben eine Suppe.",
    "Ein Junge hüpft ins Wasser.",
    "Drei Personen (alle gelb gekleidet) warten an der Haltestelle.",
    "Auf einer Parkbank liest ein alter Mann die Zeitung.",
]
STREAMS = {"one": [REFS], "two": [REFS, MORE_REFS]}


def run(*command: str, **environment: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SACREBLEU")}
    result = subprocess.run(
        command, env=inherited | environment, capture_output=True, encoding="utf-8", check=True
    )
    return result.stdout


def sacrebleu_lines(*arguments: str, **environment: str) -> list[str]:
    """Return what the `sacrebleu` command prints, one line per metric."""
    command = [sys.executable, "-m", "sacrebleu", *arguments, "-f", "text", "-w", "6", "--no-color"]
    return [line.strip() for line in run(*command, **environment).split("\n") if line]


def write(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


# Scores


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_scores_and_signatures_are_those_of_the_library(streams: list[list[str]], lowercase: bool) -> None:
    theirs = [
        sacrebleu.BLEU(lowercase=lowercase),
        sacrebleu.CHRF(lowercase=lowercase),
        sacrebleu.CHRF(word_order=2, lowercase=lowercase),
        sacrebleu.TER(),
    ]
    ours = metrics.score(HYPS, streams, METRICS, lowercase=lowercase)
    assert [score.name for score in ours] == ["BLEU", "chrF2", "chrF2++", "TER"]
    for score, metric in zip(ours, theirs, strict=True):
        expected = metric.corpus_score(HYPS, streams)
        signature = metric.get_signature().format()
        assert score.value == expected.score
        assert score.signature == signature
        assert score.format() == expected.format(signature=signature)
        assert (
            f"nrefs:{len(streams)}|case:{'lc' if lowercase or score.name == 'TER' else 'mixed'}" in signature
        )


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
def test_lines_are_those_of_the_command(streams: list[list[str]], tmp_path: Path) -> None:
    files = [write(tmp_path / f"ref{number}", stream) for number, stream in enumerate(streams)]
    system = write(tmp_path / "hyp", HYPS)
    asked = ["-m", "bleu", "chrf", "ter", "--chrf-word-order", "2", "--confidence", "--confidence-n", "50"]
    theirs = sacrebleu_lines(*files, "-i", system, *asked)
    ours = metrics.score(HYPS, streams, ["bleu", "chrf++", "ter"], num_bootstrap=50)
    assert [score.format(width=6) for score in ours] == theirs


def test_lowercase_changes_the_score_and_the_signature() -> None:
    (cased,) = metrics.score(HYPS, [REFS], ["bleu"])
    (lower,) = metrics.score(HYPS, [REFS], ["bleu"], lowercase=True)
    assert lower.value > cased.value
    assert "|case:mixed|" in cased.signature
    assert "|case:lc|" in lower.signature


def test_perfect_and_hopeless_translations() -> None:
    assert [score.value for score in metrics.score(REFS, [REFS], METRICS)] == pytest.approx(
        [100, 100, 100, 0]
    )
    nothing = metrics.score([""] * len(REFS), [REFS], METRICS, num_bootstrap=10)
    assert [score.value for score in nothing] == [0, 0, 0, 100]
    assert [(score.mean, score.confidence) for score in nothing] == [(0, 0), (0, 0), (0, 0), (100, 0)]


def test_order_of_metrics_is_kept() -> None:
    names = [score.name for score in metrics.score(HYPS, [REFS], ["ter", "bleu"])]
    assert names == ["TER", "BLEU"]


def test_any_sequence_will_do() -> None:
    assert metrics.score(tuple(HYPS), (tuple(REFS),)) == metrics.score(HYPS, [REFS])


def test_only_bleu_has_details() -> None:
    bleu, chrf, ter = metrics.score(HYPS, [REFS])
    assert bleu.detail is not None and "BP = " in bleu.detail and "ratio = " in bleu.detail
    assert chrf.detail is None and ter.detail is None


def test_json_has_the_exact_value_and_only_what_was_requested() -> None:
    (plain,) = metrics.score(HYPS, [REFS], ["chrf"])
    assert plain.as_dict() == {"name": "chrF2", "score": plain.value, "signature": plain.signature}
    (bleu,) = metrics.score(HYPS, [REFS], ["bleu"], num_bootstrap=10)
    assert list(bleu.as_dict()) == ["name", "score", "mean", "confidence", "detail", "signature"]
    assert json.loads(json.dumps(bleu.as_dict())) == bleu.as_dict()


# References that are missing


def test_a_sentence_may_lack_some_references() -> None:
    some = [None if number % 2 else ref for number, ref in enumerate(MORE_REFS)]
    for score in metrics.score(HYPS, [REFS, some], METRICS):
        assert score.signature.startswith("nrefs:var|")
    # A second stream that lacks everything is no second stream.
    none: list[str | None] = [None] * len(REFS)
    assert metrics.score(HYPS, [none, REFS], METRICS) == metrics.score(HYPS, [REFS], METRICS)


def test_an_empty_reference_is_not_a_missing_one() -> None:
    (score,) = metrics.score(HYPS, [REFS, [""] * len(REFS)], ["ter"])
    assert score.signature.startswith("nrefs:2|")
    assert score.value > metrics.score(HYPS, [REFS], ["ter"])[0].value


def test_a_sentence_without_any_reference_is_refused() -> None:
    with pytest.raises(DataError, match=r"^sentence 2: no reference$"):
        metrics.score(["a", "b"], [["a", None], [None, None]])


# Confidence intervals


def test_the_interval_and_its_conditions_are_those_of_the_library() -> None:
    bleu = sacrebleu.BLEU()
    expected = bleu.corpus_score(HYPS, [REFS], n_bootstrap=100)
    (ours,) = metrics.score(HYPS, [REFS], ["bleu"], num_bootstrap=100)
    signature = bleu.get_signature().format()
    assert "|bs:100|seed:12345|" in ours.signature
    assert ours.signature == signature
    assert ours.format(width=6) == expected.format(width=6, signature=signature)
    assert ours.confidence is not None and ours.confidence > 0


def test_the_seed_is_in_the_signature_and_changes_the_interval_only() -> None:
    (one,) = metrics.score(HYPS, [REFS], ["chrf"], num_bootstrap=50, seed=1)
    (two,) = metrics.score(HYPS, [REFS], ["chrf"], num_bootstrap=50, seed=2)
    assert "|seed:1|" in one.signature and "|seed:2|" in two.signature
    assert one.value == two.value
    assert one.mean != two.mean


@pytest.mark.parametrize("outside", [None, "7", "none"])
def test_the_environment_neither_sets_the_seed_nor_is_changed(
    outside: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if outside is None:
        monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    else:
        monkeypatch.setenv("SACREBLEU_SEED", outside)
    (score,) = metrics.score(HYPS, [REFS], ["chrf"], num_bootstrap=20)
    assert "|seed:12345|" in score.signature
    assert os.environ.get("SACREBLEU_SEED") == outside


def test_two_processes_find_the_same_interval() -> None:
    program = (
        "import json, sys; from mtkit.evaluation import metrics;"
        "scores = metrics.score(*json.loads(sys.argv[1]), metrics.METRICS, num_bootstrap=50);"
        "print(json.dumps([score.as_dict() for score in scores]))"
    )
    given = json.dumps([HYPS, [REFS, MORE_REFS]])
    here = metrics.score(HYPS, [REFS, MORE_REFS], METRICS, num_bootstrap=50)
    printed = run(sys.executable, "-c", program, given, PYTHONHASHSEED="1", SACREBLEU_SEED="none")
    assert json.loads(printed) == [score.as_dict() for score in here]


# Tokenizers


@pytest.mark.parametrize("tgt", ["zh", "zh-CN", "zh_TW", "ZH", "zho_Hans", "cmn", "yue", "chi"])
def test_chinese_is_scored_with_its_own_tokenizer(tgt: str) -> None:
    (score,) = metrics.score(["你好世界"], [["你好,世界"]], ["bleu"], tgt=tgt)
    assert "|tok:zh|" in score.signature


@pytest.mark.parametrize("tgt", [None, "de", "de-AT"])
def test_other_languages_are_scored_with_13a(tgt: str | None) -> None:
    assert "|tok:13a|" in metrics.score(HYPS, [REFS], ["bleu"], tgt=tgt)[0].signature


def test_a_given_tokenizer_wins() -> None:
    (score,) = metrics.score(["你好世界"], [["你好,世界"]], ["bleu"], tokenize="char", tgt="zh")
    assert "|tok:char|" in score.signature


@pytest.mark.parametrize("extra", ["ja", "ko"])
def test_a_tokenizer_that_is_not_installed_says_what_to_install(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{extra}_mecab.MeCab", None)
    with pytest.raises(ConfigError, match=rf'pip install "sacrebleu\[{extra}\]"') as caught:
        metrics.check_metrics(["bleu"], tokenize=f"{extra}-mecab")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tgt", "extra"), [("ja", "ja"), ("jpn_Jpan", "ja"), ("ja-JP", "ja"), ("kor", "ko")])
def test_without_its_tokenizer_a_language_is_scored_by_characters_with_a_warning(
    tgt: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{extra}_mecab.MeCab", None)
    (score,) = metrics.score(["猫が好きです"], [["猫が好きだ"]], ["bleu"], tgt=tgt)
    assert "|tok:char|" in score.signature
    warning = metrics.bleu_warning(["bleu"], tgt)
    assert warning is not None and "\n" not in warning
    for part in ("tok:char", f"sacrebleu[{extra}]", "validation.bleu_tokenizer"):
        assert part in warning
    assert metrics.bleu_warning(["bleu"], tgt, tokenize="char") is None
    assert metrics.bleu_warning(["chrf"], tgt) is None


@pytest.mark.parametrize(
    "tgt", ["th", "tha_Thai", "km-KH", "mya", "lo", "bod_Tibt", "dz", "shn_Mymr", "pli_Thai"]
)
def test_bleu_warns_about_languages_without_spaces(tgt: str) -> None:
    warning = metrics.bleu_warning(["bleu", "chrf"], tgt)
    assert warning is not None and "char or flores200" in warning and tgt in warning
    assert metrics.bleu_warning(["bleu"], tgt, tokenize="char") is None


@pytest.mark.parametrize("tgt", ["zh", "ja", "jpn_Jpan"])
def test_ter_edits_letters_of_chinese_and_japanese(tgt: str) -> None:
    (score,) = metrics.score(["我们今天去公园散步。"], [["我们今天去公园散步吧。"]], ["ter"], tgt=tgt)
    assert score.value == pytest.approx(100 / 11) and "|norm:yes|punct:yes|asian:yes|" in score.signature
    (own,) = make_utility("ter", tgt)(["我们今天去公园散步。"], ["我们今天去公园散步吧。"])[0]
    assert own == pytest.approx(-100 / 11)


@pytest.mark.parametrize("tgt", ["de", "vi", "zh", "yue", "zh-Latn", "tha_Latn", "ar", "", None])
def test_other_languages_get_no_warning(tgt: str | None) -> None:
    assert metrics.bleu_warning(METRICS, tgt) is None


def test_the_config_knows_tokenizers_of_sacrebleu() -> None:
    assert set(get_args(BleuTokenizer)) <= set(sacrebleu.BLEU.TOKENIZERS)
    assert set(BLEU_TOKENIZERS.values()) <= set(get_args(BleuTokenizer))


def test_a_tokenizer_model_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(
        DataError, match=r"cannot load the model of sacreBLEU's tokenizer 'flores200'.*unreachable"
    ):
        metrics.check_metrics(["bleu"], tokenize="flores200")


# Mistakes


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([REFS[:-1]], "8 hypotheses but 7 references"),
        ([REFS, [*MORE_REFS, "zu viel"]], "8 hypotheses but 9 references in stream 2 of 2"),
        ([[]], "8 hypotheses but 0 references"),
        ([], "no references to score against"),
        (REFS, "refs is a list of sentences, not of streams (put a single stream in brackets: [refs])"),
    ],
)
def test_references_that_do_not_fit(refs: list[list[str]], message: str) -> None:
    with pytest.raises(DataError) as caught:
        metrics.score(HYPS, refs)
    assert str(caught.value) == message


def test_names_may_be_upper_case() -> None:
    names = ["BLEU", "chrF", "ChrF++", "TER"]
    assert metrics.score(HYPS, [REFS], names) == metrics.score(HYPS, [REFS], METRICS)


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="no hypotheses"):
        metrics.score([], [[]])
    with pytest.raises(DataError, match="hyps is a string, not a list of translations"):
        metrics.score("a text", [["a text"]])


@pytest.mark.parametrize(
    ("name", "guess"),
    [("blue", "bleu"), ("BLEUE", "bleu or bleu-moses"), ("chrF2++", "chrf++ or chrf"), ("comet-xxl", None)],
)
def test_an_unknown_metric(name: str, guess: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        metrics.score(HYPS, [REFS], ["bleu", name])
    suggestion = f"did you mean {guess}? " if guess else ""
    assert (
        str(caught.value)
        == f"unknown metric {name!r} ({suggestion}one of bleu, chrf, chrf++, ter, bleu-moses)"
    )


def test_an_unknown_tokenizer() -> None:
    with pytest.raises(ConfigError) as caught:
        metrics.score(HYPS, [REFS], ["bleu"], tokenize="13")
    message = str(caught.value)
    assert message.startswith("sacreBLEU has no tokenizer '13' (did you mean 13a? one of ")
    assert all(name in message for name in sacrebleu.BLEU.TOKENIZERS)


@pytest.mark.parametrize("num_bootstrap", [1, -5])
def test_too_few_resamples(num_bootstrap: int) -> None:
    with pytest.raises(ConfigError, match="give no interval"):
        metrics.score(HYPS, [REFS], num_bootstrap=num_bootstrap)


def test_which_of_two_scores_is_better() -> None:
    assert set(metrics.HIGHER_IS_BETTER) == set(METRICS)
    for name in ("bleu", "chrf", "chrf++"):
        assert metrics.is_better(name, 30.1, 30.0) and not metrics.is_better(name, 30.0, 30.1)
    assert metrics.is_better("ter", 50.0, 51.0) and not metrics.is_better("ter", 51.0, 50.0)
    assert not any(metrics.is_better(name, 30.0, 30.0) for name in METRICS)


def test_importing_the_module_is_cheap() -> None:
    heavy = {"torch", "sacrebleu", "numpy"}
    program = "import sys, mtkit.evaluation.metrics; print(*sys.modules)"
    assert not heavy & set(run(sys.executable, "-c", program).split())


# sacreBLEU's test sets

SOURCES = ["A man.", "Two dogs\u2028play.", ""]
TARGETS = ["Ein Mann.", "Zwei Hunde\u2028spielen.", ""]


def unreachable(*_: object, **__: object) -> None:
    raise URLError("host is unreachable")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Register a test set with sacreBLEU whose archive is a local file; return the cache folder."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(sacrebleu.dataset.base, "SACREBLEU_DIR", str(cache))
    monkeypatch.setattr(sacrebleu, "SACREBLEU_DIR", str(cache))

    def add(
        kind: type[Dataset],
        name: str,
        pair: str,
        members: dict[str, bytes],
        md5: list[str] | None = None,
        refs: Sequence[str] = (),
    ) -> Path:
        archive = tmp_path / "test.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for member, content in members.items():
                (tmp_path / member).write_bytes(content)
                tar.add(tmp_path / member, arcname=member)
        dataset = kind(name, data=[archive.as_uri()], langpairs={pair: list(members)}, md5=md5, refs=refs)
        monkeypatch.setitem(sacrebleu.DATASETS, name, dataset)
        return cache / name

    return add


def sgml(lines: list[str]) -> bytes:
    segments = "".join(f'<seg id="{number}">{line}</seg>\n' for number, line in enumerate(lines, 1))
    return f'<doc docid="d" genre="news" origlang="en">\n{segments}</doc>\n'.encode()


def text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def test_a_plain_text_set_is_split_at_newlines_only(install: Callable[..., Path]) -> None:
    install(PlainTextDataset, "multi30k/2016", "en-de", {"t.en": text(SOURCES), "t.de": text(TARGETS)})
    assert metrics.load_test_set("multi30k/2016", "en", "de") == (SOURCES, [TARGETS])


def test_an_sgml_set_with_two_references(
    install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, first, second = ["A man.", "Two dogs."], ["Ein Mann.", "Zwei Hunde."], ["Ein Kerl.", "2 Hunde."]
    members = {"src.sgm": sgml(sources), "ref0.sgm": sgml(first), "ref1.sgm": sgml(second)}
    install(FakeSGMLDataset, "wmt20/tworefs", "en-de", members)
    assert metrics.load_test_set("wmt20/tworefs", "en", "de") == (sources, [first, second])
    # The second time the files are there already.
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    assert metrics.load_test_set("wmt20/tworefs", "en", "de") == (sources, [first, second])


def test_an_xml_set_yields_its_references_in_order(install: Callable[..., Path]) -> None:
    texts = "".join(f'<ref lang="de" translator="{x}"><p><seg id="1">Ref {x}</seg></p></ref>' for x in "DBCA")
    source = '<src lang="en"><p><seg id="1">Src</seg></p></src>'
    document = f'<dataset><doc id="d" origlang="en">{source}{texts}</doc></dataset>'
    install(WMTXMLDataset, "wmt21/AB", "en-de", {"t.xml": document.encode()}, refs=["D", "A", "B"])
    assert metrics.load_test_set("wmt21/AB", "en", "de") == (["Src"], [["Ref A"], ["Ref B"], ["Ref D"]])


def test_the_score_on_a_set_is_that_of_the_command(tmp_path: Path) -> None:
    for field, lines in {"src": HYPS, "ref": REFS, "docid": HYPS, "genre": HYPS, "origlang": HYPS}.items():
        write(tmp_path / "wmt20" / f"wmt20.en-de.{field}", lines)
    system = write(tmp_path / "hyp", HYPS)
    program = (
        "import json; from mtkit.evaluation import metrics;"
        "print(json.dumps(metrics.load_test_set('wmt20', 'en', 'de')))"
    )
    sources, refs = json.loads(run(sys.executable, "-c", program, SACREBLEU=str(tmp_path)))
    assert (sources, refs) == (HYPS, [REFS])
    theirs = sacrebleu_lines("-t", "wmt20", "-l", "en-de", "-i", system, SACREBLEU=str(tmp_path))
    assert [score.format(width=6) for score in metrics.score(HYPS, refs, ["bleu"], tgt="de")] == theirs


def test_an_unknown_set() -> None:
    with pytest.raises(ConfigError) as caught:
        metrics.load_test_set("multi30k2016", "en", "de")
    message = str(caught.value)
    assert message.startswith("sacreBLEU has no test set 'multi30k2016' (did you mean multi30k/2016 or ")
    assert message.endswith("? `sacrebleu --list` lists all)")


def test_an_unknown_language_pair() -> None:
    with pytest.raises(ConfigError) as caught:
        metrics.load_test_set("multi30k/2016", "de", "en")
    expected = "the test set multi30k/2016 has no language pair de-en (it has en-fr, en-de, en-cs)"
    assert str(caught.value) == expected


def test_no_network(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install(PlainTextDataset, "multi30k/2016", "en-de", {"t.en": b"", "t.de": b""})
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError) as caught:
        metrics.load_test_set("multi30k/2016", "en", "de")
    message = str(caught.value)
    assert message.startswith(
        "multi30k/2016 en-de: cannot get the test set: <urlopen error host is unreachable> ("
    )
    assert "`sacrebleu --download multi30k/2016 -l en-de`" in message and str(folder) in message
    assert "\n" not in message


def test_a_damaged_download(install: Callable[..., Path], tmp_path: Path) -> None:
    install(
        PlainTextDataset, "multi30k/2016", "en-de", {"t.en": text(SOURCES * 999), "t.de": text(TARGETS * 999)}
    )
    archive = tmp_path / "test.tgz"
    archive.write_bytes(archive.read_bytes()[:100])
    for _ in range(2):  # the second time sacreBLEU takes the archive for unpacked
        with pytest.raises(
            DataError, match=r"cannot get the test set: .+ \(.*delete .*multi30k/2016 and try again"
        ):
            metrics.load_test_set("multi30k/2016", "en", "de")


def test_a_wrong_checksum_does_not_end_the_process(install: Callable[..., Path]) -> None:
    install(PlainTextDataset, "multi30k/2016", "en-de", {"t.en": b"a\n", "t.de": b"b\n"}, md5=["0" * 32])
    with pytest.raises(DataError, match="cannot get the test set"):
        metrics.load_test_set("multi30k/2016", "en", "de")


@pytest.mark.parametrize(
    ("kind", "members", "message"),
    [
        (PlainTextDataset, {"t.en": b"A\nB\n", "t.de": b"A\n"}, "2 sources but 1 references"),
        (PlainTextDataset, {"t.en": b"A\n", "t.de": b"\xff\n"}, "cannot get the test set: 'utf-8' codec"),
        (WMTXMLDataset, {"t.xml": b"<dataset><doc>"}, "cannot get the test set: "),
    ],
)
def test_damaged_files(
    kind: type[Dataset], members: dict[str, bytes], message: str, install: Callable[..., Path]
) -> None:
    install(kind, "multi30k/2016", "en-de", members)
    with pytest.raises(DataError) as caught:
        metrics.load_test_set("multi30k/2016", "en", "de")
    assert message in str(caught.value)


def test_resamples_without_any_match_have_an_interval() -> None:
    hyps, refs = ["a dog", "two dogs", "*_%"], [["a dog", "two cats", "number 1,000"]]
    scores = metrics.score(hyps, refs, ["chrf", "chrf++", "ter"], num_bootstrap=1000)
    assert all(each.confidence is not None and each.confidence > 0 for each in scores)


def test_sentences_with_other_numbers_of_references() -> None:
    for refs in ([["a", "b"], ["a", None]], [["a", "b"], [None, "b"]]):
        [found] = metrics.score_sentences(["a", "b"], refs, ["chrf"])
        assert found.signature.startswith("nrefs:var|")
    [found] = metrics.score_sentences(["a", "b"], [["a", "b"], ["a", "b"]], ["chrf"])
    assert found.signature.startswith("nrefs:2|")
