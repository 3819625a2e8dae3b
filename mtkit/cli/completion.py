"""What the shell completes at a press of TAB: values of options, and keys of the config with their values.

Nothing slow is imported here: the answer is awaited at the keyboard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

Complete = Callable[[str], list[str]]
"""From what is typed of a word to the words that begin so."""


def one_of(*values: str) -> Complete:
    """Complete to one of these values."""

    def complete(incomplete: str) -> list[str]:
        return _beginning_with(incomplete, values)

    return complete


def values_of(key: str, *more: str) -> Complete:
    """Complete to what a key of the config may be, or to one of `more`."""

    def complete(incomplete: str) -> list[str]:
        from mtkit.config.loading import suggested_values

        return _beginning_with(incomplete, [*suggested_values(key), *more])

    return complete


def bleu_tokenizers(incomplete: str) -> list[str]:
    """Complete to one of sacreBLEU's tokenizers."""
    from sacrebleu import BLEU

    return _beginning_with(incomplete, list(BLEU.TOKENIZERS))


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Complete `KEY=VALUE`: keys, and as soon as only one is left, its values (a free value is its default)."""
    from mtkit.config.loading import config_keys, suggested_values

    before = context.params.get("overrides") or []
    if before[-1:] == ["="]:  # bash cuts a word at the sign: training.schedule = co
        return _beginning_with(incomplete, suggested_values(before[-2])) if before[:-1] else []
    typed, sign, _ = incomplete.partition("=")
    keys = [key for key in config_keys() if key == typed or (not sign and key.startswith(typed))]
    if len(keys) != 1:
        return [f"{key}=" for key in keys]
    # Beside the bare key, so that a shell that knows one completion only does not end the word behind it.
    words = [f"{keys[0]}=", *(f"{keys[0]}={value}" for value in suggested_values(keys[0]))]
    return _beginning_with(incomplete, words)


def _beginning_with(incomplete: str, words: Sequence[str]) -> list[str]:
    """The words that begin so, in their order."""
    return [word for word in words if word.startswith(incomplete)]
