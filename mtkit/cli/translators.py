"""Loading translators from command-line options. torch is imported when one is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtkit.cli.terminal import print_stderr
from mtkit.errors import ConfigError, StorageError
from mtkit.torchrun import read_ranks
from mtkit.translation.options import DecodingOverrides, Parallelism, check_precision

if TYPE_CHECKING:
    from mtkit.config.sections import Config, DecodingConfig
    from mtkit.translation.line_translator import LineTranslator
    from mtkit.translation.translator import Translator


def resolve_decoding(model: str, options: Mapping[str, Any]) -> DecodingConfig:
    """Return the `decoding` section of a model's config with the options of a command, without importing torch.

    `mbr` "none" and a `suppress` of empty texts alone disable what the config enables. The config's `n_best` does not
    count: without an option, a line has one translation.

    Args:
        model: model folder.
        options: new values by key of `decoding`; others, and those without a value, do not count.

    Raises:
        ConfigError: If a value is out of range.
        StorageError: If the folder contains no model.
    """
    from mtkit.translation.model_folder import override_decoding, read_decoding

    keys = DecodingOverrides.__annotations__
    # Without a value an option is None; one that may be repeated is empty.
    overrides = {key: value for key, value in options.items() if key in keys and value not in (None, (), [])}
    if overrides.get("mbr") == "none":
        overrides["mbr"] = None
    if "suppress" in overrides:
        overrides["suppress"] = tuple(filter(None, overrides["suppress"]))
    try:
        return override_decoding(read_decoding(Path(model)), {"n_best": 1, **overrides})
    except ConfigError as error:
        if error.where == "decoding":  # two values that do not go together
            raise ConfigError(error.what, hint="change one of them; see --help") from error
        raise ConfigError(error.what, where=error.where, hint=error.hint or "see --help") from error


def load_translator(
    model: str, decoding: DecodingConfig, device: str, precision: str, ensemble: Sequence[str] = ()
) -> Translator:
    """Load a translator from a model folder.

    Args:
        model: model folder.
        decoding: how to search.
        device: as for --device.
        precision: as for --precision.
        ensemble: folders of further models.

    Raises:
        ConfigError: If the device or precision is unknown or not available, or the models do not fit together.
        StorageError: If a model is missing or damaged.
    """
    return load_translator_and_config(model, decoding, device, precision, ensemble)[0]


def load_translator_and_config(
    model: str, decoding: DecodingConfig, device: str, precision: str, ensemble: Sequence[str] = ()
) -> tuple[Translator, Config]:
    """Load a translator and the config with which its model was trained; see `load_translator`."""
    check_precision(precision, "--precision")
    from mtkit.device import choose_device
    from mtkit.translation.translator import Translator

    chosen = choose_device(device, "--device", read_ranks().local_rank)
    return Translator.load_with_config(model, decoding, chosen, precision, ensemble)


def load_exported(
    path: str, engine: str, decoding: DecodingConfig, device: str, precision: str, parallelism: Parallelism
) -> LineTranslator:
    """Load a translator from a folder that `mtkit export` wrote.

    Args:
        path: the folder.
        engine: as for --engine.
        decoding: how to search.
        device: as for --device.
        precision: as for --precision.
        parallelism: workers and threads, which are those of the engine.

    Raises:
        ConfigError: If the engine, device or precision is unknown or not available, or the engine cannot search so.
        StorageError: If the folder is missing or damaged.
    """
    check_precision(precision, "--precision")
    if engine != "ctranslate2":
        raise ConfigError(f"unknown engine {engine!r}", where="--engine", hint="ctranslate2 is the only one")
    from mtkit.device import choose_device
    from mtkit.interop.ctranslate2_engine import load_line_translator

    chosen = choose_device(device, "--device", read_ranks().local_rank)
    return load_line_translator(Path(path), decoding, chosen, precision, parallelism)


def choose_parallelism(workers: str, threads: int | None) -> Parallelism:
    """Return the parallelism that --workers and --threads ask for; a worker that is killed is named on stderr.

    Raises:
        ConfigError: If the number of workers is not one from 1.
    """
    if workers != "auto" and not (workers.isdecimal() and int(workers)):
        raise ConfigError(f"{workers!r} is not a number from 1", where="--workers", hint="a number, or auto")
    number: int | Literal["auto"] = "auto" if workers == "auto" else int(workers)
    return Parallelism(number, threads, print_stderr)


def check_shortlist(model: str) -> None:
    """Check that a model has a shortlist.

    Raises:
        StorageError: If the folder contains no model, or the model has none.
    """
    from mtkit.translation.model_folder import shortlist_file

    if not shortlist_file(Path(model)).exists():
        raise StorageError(
            "the model has no shortlist", where=model, hint=f"make it: mtkit shortlist {model}"
        )


def check_tag(tag: str | None, translator: LineTranslator, option: str = "--tag") -> None:
    """Check that a target-language tag, if there is one, is a single token of the source vocabulary.

    Raises:
        ConfigError: If it is not; at the option.
    """
    if tag is not None and not translator.tokenizers.src.is_single_piece(tag):
        what = f"{tag!r} is not a single token of the source vocabulary"
        hint = "name it in tokenizer.user_symbols before training"
        if known := translator.tokenizers.src.tags:
            from mtkit.translation.segments import describe_tags

            hint = describe_tags(known)
        raise ConfigError(what, where=option, hint=hint)
