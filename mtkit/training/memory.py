"""Splitting batches into micro-batches that fit in memory.

The largest batch of the corpus decides into how many, before the first update: a run must not fail at step 40,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from mtkit.config.sections import TrainingConfig
from mtkit.data.batching import Batch, collate_pairs, make_batch, num_positions
from mtkit.data.order import Indices
from mtkit.device import is_out_of_memory, peak_memory, reset_peak_memory
from mtkit.errors import TrainingError
from mtkit.job_limits import available_bytes
from mtkit.torchrun import local_world_size
from mtkit.training.engine import Engine
from mtkit.training.loss import TensorBatch
from mtkit.training.muon import Muon
from mtkit.training.parallel import num_local_elements
from mtkit.training.state import TrainState
from mtkit.training.updates import Update, UpdateLoader

_PROBE_POSITIONS = 2048
"""On a CPU, a micro-batch of about this many positions tells how much memory a position takes."""
_SAFETY_MARGIN = 1.25
"""Memory is asked for with this margin, for what cannot be foreseen."""


def out_of_memory_hint(training: TrainingConfig) -> str:
    """Return what to do when memory runs out."""
    if training.batch_tokens == "auto":
        return "other programs may use the memory too: free it, or set training.activation_checkpointing"
    return (
        f"lower training.batch_tokens (now {training.batch_tokens:,}) and raise training.accumulate, "
        "or set training.activation_checkpointing"
    )


def try_batch(engine: Engine, loader: UpdateLoader, pairs: Indices, num_micro_batches: int) -> None:
    """Run the forward and backward pass of what runs of such batches at the same time, and discard the gradient.

    Args:
        engine: computes the gradients.
        loader: makes the batch, as long as its pairs may be in any pass.
        pairs: the pairs of the batch.
        num_micro_batches: into how many micro-batches it is split, at least.
    """
    if engine.num_workers == 1:
        _try_micro_batch(engine, loader, pairs, num_micro_batches)
        return
    batch = longest_batch(loader, pairs, loader.num_micro_batches(num_micro_batches))
    tensors = TensorBatch.from_batch(batch, engine.device)
    in_each = Update([pairs], micro_batches=dict.fromkeys(range(engine.num_workers), tensors))
    try:
        with engine.model.all_layers():
            engine.forward_backward(in_each, batch.num_targets, step=0)
    finally:
        engine.discard_gradients()
        engine.close()  # the workers of the run do drop layers


def _try_micro_batch(engine: Engine, loader: UpdateLoader, pairs: Indices, num_micro_batches: int) -> None:
    """Run the forward and backward pass of a part of a batch, beside as much memory as will be taken by then.

    Args:
        engine: computes the gradients.
        loader: makes the batch, as long as its pairs may be in any pass.
        pairs: the pairs of the batch.
        num_micro_batches: into how many parts it is split.
    """
    batch = longest_batch(loader, pairs, num_micro_batches)
    accumulates = loader.num_micro_batches(num_micro_batches) * loader.batches_per_update > 1
    with_gradients = accumulates and loader.world.size == 1  # those of DDP are there from the beginning
    with _reserved_memory(engine.model, engine.optimizer, engine.device, with_gradients):
        engine.dry_run(batch)


def longest_batch(loader: UpdateLoader, pairs: Indices, num_micro_batches: int) -> Batch:
    """Return the first of some micro-batches of a batch, as long as its pairs may be in any pass."""
    chosen = pairs[::num_micro_batches]
    if loader.variation is None:
        return make_batch(loader.corpus, chosen, loader.special, loader.links)
    width = min(loader.row_budget(len(pairs)), loader.variation.max_length + 1) - 1
    srcs, tgts = (
        [np.resize(ids, max(width, len(ids))) for ids in map(side, chosen.tolist())]
        for side in (loader.corpus.src, loader.corpus.tgt)
    )
    return collate_pairs(srcs, tgts, chosen, loader.special)


@contextmanager
def _reserved_memory(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, with_gradients: bool
) -> Iterator[None]:
    """Hold as much GPU memory inside the block as the optimizer will need for its state, if it has none yet.

    `with_gradients` adds that of all gradients: from the second micro-batch on they lie beside all activations.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = optimizer.parts if isinstance(optimizer, Muon) else {}
    states = [(1 if parameter in matrices else 2) * num_local_elements(parameter) for parameter in trained]
    numel = (0 if optimizer.state else sum(states)) + with_gradients * sum(map(num_local_elements, trained))
    reserved = torch.empty(numel if device.type == "cuda" else 0, device=device)
    try:
        yield
    finally:
        del reserved


