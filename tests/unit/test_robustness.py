"""Changed copies of test sets, and what is counted in their translations, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mtkit.config.sections import Config
from mtkit.evaluation.analysis import (
    Share,
    far_too_long,
    far_too_short,
    find_emails,
    find_emoji,
    find_urls,
    loops,
)
from mtkit.evaluation.metrics import score
from mtkit.evaluation.robustness_table import robustness_cells, robustness_header
from mtkit.training.robustness import Robustness, measure_robustness
from mtkit.training.validation import EvalSet
from mtkit.translation.numbers import required_numbers
from mtkit.translation.robustness import KINDS, Copy, _without, make_copies, measure, sample_evenly
from mtkit.translation.segments import Request

SRCS = ["A dog sees two cats.", "“Stop!”", "He runs", "I'm Tom."]
REFS = [
    ["Ein Hund sieht zwei Katzen.", "„Halt!“", "er läuft", "Ich bin Tom."],
    [None, "Stopp!", "Er rennt", None],
]


def copy_of(kind: str) -> Copy:
    copies, left_out = make_copies(SRCS, REFS, [kind])
    assert left_out == {}
    clean, copy = copies
    assert (clean.kind, clean.srcs, clean.refs) == ("clean", SRCS, REFS)
    assert copy.kind == kind
    return copy


def test_case_changes_on_both_sides() -> None:
    capitals = copy_of("all capitals")
    assert capitals.srcs == ["A DOG SEES TWO CATS.", "“STOP!”", "HE RUNS", "I'M TOM."]
    assert capitals.refs[0][0] == "EIN HUND SIEHT ZWEI KATZEN."
    assert capitals.refs[1] == [None, "STOPP!", "ER RENNT", None]
    title = copy_of("title case")
    assert title.srcs == ["A Dog Sees Two Cats.", "“Stop!”", "He Runs", "I'm Tom."]
    assert title.refs[0] == ["Ein Hund Sieht Zwei Katzen.", "„Halt!“", "Er Läuft", "Ich Bin Tom."]


def test_punctuation_goes_on_both_sides_and_typos_on_one() -> None:
    bare = copy_of("no final punctuation")
    assert bare.srcs[0] == "A dog sees two cats"
    assert bare.refs[0][0] == "Ein Hund sieht zwei Katzen"
    typos = copy_of("typos")
    assert typos.refs == REFS
    assert all(
        new != old and abs(len(new) - len(old)) <= 2 for new, old in zip(typos.srcs, SRCS, strict=True)
    )


def test_neighbors_are_joined_on_both_sides() -> None:
    joined = copy_of("joined sentences")
    assert joined.srcs == ["A dog sees two cats. “Stop!” He runs", "I'm Tom."]
    assert joined.refs == [["Ein Hund sieht zwei Katzen. „Halt!“ er läuft", "Ich bin Tom."], [None, None]]
    [_, chinese], _ = make_copies(["你好。", "再见", "Hi."], [["a", "b", "c"]], ["joined sentences"])
    assert chinese.srcs == ["你好。再见Hi."]


@pytest.mark.parametrize(
    ("kind", "find"),
    [
        ("numbers", required_numbers),
        ("URLs", find_urls),
        ("e-mail addresses", find_emails),
        ("emoji", find_emoji),
    ],
)
def test_items_are_added_and_left_out_of_the_scores(kind: str, find: object) -> None:
    """A translation that keeps them has the scores of the clean one; one that drops them has too, but they are lost."""
    copy = copy_of(kind)
    assert all(f"{src} {item}" == new for src, item, new in zip(SRCS, copy.added, copy.srcs, strict=True))
    assert all(len(find(item)) == 1 for item in copy.added)  # type: ignore[operator]
    assert len(set(copy.added)) > 1
    hyps = ["Ein Hund sieht Katzen.", "Halt!", "Er läuft", "Tom ."]
    clean = score(hyps, REFS, ["bleu", "chrf"])
    kept = measure(
        copy, [f"{hyp} {item}" for hyp, item in zip(hyps, copy.added, strict=True)], ["bleu", "chrf"]
    )
    assert (kept.scores, kept.lost[kind].part, kept.lost[kind].whole) == (clean, 0, 4)
    dropped = measure(copy, hyps, ["bleu", "chrf"])
    assert (dropped.scores, dropped.lost[kind]) == (clean, Share(4, 4, (0, 1, 2, 3)))
    wrong = measure(
        copy, [f"{hyp} {item[:-2]}x" for hyp, item in zip(hyps, copy.added, strict=True)], ["chrf"]
    )
    assert wrong.scores[0].value < clean[1].value


@pytest.mark.parametrize("shown", ["(4321)", "(4.321)", "（4321）", "4 321"])
def test_a_number_is_left_out_in_any_notation(shown: str) -> None:
    assert _without(f"Er hat 3 Hunde {shown} .", "(4321)") == "Er hat 3 Hunde ."
    assert _without("Er hat 43210 Hunde (x).", "(4321)") == "Er hat 43210 Hunde (x)."


def test_single_words_have_no_score() -> None:
    copy = copy_of("single words")
    assert copy.srcs == ["A", "dog", "sees", "two", "cats", "Stop", "He", "runs", "I", "m", "Tom"]
    hyps = ["ein", "Hund", "sieht die Katzen an und noch mehr", "", "Katzen", *["ha ha ha ha"] * 5, "Tom"]
    found = measure(copy, hyps, ["bleu"])
    assert found.scores == []
    fields = found.as_dict(found)
    assert [fields[key]["sentences"] for key in ("loops", "copies", "too_long", "too_short")] == [
        [6, 7, 8, 9, 10], [11], [3], [4],
    ]  # fmt: skip
    [_, few], _ = make_copies(SRCS, REFS, ["single words"], max_words=3)
    assert few.srcs == ["A", "two", "runs"]


def test_kinds_without_sense_are_left_out() -> None:
    copies, left_out = make_copies(["你好", "谢谢"], [["Hello", "Thanks"]])
    assert set(left_out) == {"all capitals", "title case", "no final punctuation", "typos"}
    assert left_out["all capitals"] == "the source has no upper and lower case"
    assert {copy.kind for copy in copies} == {"clean", *KINDS} - set(left_out)


def test_copies_are_always_the_same() -> None:
    assert make_copies(SRCS, REFS) == make_copies(SRCS, REFS)
    assert sample_evenly(range(7), 3) == [0, 2, 4]
    assert sample_evenly(range(2), 3) == [0, 1]


class Echo:
    """A translator that returns the sources."""

    def translate(self, requests: list[Request]) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=request.text) for request in requests]


def test_the_end_of_training_measures_a_part() -> None:
    """At most 200 lines, evenly; the clean ones are not translated again. What is small or slow is left out."""
    lines = [f"Word{number} and more." for number in range(400)]
    test = EvalSet("test", [f"<2de> {line}" for line in lines], lines, "<2de>")
    config = Config.model_validate({"run": "r", "data": {"src": "en", "tgt": "de", "train": [{"path": "x"}]}})

    def result(number: int, seconds: float, training_seconds: float) -> Robustness:
        part = EvalSet("test", test.srcs[:number], test.tgts[:number], test.tag)
        echo: Any = Echo()
        return measure_robustness(part, part.tgts, seconds, training_seconds, echo, config, ["chrf"])

    found = result(400, 24.0, 0.0)
    assert [copy.num_lines for copy in found.copies] == [200] * 6
    assert [copy.scores[0].value for copy in found.copies[:4]] == [pytest.approx(100)] * 4
    assert found.copies[5].faults["copies"].part == 200
    told = list(found.lines())
    assert told[0] == "robustness, 200 lines of the first test set, changed:"
    assert told[1] == "    all capitals: chrF2 +0.00"
    assert result(99, 1.0, 0.0).as_dict() == {"not_measured": "the test set has fewer than 100 lines"}
    slow = result(100, 13.0, 0.0)
    assert (slow.reason, list(slow.lines())) == ("it would have taken about 1 min 05 s", [])
    assert result(100, 13.0, 65 * 51.0).copies
    assert not result(100, 13.0, 65 * 49.0).copies


def test_the_report_has_a_table() -> None:
    copies, _ = make_copies(SRCS, REFS, ["typos"])
    clean, typos = (measure(copy, copy.srcs, ["chrf"]) for copy in copies)
    table = [clean.as_dict(clean), typos.as_dict(clean)]
    assert robustness_header(table[0]) == [
        "lines", "chrF2", "Δ", "loops", "copies", "too long", "too short", "lost",
    ]  # fmt: skip
    assert robustness_cells(table[0], table[0])[:3] == ["4", f"{clean.scores[0].value:.2f}", "–"]
    difference = typos.scores[0].value - clean.scores[0].value
    assert robustness_cells(table[1], table[0])[2:] == [f"{difference:+.2f}", "0", "4", "0", "0", "–"]


def test_loops() -> None:
    texts = ["der der der der", "nanananana", "x, y, x, y, x, y, z", "1 000 000 000", "Wort " * 3 + "Ende"]
    refs = [[""] * len(texts)]
    assert loops([""] * len(texts), texts, refs) == Share(2, 5, (0, 1))
    assert loops(["ha ha ha ha", ""], ["ho ho ho ho"] * 2, [["", "hi hi hi hi"]]) == Share(0, 2)


def test_lengths() -> None:
    refs = [["one two"], [None], ["one two three"]]
    words = list("abcdefghijk")
    for count, long, short in ((0, 0, 1), (1, 0, 0), (7, 0, 0), (8, 0, 0), (9, 0, 0), (10, 1, 0)):
        hyps = [" ".join(words[:count])]
        assert (far_too_long(["x"], hyps, refs).part, far_too_short(["x"], hyps, refs).part) == (
            long,
            short,
        ), count
    assert far_too_short(["x"], ["a"], [[" ".join(words[:6])]]).part == 1
    assert far_too_short(["x"], ["a"], [[" ".join(words[:5])]]).part == 0
    assert far_too_short([""], [""], [[None]]).part == 0


def test_addresses_and_pictures() -> None:
    assert find_emails("Write to a.b+c@mail.example.org, or x@y.de.") == ["a.b+c@mail.example.org", "x@y.de"]
    assert find_emails("@home a@b") == []
    assert find_emoji("ok 👍🏽! 👩‍🚀, ❤️🇩🇪 — §5 ©") == ["👍🏽", "👩‍🚀", "❤️", "🇩🇪"]
