"""Importing packages that mtkit does without unless it exports to them, or compares with them."""

from __future__ import annotations

import importlib
from typing import Any

from mtkit.errors import ConfigError


def import_package(name: str, hint: str, where: str | None = None) -> Any:
    """Import and return a package.

    Args:
        name: name of the package.
        hint: how to install it.
        where: the parameter that asks for it, if it is not obvious.

    Raises:
        ConfigError: If it is not installed, or cannot be loaded on this system.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise ConfigError(f"the package {name} is not installed", where=where, hint=hint) from error
        what = f"the package {name} is installed, but cannot be imported: {' '.join(str(error).split())}"
        raise ConfigError(what, where=where, hint="install another version of it") from error