def find_num_micro_batches(engine: Engine, loader: UpdateLoader, state: TrainState) -> int:
    """Return the smallest power of two into which the largest batch must be split to fit in every process.

    A run that is resumed is split more finely where its batches no longer fit, on a smaller device or beside other
    programs, but never more coarsely.

    Args:
        engine: computes the gradients; every process must call this.
        loader: knows the batches.
        state: where the run stands.

    Raises:
        TrainingError: If not even a single pair fits.
    """
    largest = loader.epoch_batches(state.epoch).largest()
    on_gpu = engine.device.type == "cuda"
    num_micro_batches = (
        state.slices if on_gpu else _estimate_num_micro_batches(engine, largest, loader, state)
    )
    while num_micro_batches < 2 * len(largest):
        failed = on_gpu and not _fits(engine, loader, largest, num_micro_batches)
        if not any(engine.world.all_reduce([float(failed)])):
            return num_micro_batches
        num_micro_batches *= 2
    hint = "lower data.max_length, or the size of the model, or set training.activation_checkpointing"
    raise TrainingError("out of memory with a single pair", hint=hint)


def _fits(engine: Engine, loader: UpdateLoader, pairs: Indices, num_micro_batches: int) -> bool:
    """Return whether a micro-batch of a batch fits on this GPU."""
    try:
        _try_micro_batch(engine, loader, pairs, num_micro_batches)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _estimate_num_micro_batches(
    engine: Engine, largest: Indices, loader: UpdateLoader, state: TrainState
) -> int:
    """Return how many micro-batches the memory of a CPU requires, estimated from a small one.

    If there is no memory at all, that is more than the largest batch can be split into.

    A CPU is not tried until it fails, because the system would swap or kill the process. A resumed run keeps its number
    if that fits without the margin, so that nothing changes on the same machine.
    """
    positions = num_positions(largest, loader.corpus.src_lengths, loader.corpus.tgt_lengths)
    probe = max(1, min(len(largest), positions // _PROBE_POSITIONS))
    reset_peak_memory(engine.device)
    before = peak_memory(engine.device)
    _try_micro_batch(engine, loader, largest, probe)
    needed = probe * max(0, peak_memory(engine.device) - before)
    available = available_bytes(local_world_size()) - _bytes_of_workers(engine)
    num_micro_batches = state.slices
    if state.step == 0 or needed / _num_rounds(num_micro_batches, engine) > available:
        while num_micro_batches < len(largest):
            if _SAFETY_MARGIN * needed / _num_rounds(num_micro_batches, engine) <= available:
                break
            num_micro_batches *= 2
        if available <= 0:
            num_micro_batches = 2 * len(largest)
    return int(max(engine.world.all_gather(num_micro_batches)))


def _num_rounds(num_micro_batches: int, engine: Engine) -> int:
    """Return how many micro-batches of a batch each worker runs, one after the other."""
    return -(-num_micro_batches // engine.num_workers)


def _bytes_of_workers(engine: Engine) -> int:
    """Return the memory that several workers take before they run anything: gradients of their own."""
    return 0 if engine.num_workers == 1 else 4 * engine.num_workers * engine.model.num_trained_parameters()
