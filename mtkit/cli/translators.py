"""From the options of a command to a translator. torch is imported when one is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.errors import ConfigError

if TYPE_CHECKING:
    from mtkit.config import DecodingConfig


def load_translator(model: str, device: str, precision: str, **decoding: Any) -> Any:
    """A translator with the run's own decoding, but for the options that are given."""
    return load_translator_and_config(model, device, precision, **decoding)[0]


def load_translator_and_config(
    model: str, device: str, precision: str, ensemble: Sequence[str] | None = None, **decoding: Any
) -> tuple[Any, Any]:
    """A translator and the config it was trained with."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(
            f"{precision!r} is no precision", where="--precision", hint="auto, fp32, bf16 or fp16"
        )
    from mtkit.decoding.loading import load_model, load_others
    from mtkit.decoding.translator import Translator
    from mtkit.device import choose_device

    number = os.environ.get("LOCAL_RANK", "0")  # of several processes that torchrun started, each has its GPU
    chosen = choose_device(device, "--device", int(number) if number.isdecimal() else 0)
    config, tokenizers, network = load_model(Path(model))
    options = change_decoding(
        config.decoding, {key: value for key, value in decoding.items() if value is not None}
    )
    others = load_others(ensemble or (), tokenizers, model)
    return Translator.of(config, tokenizers, network, options, chosen, precision, others), config


def change_decoding(decoding: DecodingConfig, changes: dict[str, Any]) -> DecodingConfig:
    """The section with some keys changed. Raises: ConfigError: a value is out of range."""
    from pydantic import ValidationError

    values = decoding.model_dump() | changes
    if "n_best" in changes and "beam_size" not in changes:
        wanted = max(decoding.beam_size, changes["n_best"])
        values["beam_size"] = -(-wanted // values["groups"]) * values["groups"]
    elif "n_best" not in changes:
        values["n_best"] = 1
    try:
        return type(decoding).model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        option = "--" + "-".join(map(str, detail["loc"])).replace("_", "-") if detail["loc"] else None
        option = "--seed" if option == "--sample-seed" else option
        what = detail["msg"].removeprefix("Value error, ")
        raise ConfigError(what, where=option, hint="--help tells the options") from error
