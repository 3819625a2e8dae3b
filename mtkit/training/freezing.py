"""Choice of the parameters that are trained: all, those that are not frozen, or adapters."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from mtkit.config.sections import Config
from mtkit.data.tokenizer import Tokenizers
from mtkit.errors import ConfigError
from mtkit.model.build import make_model
from mtkit.model.lora import add_adapters
from mtkit.model.transformer import Transformer

_SHOWN_NAMES = 3


def make_training_model(config: Config, tokenizers: Tokenizers, compute_dtype: torch.dtype) -> Transformer:
    """Return a model with initial weights, whose parameters are trained as the config says.

    Args:
        config: config of the run.
        tokenizers: tokenizers, for the sizes of the vocabularies.
        compute_dtype: dtype of matrix products.

    Raises:
        ConfigError: If a pattern of `training.freeze` or a target of `training.lora` matches nothing.
    """
    model = make_model(config.model, tokenizers, compute_dtype)
    _choose_parameters(model, config)
    return model


def check_freeze_and_lora(config: Config) -> None:
    """Check the patterns of `training.freeze` and the targets of `training.lora`, without tokenizers or weights.

    Raises:
        ConfigError: If one of them matches nothing.
    """
    with torch.device("meta"):
        # names do not depend on the sizes; two vocabularies tie the fewest matrices
        model = Transformer(config.model, src_vocab=8, tgt_vocab=8, tie_embeddings="two-way")
    _choose_parameters(model, config)


def _choose_parameters(model: Transformer, config: Config) -> None:
    """Add the adapters that a config asks for, or freeze what it names."""
    if config.training.lora is not None:
        add_adapters(model, config.training.lora)
    else:
        freeze(model, config.training.freeze)


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
