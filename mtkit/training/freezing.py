"""Freezing: parameters that a fine-tuned model keeps as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from mtkit.errors import ConfigError

_SHOWN_NAMES = 3


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude parameters from training; the optimizer and weight decay leave them alone.

    Args:
        model: the model, before it is sharded or has an optimizer.
        patterns: `training.freeze`: patterns of parameter names, in which `*` is anything. A tied matrix has several
            names, and is frozen if one of them matches.

    Raises:
        ConfigError: If a pattern matches no parameter, or nothing is left to train.
    """
    parameters = list(model.named_parameters(remove_duplicate=False))
    for number, pattern in enumerate(patterns):
        matching = [parameter for name, parameter in parameters if fnmatchcase(name, pattern)]
        if not matching:
            names = ", ".join(name for name, _ in parameters[:: -(-len(parameters) // _SHOWN_NAMES)])
            what = f"no parameter has a name like {pattern!r}"
            raise ConfigError(what, where=f"training.freeze[{number}]", hint=f"names are such as {names}")
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in parameters):
        raise ConfigError("every parameter is frozen", where="training.freeze", hint="leave some to train")
