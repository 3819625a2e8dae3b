"""`mtkit config`: schema and resolved values of the YAML."""

from __future__ import annotations

import json

from mtkit.cli import options
from mtkit.cli.terminal import print_stderr, print_stdout

_FITTED_KEYS = (("training", "max_steps"), ("training", "warmup_steps"), ("validation", "every_steps"))
"""Keys that follow from how many updates fit into a time limit or the epochs of a preset, unless they are set."""


def schema() -> None:
    """Print a JSON Schema of the config, with which editors complete and check YAML."""
    from mtkit.config.loading import config_schema

    print_stdout(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n")


def show(config: options.ConfigPath, overrides: options.Overrides = None) -> None:
    """Print the resolved config: every key with its value. With preset auto, reads the data and says why."""
    from mtkit.config.loading import AUTO, config_to_dict, load_config
    from mtkit.config.yaml_document import dump_yaml

    loaded = load_config(config, overrides or ())
    if loaded.preset == AUTO:
        from mtkit.training.preset import choose_values

        loaded, choices = choose_values(loaded, say=print_stderr)
        print_stdout("".join(f"# {sentence}\n" for sentence in choices))
    if loaded.init is not None:
        from mtkit.interop.initial import find_model
        from mtkit.training.initial import open_initial_model

        loaded, _ = open_initial_model(loaded, find_model)
    values = config_to_dict(loaded)
    if loaded.training.ends_with_time or loaded.fits_to_epochs:
        # They will follow from timing, or from the encoded pairs; when this is read again, they would count as set.
        for section, key in _FITTED_KEYS:
            if key not in getattr(loaded, section).model_fields_set:
                del values[section][key]
    print_stdout(dump_yaml(values))
