"""Text for people that several layers print."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"
"""Invisible characters that Persian, Indic scripts and emoji need."""


def format_duration(seconds: float) -> str:
    """Format a duration, such as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_seconds(seconds: float) -> str:
    """Format a duration with two digits or all before the point, such as 0.034 s, 1.2 s or 120 s."""
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:,.0f} s"


def format_bytes(number: float) -> str:
    """Format a number of bytes in kB, MB or GB, such as 38 MB or 1.2 GB."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.0f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"


def format_count(number: int, noun: str) -> str:
    """Format a number of things: 0 lines, 1 line, 12,345 lines."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_number(value: float) -> str:
    """Format a number with four significant digits or all before the point, such as 3,112, 38.93 or 0.0012."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"


def escape(text: str, encoding: str) -> str:
    r"""Escape the characters that an encoding cannot represent, as in `\xe9`."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def visible(text: str) -> str:
    """Return a line without characters that could control a terminal; any white space is a space."""
    text = "".join(" " if character.isspace() else character for character in text)
    return "".join(
        character if character.isprintable() or character in _JOINERS else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
