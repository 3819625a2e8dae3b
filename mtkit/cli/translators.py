"""From the options of a command to a translator. torch is imported when one is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkit.errors import ConfigError
from mtkit.torchrun import read_ranks
from mtkit.translation.options import check_precision

if TYPE_CHECKING:
    from mtkit.config.sections import Config, DecodingConfig
    from mtkit.translation.translator import Translator


def decoding_of(model: str, changes: Mapping[str, Any]) -> DecodingConfig:
    """How a model folder asks to be decoded, but for the keys whose new value is not None; without torch.

    Two new values take back what the folder asks for: `mbr` "none", and `suppress` with nothing but empty texts.
    How many translations of a line are wanted, the folder does not decide.

    Raises:
        ConfigError: a value is out of range; at the option.
        StorageError: there is no model.
    """
    from mtkit.translation.model_folder import override_decoding, read_decoding

    given = {"n_best": 1} | {key: value for key, value in changes.items() if value is not None}
    if given.get("mbr") == "none":
        given["mbr"] = None
    if "suppress" in given:
        given["suppress"] = tuple(filter(None, given["suppress"]))
    try:
        return override_decoding(read_decoding(Path(model)), given)
    except ConfigError as error:
        where = None if error.where == "decoding" else error.where
        raise ConfigError(error.what, where=where, hint=error.hint or "--help tells the options") from error


def load_translator(
    model: str, decoding: DecodingConfig, device: str, precision: str, ensemble: Sequence[str] = ()
) -> Translator:
    """A translator of the model in a folder. Raises: ConfigError, StorageError."""
    return load_translator_and_config(model, decoding, device, precision, ensemble)[0]


def load_translator_and_config(
    model: str, decoding: DecodingConfig, device: str, precision: str, ensemble: Sequence[str] = ()
) -> tuple[Translator, Config]:
    """A translator and the config it was trained with."""
    check_precision(precision, "--precision")
    from mtkit.device import choose_device
    from mtkit.translation.loading import load_ensemble_members, load_model, usual_src_tokens
    from mtkit.translation.translator import Translator

    chosen = choose_device(device, "--device", read_ranks().local_rank)
    config, tokenizers, network = load_model(Path(model))
    others = load_ensemble_members(ensemble, tokenizers, model)
    usual = usual_src_tokens(model)
    return Translator.of(config, tokenizers, network, decoding, chosen, precision, others, usual), config


def refuse_no_symbol(tag: str, translator: Translator) -> None:
    """Check that the model knows a tag as one piece. Raises: ConfigError."""
    if not translator.tokenizers.src.is_single_piece(tag):
        what = f"{tag!r} is no piece of the source vocabulary"
        raise ConfigError(what, where="--tag", hint="train with it among tokenizer.user_symbols")
