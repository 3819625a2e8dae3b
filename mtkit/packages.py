"""Importing the packages of the optional extras, when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from mtkit.errors import ConfigError


def import_package(name: str, hint: str, where: str | None = None) -> Any:
    """Import and return a package.

    Args:
        name: name of the package, or of a module in it.
        hint: how to install it.
        where: the parameter that asks for it, if it is not obvious.

    Raises:
        ConfigError: If it is not installed, or cannot be loaded on this system.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise ConfigError(f"the package {package} is not installed", where=where, hint=hint) from error
        what = f"the package {name} is installed, but cannot be imported: {' '.join(str(error).split())}"
        raise ConfigError(what, where=where, hint="install another version of it") from error
