"""Facts about a run in a report: its data, tokenizer, model and environment."""

from __future__ import annotations

from typing import Any

from mtkit.evaluation.history import is_number
from mtkit.evaluation.report.content import RunReport
from mtkit.formatting import format_bytes, format_number

Rows = list[tuple[str, str]]
"""Labels and values."""


def fact_groups(run: RunReport) -> list[dict[str, Any]]:
    """Return tables about data, tokenizer, model and environment: a title and rows of label and value."""
    groups = {
        "Data": _data(run),
        "Tokenizer": _tokenizer(run),
        "Model": _model(run),
        "Environment": _environment(run.facts),
    }
    return [{"title": title, "rows": rows} for title, rows in groups.items() if rows]


def _numbers(facts: object) -> dict[str, float]:
    """Return the entries that are numbers, as most facts are unless the file was changed."""
    return {key: value for key, value in facts.items() if is_number(value)} if isinstance(facts, dict) else {}


def _data(run: RunReport) -> Rows:
    """Return the pairs that were read and left out, the sources, and the tokens of an epoch."""
    facts, pairs = _numbers(run.facts), _numbers(run.facts.get("pairs"))
    labels = {
        "kept": "pairs trained on",
        "empty": "left out: empty",
        "too_long": "left out: too long",
        "ratio": "left out: too unequal in length",
        "duplicate": "left out: duplicate",
    }
    rows = [(label, format_number(pairs[key])) for key, label in labels.items() if pairs.get(key)]
    for split in ("train", "valid", "test"):
        prefix = f"data.{split}."
        sources = [
            f"{key.removeprefix(prefix)} {value}"
            for key, value in run.settings.items()
            if key.startswith(prefix)
        ]
        if sources:
            rows.append((f"data.{split}", "\n".join(sources)))
    names = {
        "valid": "validation pairs",
        "src_tokens": "source tokens an epoch",
        "tgt_tokens": "target tokens an epoch",
    }
    rows += [(label, format_number(facts[key])) for key, label in names.items() if facts.get(key)]
    return rows


def _tokenizer(run: RunReport) -> Rows:
    """Return the type and size of the vocabularies, and how many tokens a sentence has."""
    facts, settings = _numbers(run.facts), run.settings
    joint = settings.get("tokenizer.joint", "")
    rows = [("type", settings.get("tokenizer.type", "")), ("joint", joint)]
    sizes = _numbers(run.facts.get("vocabulary"))
    if joint == "true" and len(set(sizes.values())) == 1:
        rows.append(("tokens", format_number(next(iter(sizes.values())))))
    else:
        rows += [(f"tokens, {side}", format_number(size)) for side, size in sizes.items()]
    num_pairs = _numbers(run.facts.get("pairs")).get("kept")
    for key, name in (("src_tokens", "source"), ("tgt_tokens", "target")):
        if num_pairs and facts.get(key):
            rows.append((f"tokens a {name} sentence, on average", f"{facts[key] / num_pairs:.1f}"))
    return rows


def _model(run: RunReport) -> Rows:
    """Return the number of parameters and the architecture."""
    facts, settings = _numbers(run.facts), dict(run.settings)
    rows = [("parameters", format_number(facts["parameters"]))] if "parameters" in facts else []
    if facts.get("trained_parameters") not in (None, facts.get("parameters")):
        rows.append(("of them trained", format_number(facts["trained_parameters"])))
    choices = run.facts.get("choices")
    if isinstance(choices, list) and choices:
        rows.append(("chosen by mtkit", "\n".join(map(str, choices))))
    # where the config leaves them to their defaults, their settings are null
    settings |= {"model.num_heads": str(run.model.heads), "model.d_ff": str(run.model.feed_forward)}
    keys = ("d_model", "encoder_layers", "decoder_layers", "num_heads", "d_ff", "dropout")
    return rows + [(key, settings[f"model.{key}"]) for key in keys if f"model.{key}" in settings]


def _environment(facts: dict[str, Any]) -> Rows:
    """Return versions and hardware of the latest start."""
    names = {"mtkit": "mtkit", "torch": "PyTorch", "python": "Python", "platform": "system"}
    names |= {key: key for key in ("device", "processor", "processes", "threads", "precision")}
    rows = [(label, str(facts[key])) for key, label in names.items() if facts.get(key)]
    if memory := _numbers(facts).get("device_memory"):
        rows.append(("memory of the device", format_bytes(memory)))
    return rows
