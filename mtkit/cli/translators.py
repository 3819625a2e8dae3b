"""From the options of a command to a translator. torch is imported when one is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.cli.completion import PRECISIONS
from mtkit.errors import ConfigError

if TYPE_CHECKING:
    from mtkit.config import Config, DecodingConfig
    from mtkit.decoding.translator import Translator


def decoding_of(model: str, changes: Mapping[str, Any]) -> DecodingConfig:
    """How a model folder asks to be decoded, but for the keys whose new value is not None; without torch.

    Two new values take back what the folder asks for: `mbr` "none", and `suppress` with nothing but empty texts.

    Raises:
        ConfigError: a value is out of range.
        StorageError: there is no model.
    """
    from mtkit.decoding.folder import stored_decoding

    given = {key: value for key, value in changes.items() if value is not None}
    if given.get("mbr") == "none":
        given["mbr"] = None
    if "suppress" in given:
        given["suppress"] = tuple(filter(None, given["suppress"]))
    return change_decoding(stored_decoding(Path(model)), given)


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


def load_translator(
    model: str, decoding: DecodingConfig, device: str, precision: str, ensemble: Sequence[str] = ()
) -> Translator:
    """A translator of the model in a folder. Raises: ConfigError, StorageError."""
    return load_translator_and_config(model, decoding, device, precision, ensemble)[0]


def load_translator_and_config(
    model: str, decoding: DecodingConfig, device: str, precision: str, ensemble: Sequence[str] = ()
) -> tuple[Translator, Config]:
    """A translator and the config it was trained with."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"{precision!r} is no precision", where="--precision", hint="auto, fp32, bf16, fp16 or int8"
        )
    from mtkit.decoding.loading import load_model, load_others
    from mtkit.decoding.translator import Translator
    from mtkit.device import choose_device

    number = os.environ.get("LOCAL_RANK", "")  # of several processes that torchrun started, each has its GPU
    together = os.environ.get("WORLD_SIZE", "1") != "1" and number.isdecimal()
    chosen = choose_device(device, "--device", int(number) if together else None)
    config, tokenizers, network = load_model(Path(model))
    others = load_others(ensemble, tokenizers, model)
    return Translator.of(config, tokenizers, network, decoding, chosen, precision, others), config
