"""Saving and restoring a run: which tensors a checkpoint holds, and where they go.

Without an EMA, a checkpoint's model is the raw weights. With one, it is the EMA, because that is what translates, and
the raw weights are stored beside the optimizer state, as `weight/PARAMETER`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mtkit.checkpoint import (
    BASE,
    BEST,
    MODEL_FILE,
    Checkpoint,
    best_folder,
    load_base,
    remove_old_checkpoints,
    save_checkpoint,
    step_folder,
)
from mtkit.config.loading import dump_config
from mtkit.config.sections import Config
from mtkit.device import out_of_memory_errors
from mtkit.errors import StorageError
from mtkit.files import sha256_file
from mtkit.model.build import copy_weights
from mtkit.model.transformer import Transformer
from mtkit.training.distributed import World
from mtkit.training.optimizer import (
    ExponentialMovingAverage,
    load_optimizer_state_dict,
    optimizer_state_dict,
)
from mtkit.training.parallel import full_state_dict, full_tensor, shard_like
from mtkit.training.signals import Signals
from mtkit.training.state import TrainState

_RAW = "weight/"


class Checkpointer:
    """Saves checkpoints of a run, and restores the run from one.

    Args:
        config: config of the run, stored in every checkpoint.
        model: the model, sharded or not.
        optimizer: its optimizer.
        ema: EMA of its weights, if the run keeps one.
        signals: signals, which must not interrupt a swap of the weights.
        world: the processes of the run, all of which must call each method that saves or restores.
    """

    def __init__(
        self,
        config: Config,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage | None,
        signals: Signals,
        world: World,
    ) -> None:
        self.config, self.run_folder = config, Path(config.run)
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.signals, self.world = signals, world
        self.has_adapters = config.training.lora is not None

    def raw_weights(self) -> dict[str, Tensor]:
        """Return the parameters by name, shared ones once; DTensors if the model is sharded."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def _of_adapters(self, tensors: Mapping[str, Tensor], *, wanted: bool = True) -> dict[str, Tensor]:
        """Return those of some tensors that belong to adapters, or those that do not."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in tensors.items() if (name in trained) == wanted}

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Run the block with the EMA in the model, if there is one. A signal never separates the two swaps."""
        if self.ema is None:
            yield
            return
        swapped = False
        try:
            with self.signals.deferred():
                self.ema.swap(self.model)
                swapped = True
            yield
        finally:
            if swapped:
                with self.signals.deferred(raise_after=False):
                    self.ema.swap(self.model)

    def checkpoint(self, state: TrainState) -> Checkpoint:
        """Return what a checkpoint holds; in processes other than the main one, without tensors."""
        optimizer = optimizer_state_dict(self.model, self.optimizer)
        if self.ema is not None:
            raw = self._of_adapters(self.raw_weights()) if self.has_adapters else self.raw_weights()
            optimizer |= {f"{_RAW}{name}": weight for name, weight in raw.items()}
        return replace(self._model(state), optimizer=full_state_dict(optimizer, self.world))

    def _model(self, state: TrainState) -> Checkpoint:
        """Return what best/ holds: the weights to evaluate with, or the adapters alone."""
        weights = self.raw_weights() if self.ema is None else self.ema.weights
        adapters: dict[str, Tensor] = {}
        if self.has_adapters:
            weights, adapters = {}, self._of_adapters(weights)
        return Checkpoint(
            full_state_dict(weights, self.world),
            dump_config(self.config),
            state.as_dict(),
            adapters=full_state_dict(adapters, self.world),
        )

    def save(self, state: TrainState) -> None:
        """Write the checkpoint of a step, and delete the oldest ones beyond `training.keep_last`."""
        checkpoint = self.checkpoint(state)
        if self.world.is_main:
            save_checkpoint(step_folder(self.run_folder, state.step), checkpoint)
            num_kept = self.config.training.num_checkpoints_kept
            remove_old_checkpoints(self.run_folder, state.step, num_kept)
        self.world.barrier()

    def save_best(self, state: TrainState) -> None:
        """Write best/: the weights to evaluate with, without the optimizer."""
        checkpoint = self._model(state)
        if self.world.is_main:
            save_checkpoint(self.run_folder / BEST, checkpoint)
        self.world.barrier()

    def save_base(self, state: TrainState) -> str:
        """Write base/, a model folder with the weights that the adapters belong to, and return their SHA-256."""
        weights = full_state_dict(self._of_adapters(self.raw_weights(), wanted=False), self.world)
        folder = self.run_folder / BASE
        if self.world.is_main:
            training = self.config.training.model_copy(update={"lora": None})
            config = dump_config(self.config.model_copy(update={"training": training}))
            save_checkpoint(folder, Checkpoint(weights, config, {"tokenizers": state.tokenizers}))
        self.world.barrier()
        return sha256_file(folder / MODEL_FILE)

    def start_from(self, weights: dict[str, Tensor], where: str) -> None:
        """Copy the weights of another model into this one, and into the EMA.

        Args:
            weights: full tensors by parameter name.
            where: its folder, for error messages.

        Raises:
            StorageError: If they do not fit the model.
        """
        if self.has_adapters:
            adapters = self._of_adapters(self.raw_weights())
            weights = weights | {name: full_tensor(tensor) for name, tensor in adapters.items()}
        self._copy_weights(weights, where)
        if self.ema is not None:
            self.ema.reset(self.model)

    @out_of_memory_errors("free memory on the device")
    def restore(self, checkpoint: Checkpoint, where: str, current: TrainState) -> TrainState:
        """Load the weights, EMA and optimizer state of a checkpoint.

        Args:
            checkpoint: checkpoint to restore.
            where: its folder, for error messages.
            current: state of this process, which knows the data and how much fits in memory.

        Returns:
            The state to continue from.

        Raises:
            StorageError: If the checkpoint is of another model or of an incompatible version.
            TrainingError: If memory runs out.
        """
        hint = "start anew with `fresh`"
        self._check_optimizer(checkpoint, where, hint)
        try:
            state = TrainState.from_dict(checkpoint.state)
        except (KeyError, TypeError, ValueError) as error:
            what = f"the checkpoint's state is of another version of mtkit: {error}"
            raise StorageError(what, where=where, hint=hint) from error
        if state.best is not None and not best_folder(self.run_folder).is_dir():
            state.reset_best()
        raw: dict[str, Tensor] = {}
        optimizer: dict[str, Tensor] = {}
        for name, tensor in checkpoint.optimizer.items():
            (raw if name.startswith(_RAW) else optimizer)[name.removeprefix(_RAW)] = tensor
        base = checkpoint.weights
        if self.has_adapters:
            base = load_base(step_folder(self.run_folder, state.step), checkpoint.state)
        self._copy_weights(base | checkpoint.adapters, where)
        if self.ema is not None:
            self.ema.reset(self.model)
            self._copy_weights(base | raw, where)
        load_optimizer_state_dict(self.model, self.optimizer, optimizer)
        return replace(
            state,
            corpus=current.corpus,
            valid=current.valid,
            usual_src_tokens=current.usual_src_tokens,
            slices=max(state.slices, current.slices),
        )

    def _check_optimizer(self, checkpoint: Checkpoint, where: str, hint: str) -> None:
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        for full_name, tensor in checkpoint.optimizer.items():
            name = full_name.partition("/")[2]
            if name not in shapes or tensor.shape not in (shapes[name], ()):  # (): the number of updates
                what = f"the optimizer state does not match the model: {full_name:.60}"
                raise StorageError(what, where=where, hint=hint)

    def _copy_weights(self, weights: dict[str, Tensor], where: str) -> None:
        """Copy weights into the model, or each process's shard of them."""
        copy_weights(self.model, weights, where, shard_like)
