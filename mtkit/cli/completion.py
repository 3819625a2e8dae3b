"""Shell completion: values of options, and keys of the config with their values.

Nothing slow is imported here: a user waits for the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

Complete = Callable[[str], list[str]]
"""Function from an incomplete word to its completions."""


def one_of(*values: str) -> Complete:
    """Complete to one of the values."""

    def complete(incomplete: str) -> list[str]:
        return _starting_with(incomplete, values)

    return complete


def values_of(key: str, *more: str) -> Complete:
    """Complete to a value of a config key, or to one of `more`."""

    def complete(incomplete: str) -> list[str]:
        from mtkit.config.loading import suggested_values

        return _starting_with(incomplete, [*suggested_values(key), *more])

    return complete


def bleu_tokenizers(incomplete: str) -> list[str]:
    """Complete to one of sacreBLEU's tokenizers."""
    from sacrebleu import BLEU

    return _starting_with(incomplete, list(BLEU.TOKENIZERS))


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Complete `KEY=VALUE`: to keys, and once a single key is left, to its values (to its default if they are free)."""
    from mtkit.config.loading import config_keys, suggested_values

    before, known = context.params.get("overrides") or context.params.get("values") or [], config_keys()
    if before[-1:] == ["="]:  # bash splits words at the sign: training.schedule = co
        return _starting_with(incomplete, suggested_values(before[-2])) if before[:-1] else []
    if not incomplete and before and before[-1] in known:  # there, the sign itself comes as an empty word
        return suggested_values(before[-1])
    typed, sign, _ = incomplete.partition("=")
    keys = [key for key in known if key == typed or (not sign and key.startswith(typed))]
    if len(keys) != 1:
        return [f"{key}=" for key in keys]
    # The bare key comes too: given a single completion, a shell would end the word after it.
    words = [f"{keys[0]}=", *(f"{keys[0]}={value}" for value in suggested_values(keys[0]))]
    return _starting_with(incomplete, words)


def _starting_with(incomplete: str, words: Sequence[str]) -> list[str]:
    """Return the words that start with the incomplete one, in their order."""
    return [word for word in words if word.startswith(incomplete)]
