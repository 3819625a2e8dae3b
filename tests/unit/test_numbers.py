"""Numbers a translation must contain, and the ways languages write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtkit.translation.numbers import has_number, number_variants, required_numbers

WRITTEN_SET = Path(__file__).parent.parent / "data" / "protect.en-de.tsv"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It cost 3,500 euros on 12/05/2021.", ("3,500", "12/05/2021")),
        ("5 men and 5 women, 12 dogs, 13 cats, 13 birds", ("13",)),
        ("007 and 05 and 1.5", ("007", "05", "1.5")),
        ("H2O, A4 and the 3rd", ()),
        ("1 000 000 people in 2016", ("1 000 000", "2016")),
        ("第23章, 至２３日", ("23", "２３")),
        ("اشترى ٣ كتب عام ١٩٩٩", ("١٩٩٩",)),
        ("from 10:45 to 20-30.", ("10:45", "20-30")),
        ("가격은 3500원입니다. 2024년 5월 15일에", ("3500", "2024", "15")),
        ("1" * 5000, ("1" * 5000,)),  # more digits than Python makes an int of
    ],
)
def test_required_numbers(text: str, numbers: tuple[str, ...]) -> None:
    assert required_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "number", "there"),
    [
        ("er hat 30 Hunde", "30", True),
        ("er hat 130 Hunde", "30", False),
        ("3000 Hunde", "30", False),
        ("am 30.", "30", True),
        ("30日に", "30", True),
        ("第30章", "30", True),
        ("มี30คน", "30", True),
        ("가격은 3500원입니다.", "3500", True),
        ("가격은 13500원입니다.", "3500", False),
        ("30rd", "30", False),
        ("H20O", "20", False),
        ("30,5 Meter", "30", False),
        ("es sind 30, 31 oder 32", "31", True),
        ("3,5 Meter", "3.5", True),
        ("35 Meter", "3.5", False),
        ("3.6 Meter", "3.5", False),
        ("1.000 Hunde", "1,000", True),
        ("1000 Hunde", "1,000", True),
        ("1 000 Hunde", "1,000", True),
        ("1'000 Hunde", "1,000", True),
        ("1,00,000 rupees", "100,000", True),
        ("20.000", "20000", True),
        ("10.000", "1,000", False),
        ("1.234,56 €", "1,234.56", True),
        ("am 5.12.2021", "12/05/2021", True),
        ("2021-05-12", "12/05/2021", True),
        ("am 5.12.2020", "12/05/2021", False),
        ("um 10.45 Uhr", "10:45", True),
        ("٣٫٥ متر", "3.5", True),
        ("23", "２３", True),
    ],
)
def test_has_number(text: str, number: str, there: bool) -> None:
    assert has_number(text, number) == there


def test_number_variants() -> None:
    assert number_variants("3.5") == ("3.5", "3,5")
    assert number_variants("1,000") == ("1,000", "1.000", "1000")
    assert number_variants("12/05/2021") == ("12/05/2021", "12.05.2021")
    assert number_variants("2016") == ("2016",)
    assert number_variants("١٬٠٠٠") == ("1٬000", "1000", "١٬٠٠٠")


def test_correct_translations_have_all_numbers() -> None:
    for row in WRITTEN_SET.read_text(encoding="utf-8").splitlines():
        source, target = row.split("\t")
        assert all(has_number(target, number) for number in required_numbers(source)), row
