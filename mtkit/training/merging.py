"""Merging: a fine-tuned model with LoRA adapters becomes an ordinary model folder."""

from __future__ import annotations

from pathlib import Path

from mtkit.checkpoint import ADAPTERS_FILE, STATE_FILE, Checkpoint, read_json, save_checkpoint
from mtkit.config.loading import dump_config
from mtkit.errors import ConfigError
from mtkit.training.averaging import check_output_is_free
from mtkit.translation.loading import load_own_tokenizers, load_weights
from mtkit.translation.model_folder import find_checkpoint, read_model_config

_KEPT = ("tokenizers", "corpus", "usual_src_tokens")


def merge(run: Path, output: Path) -> Path:
    """Add the adapters of a run to the weights that they belong to, and write the result as a model folder.

    Args:
        run: a run folder, of which the best checkpoint is merged, or a checkpoint folder.
        output: folder to create.

    Returns:
        The checkpoint that was merged.

    Raises:
        ConfigError: If there are no adapters, or the output is not empty.
        StorageError: If a file is missing or damaged, or the folder cannot be written.
    """
    check_output_is_free(output)
    folder = find_checkpoint(run)
    if not (folder / ADAPTERS_FILE).exists():
        raise ConfigError(
            "no adapters to merge", where=str(folder), hint="only runs with training.lora have them"
        )
    config = read_model_config(run, folder, "it was written by another version of mtkit")
    training = config.training.model_copy(update={"lora": None})
    before = read_json(folder / STATE_FILE)
    state = {"merged": f"{folder.name}, step {before.get('step')}", **{key: before.get(key) for key in _KEPT}}
    stored = dump_config(config.model_copy(update={"training": training}))
    save_checkpoint(
        output, Checkpoint(load_weights(folder), stored, state), load_own_tokenizers(folder).files()
    )
    return folder
