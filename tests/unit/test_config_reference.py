"""docs/configuration.md ends with the reference of all keys, as the code renders it."""

from __future__ import annotations

from pages import ROOT

from mtkit.config.loading import config_keys
from mtkit.config.reference import MARKER, render_reference

PAGE = (ROOT / "docs/configuration.md").read_text("utf-8")


def test_the_page_is_up_to_date() -> None:
    """If this fails, run `python -m mtkit.config.reference docs/configuration.md`."""
    assert PAGE.partition(MARKER)[2] == f"\n{render_reference()}"


def test_every_key_has_a_row() -> None:
    for key in config_keys():
        assert f"\n| `{key.rpartition('.')[2]}` | " in PAGE


def test_values_defaults_and_dependencies_are_shown() -> None:
    rows = {row.split("`")[1]: row for row in PAGE.split("\n") if row.startswith("| `")}
    assert "| integer ≥ 2 | `32` |" in rows["mbr_candidates"]
    assert "| list of 2 numbers ≥ 0, < 1 | `[0.9, 0.98]` |" in rows["betas"]
    assert "| number > 0 or `null` | `1.0` |" in rows["clip_norm"]
    assert rows["min_learning_rate"].endswith("Requires `training.schedule` linear or cosine. |")
    assert rows["joint"].endswith("No effect with `tokenizer.model`. |")
