"""Whether the batches fit: the largest and the smallest run before the first update, and `auto` cuts them to fit.

Memory is not learned about at step 40,000: what is run here is the worst that the corpus can bring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtkit.data.batching import make_batch, num_positions
from mtkit.data.order import Indices
from mtkit.device import out_of_memory_errors, peak_memory, reset_peak_memory
from mtkit.errors import TrainingError
from mtkit.torchrun import local_world_size
from mtkit.training.memory_limits import available_bytes
from mtkit.training.parallel import num_held

if TYPE_CHECKING:
    from mtkit.training.trainer import Trainer

_PROBE_POSITIONS = 2048
"""On a CPU a slice of about so many positions tells what a position costs."""
_SAFETY = 1.25
"""Memory is asked for with this margin, for what is not foreseen."""


def largest_batch(trainer: Trainer) -> Indices:
    """The batch of the present epoch with the most positions."""
    return trainer.epoch_order(trainer.state.epoch).largest()


def _smallest_batch(trainer: Trainer) -> Indices:
    """The batch of the present epoch with the fewest positions."""
    return trainer.epoch_order(trainer.state.epoch).smallest()


def dry_run(trainer: Trainer) -> None:
    """Run the largest and the smallest batch forward and backward; weights and state stay as they are.

    Raises:
        TrainingError: out of memory; it names the knob.
    """
    with out_of_memory_errors(trainer.memory_hint()):
        _run_micro_batch(trainer, largest_batch(trainer), trainer.state.slices)
        _run_micro_batch(trainer, _smallest_batch(trainer), trainer.state.slices)


def _run_micro_batch(trainer: Trainer, batch: Indices, slices: int) -> None:
    """Forward and backward of one slice of a batch, beside as much memory as the optimizer will take.

    The gradient is thrown away, also when memory runs out.
    """
    numel = 0 if trainer.optimizer.state else 2 * sum(map(num_held, trainer.model.parameters()))
    reserved = torch.empty(numel if trainer.device.type == "cuda" else 0, device=trainer.device)
    trainer.objective.train()
    tried = make_batch(trainer.corpus, batch[::slices], trainer.special)
    local = trainer.config.training.parallel == "ddp"  # FSDP2 would keep what is not exchanged
    try:
        trainer.backward(tried, tried.num_targets, local=local)
    finally:
        del reserved
        trainer.optimizer.zero_grad(set_to_none=True)


def find_num_micro_batches(trainer: Trainer) -> int:
    """The fewest slices, a power of two, in which the largest batch fits every process.

    A run that goes on is cut finer where its batches no longer fit, on a smaller device or beside other programs; it is
    never cut coarser than before.

    Raises:
        TrainingError: not even one pair fits.
    """
    batch = largest_batch(trainer)
    on_gpu = trainer.device.type == "cuda"
    slices = trainer.state.slices if on_gpu else _slices_for_memory(trainer, batch)
    while slices < 2 * len(batch):
        failed = on_gpu and not fits(trainer, batch, slices)
        if not any(trainer.world.all_reduce([float(failed)])):
            return slices
        slices *= 2
    hint = "lower data.max_length, or the size of the model, or set training.activation_checkpointing"
    raise TrainingError("out of memory with a single pair", hint=hint)


def fits(trainer: Trainer, batch: Indices, slices: int) -> bool:
    """Whether a slice runs on this GPU."""
    try:
        _run_micro_batch(trainer, batch, slices)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _slices_for_memory(trainer: Trainer, batch: Indices) -> int:
    """How many slices a CPU's memory asks for, judged by a small one: a CPU is not tried until it breaks.

    What a run has had is kept if it fits without the margin, so that it goes on as it was on the same machine.
    """
    lengths = trainer.corpus.src_lengths, trainer.corpus.tgt_lengths
    probe = max(1, min(len(batch), num_positions(batch, *lengths) // _PROBE_POSITIONS))
    reset_peak_memory(trainer.device)
    before = peak_memory(trainer.device)
    _run_micro_batch(trainer, batch, probe)
    needed = probe * max(0, peak_memory(trainer.device) - before)
    available = available_bytes(local_world_size())
    slices = trainer.state.slices
    if trainer.state.step == 0 or needed / slices > available:
        while _SAFETY * needed / slices > available and slices < len(batch):
            slices *= 2
    return int(max(trainer.world.all_gather(slices)))
