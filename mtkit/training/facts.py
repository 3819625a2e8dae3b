"""Facts about a run, in facts.json of its folder: what it trains, on what and where. The report tells them."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mtkit import __version__
from mtkit.device import processor_name
from mtkit.evaluation.history import read_object
from mtkit.evaluation.run_files import FACTS_FILE
from mtkit.files import write_text
from mtkit.training.trainer import Trainer


def write_facts(trainer: Trainer, choices: Sequence[str] | None = ()) -> None:
    """Write facts.json: counts of data, vocabulary and parameters, versions and hardware of the latest start.

    Args:
        trainer: trainer of the run.
        choices: what a new run chose and why; None keeps what a run that is resumed once chose.

    Raises:
        StorageError: If it cannot be written.
    """
    inputs, device, model = trainer.inputs, trainer.device, trainer.model
    corpus, tokenizers = inputs.corpus, inputs.tokenizers
    facts: dict[str, Any] = {
        "mtkit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "processor": processor_name(device),
        "device_memory": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "precision": trainer.precision,
        "processes": trainer.world.size,
        "threads": torch.get_num_threads(),
        "parameters": model.num_parameters(),
        "trained_parameters": model.num_trained_parameters(),
        "vocabulary": {"source": tokenizers.src.num_pieces, "target": tokenizers.tgt.num_pieces},
        "pairs": asdict(corpus.counts),
        "src_tokens": int(corpus.src_lengths.sum()),
        "tgt_tokens": int(corpus.tgt_lengths.sum()),
        "valid": 0 if inputs.valid is None else len(inputs.valid.srcs),
    }  # fmt: skip
    path = trainer.run_folder / FACTS_FILE
    facts["choices"] = read_object(path).get("choices", []) if choices is None else list(choices)
    write_text(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
