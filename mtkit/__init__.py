"""mtkit: train your own machine-translation system, from text pairs to a scored translator.

```python
import mtkit

config = mtkit.load_config("config.yaml", ["training.max_steps=1000"])
mtkit.train(config)
translator = mtkit.Translator.load("runs/my-run", beam_size=3)
print(translator.translate_one("Good morning.").text)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtkit.config.loading import load_config
    from mtkit.config.sections import Config, DecodingConfig
    from mtkit.errors import MtkitError
    from mtkit.evaluation.metrics import Score
    from mtkit.evaluation.metrics import score as evaluate
    from mtkit.training.results import TrainResult
    from mtkit.training.run import train
    from mtkit.translation.assembly import Translation
    from mtkit.translation.confidence import Confidence
    from mtkit.translation.options import Parallelism, TranslateOptions
    from mtkit.translation.segments import Request
    from mtkit.translation.translator import Translator

__all__ = [
    "Confidence",
    "Config",
    "DecodingConfig",
    "MtkitError",
    "Parallelism",
    "Request",
    "Score",
    "TrainResult",
    "TranslateOptions",
    "Translation",
    "Translator",
    "evaluate",
    "load_config",
    "train",
]
__version__ = "0.1.0"

_EXPORTS = {
    "Confidence": ("mtkit.translation.confidence", "Confidence"),
    "Config": ("mtkit.config.sections", "Config"),
    "DecodingConfig": ("mtkit.config.sections", "DecodingConfig"),
    "MtkitError": ("mtkit.errors", "MtkitError"),
    "Request": ("mtkit.translation.segments", "Request"),
    "Score": ("mtkit.evaluation.metrics", "Score"),
    "TrainResult": ("mtkit.training.results", "TrainResult"),
    "Parallelism": ("mtkit.translation.options", "Parallelism"),
    "TranslateOptions": ("mtkit.translation.options", "TranslateOptions"),
    "Translation": ("mtkit.translation.assembly", "Translation"),
    "Translator": ("mtkit.translation.translator", "Translator"),
    "evaluate": ("mtkit.evaluation.metrics", "score"),
    "load_config": ("mtkit.config.loading", "load_config"),
    "train": ("mtkit.training.run", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import mtkit` does not import torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mtkit' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)
