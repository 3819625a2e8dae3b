"""The training loop: updates, validations, checkpoints, and how it ends.

All that changes is a model, an optimizer, an average of weights and a `TrainState`. The order of the batches is a
function of (seed, epoch) and dropout one of (seed, step, part), so a run that goes on from a checkpoint gives the
same numbers, bit for bit, as one that was never stopped.

An update is `batches_per_update` batches. They are cut into parts, which are dealt to the processes; the gradient is
that of the loss sum over the token count of the whole update, so the number of processes does not change what is
learned.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtkit.checkpoint import (
    BEST,
    Checkpoint,
    best_folder,
    load_newest_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
    step_folder,
)
from mtkit.config.loading import dump_config
from mtkit.config.sections import Config
from mtkit.data.batching import Batch, empty_batch, length_quantile, make_batch, split_into_micro_batches
from mtkit.data.corpus import Corpus
from mtkit.data.order import BatchOrder, EpochBatches, Indices
from mtkit.data.tokenizer import Tokenizers
from mtkit.device import choose_device, choose_dtype, out_of_memory_errors
from mtkit.errors import StorageError, TrainingError
from mtkit.model.build import copy_weights, make_model
from mtkit.model.transformer import Transformer
from mtkit.training.compiling import compile_errors
from mtkit.training.distributed import SINGLE_PROCESS, World, peer_failure_errors
from mtkit.training.loss import TensorBatch
from mtkit.training.memory import dry_run, find_num_micro_batches
from mtkit.training.optimizer import (
    ExponentialMovingAverage,
    load_optimizer_state_dict,
    make_optimizer,
    optimizer_state_dict,
    set_learning_rate,
)
from mtkit.training.parallel import (
    Objective,
    Stage,
    gathered,
    is_sharded,
    materialize,
    no_gradient_sync,
    shard,
    shard_like,
    untimed,
    whole,
    whole_in_each,
)
from mtkit.training.progress import Progress, Sample, Stopwatch
from mtkit.training.schedule import learning_rate
from mtkit.training.signals import Interrupted, Signals
from mtkit.training.state import TrainState, Window
from mtkit.training.validation import (
    Standing,
    ValidationResult,
    Validator,
    fingerprint_of,
    is_better,
    special_ids,
)

_SMALLEST_LOSS_SCALE = 2.0**-14
_MOST_ROLLBACKS = 5  # from one checkpoint: then it is not the sentences

Update = list[tuple[int, int, Indices]]
"""(epoch, number in it, pairs) of the batches of an update."""


@dataclass(frozen=True)
class _MadeUpdate:
    """An update, and the parts of it that a process runs, by their numbers among all, where the model is."""

    update: Update
    parts: dict[int, TensorBatch]

    def is_of(self, batches: list[Indices]) -> bool:
        """Whether these are its batches, not only equal ones."""
        own = [indices for _, _, indices in self.update]
        return len(own) == len(batches) and all(map(operator.is_, own, batches))


class Trainer:
    """Trains one model.

    Args:
        config: the whole run.
        corpus: the encoded training pairs.
        tokenizers: of both sides.
        validator: validates, or None without validation pairs.
        progress: where to show and record what happens.
        signals: Ctrl-C, SIGTERM and SIGHUP.
        world: the processes that train this model together; by default a single one.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        tokenizers: Tokenizers,
        validator: Validator | None,
        progress: Progress,
        signals: Signals,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.config, self.corpus, self.tokenizers = config, corpus, tokenizers
        self.validator, self.progress, self.signals = validator, progress, signals
        self.world = world
        self.run_folder = Path(config.run)
        training = config.training
        self.device = choose_device(training.device, local_rank=world.local_rank)
        self.dtype = choose_dtype(training.precision, self.device)
        shards = training.parallel == "fsdp" and world.is_distributed
        torch.manual_seed(config.seed)
        self.model = self.make_model("meta") if shards else self.make_model().to(self.device)
        self.model.recompute = training.activation_checkpointing
        if training.compile:
            self.model.compile(dynamic=True)
        self._objective = Objective(self.model, training.label_smoothing)
        with peer_failure_errors():
            if shards:
                initial = self.make_model() if world.is_main else None
                world.barrier()  # a large model takes the main process longer than a collective may
                shard(self._objective, initial, world, self.device, self.dtype)
                self.objective: nn.Module = self._objective
            else:
                self.objective = whole_in_each(self._objective, world)
        self.optimizer = make_optimizer(self.model, training)
        self.scaler = self._make_scaler()
        decay = training.ema_decay
        self.average = None if decay is None else ExponentialMovingAverage(self.model, decay)
        self.state = TrainState(
            corpus=corpus.fingerprint,
            valid=fingerprint_of(None if validator is None else validator.corpus),
            tokenizers=tokenizers.fingerprint,
            usual_src_tokens=length_quantile(corpus.src_lengths),
        )
        self.special = special_ids(tokenizers)
        self.stopwatch = Stopwatch(0.0)
        self.saved: tuple[int, int, bool] | None = None
        """Step, validated step and whether time was over, of the newest checkpoint."""
        self.stage: Stage = untimed
        lengths = corpus.src_lengths, corpus.tgt_lengths
        self.order = BatchOrder(*lengths, training.batch_token_budget, config.seed)
        self._epoch: tuple[int, EpochBatches] | None = None
        self._made: _MadeUpdate | None = None
        """The update that the thread made last: the one that is due."""
        self._targets_an_epoch = int(corpus.tgt_lengths.sum(dtype=np.int64)) + len(corpus)
        self._time_is_over = False
        self._rollbacks_from: Counter[int] = Counter()

    def measure(self, stage: Stage) -> None:
        """Enter `stage(name)` around each stage of an update: data, forward, loss, backward, optimizer."""
        self.stage = self._objective.stage = stage

    def make_model(self, device: str = "cpu") -> Transformer:
        """An untrained model of the config's shape, which computes in the run's precision.

        Args:
            device: `meta` for one without memory.
        """
        with torch.device(device):
            model = make_model(self.config.model, self.tokenizers)
        model.compute_dtype = self.dtype
        return model

    def _make_scaler(self) -> torch.amp.GradScaler:
        """Scales losses up in fp16, so that small gradients are not rounded to zero (Micikevicius et al. 2018)."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    # --- the loop ---------------------------------------------------------------------------------------------

    def train(self) -> str:
        """Train to the end. Returns why it ended. Raises: TrainingError, StorageError, Interrupted (after saving)."""
        self.stopwatch = Stopwatch(self.state.seconds)
        try:
            with self.signals.deferred(raise_after=False) if self.world.is_distributed else nullcontext():
                reason = self._loop()
            if self.signals.pending is not None:  # it came while the last validation or save was under way
                self.signals.raise_interrupted()
        except Interrupted:
            self.progress.stop_live()
            with self.signals.deferred(raise_after=False):
                self.save()
            raise
        self.progress.stop_live()
        return reason

    def _loop(self) -> str:
        self._agree([])
        if self.ended() is None:
            self._make_sure_it_fits()
        with closing(self.made_ahead(self.updates())) as updates:
            while True:
                self.validate_and_save(last=False)
                reason = self.ended()
                update = None if reason else next(updates, None)
                if update is None:
                    self.validate_and_save(last=True)
                    return reason or f"epoch {self.config.training.max_epochs} was the last"
                with self.signals.deferred():
                    self.train_step(update)
                    self._log()

    def _make_sure_it_fits(self) -> None:
        """Run the largest and the smallest batch; the worst is known before time is spent."""
        if self.config.training.batch_tokens == "auto":
            before, self.state.slices = self.state.slices, find_num_micro_batches(self)
            if self.state.step and self.state.slices != before:
                what = f"memory asks for batches in {self.state.slices} slices, {before} before"
                self.progress.say(f"{what}: dropout draws other masks from here on")
            if self.state.slices != before:
                self.save()  # a run that is killed now goes on with as many
        dry_run(self)
        self.stopwatch.restart_interval()

    def batches(self) -> Iterator[tuple[int, int, Indices]]:
        """(epoch, number, pairs) of every batch from where the run stands to the last epoch."""
        last, epoch, first = self.config.training.max_epochs, self.state.epoch, self.state.batch
        while last is None or epoch < last:
            order = self.epoch_order(epoch)
            for number in range(first, len(order)):
                yield epoch, number, order[number]
            epoch, first = epoch + 1, 0

    def updates(self) -> Iterator[Update]:
        """The batches from where the run stands, as many at a time as an update has."""
        batches = self.batches()
        while update := list(islice(batches, self.config.training.batches_per_update)):
            yield update

    def made_ahead(self, updates: Iterator[Update]) -> Generator[Update, None, None]:
        """The same updates; while one is made, a thread fetches the pairs of the next and copies them to the device.

        What the thread raises is raised where its update was due. Close this iterator to end the thread.
        """

        def following() -> _MadeUpdate | None:
            update = next(updates, None)
            if update is None:
                return None
            return _MadeUpdate(update, self._make_parts([indices for _, _, indices in update]))

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            future = thread.submit(following)
            while True:
                with self.stage("data"):
                    self._made = future.result()
                if self._made is None:
                    return
                future = thread.submit(following)
                yield self._made.update

    def epoch_order(self, epoch: int) -> EpochBatches:
        """The batches of an epoch; those of the latest one asked for are kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.order.epoch(epoch)
        return self._epoch[1]

    def ended(self) -> str | None:
        """Why training is at its end, if it is."""
        training, patience = self.config.training, self.config.validation.patience
        if training.step_limit is not None and self.state.step >= training.step_limit:
            return f"step {self.state.step} is the last"
        if self._time_is_over:
            return f"{training.time_limit_minutes:g} minutes are over"
        if patience and self.state.validations_without_best >= patience:
            return f"no better {self.config.validation.best} in {patience} validations"
        return None

    def _agree(self, numbers: list[float]) -> list[float]:
        """Numbers summed over the processes; with them they agree on whether to stop, so that all do or none."""
        limit = self.config.training.time_limit_minutes
        late = limit is not None and self.stopwatch.total_seconds() >= 60 * limit
        asked = self.signals.pending is not None and self.world.is_distributed
        *sums, any_late, any_asked = self.world.all_reduce([*numbers, float(late), float(asked)])
        self._time_is_over = any_late > 0
        if any_asked:
            self.signals.raise_interrupted()
        return sums

    # --- one update -------------------------------------------------------------------------------------------

    def train_step(self, update: Update) -> None:
        """One update: the gradient of the loss sum over the token count of all its batches, clipped, applied."""
        batches = [rest for _, _, indices in update if len(rest := self._not_skipped(indices))]
        if not batches:
            self._pass(update)
            return
        num_targets = self._num_targets(batches)
        with out_of_memory_errors(self.memory_hint()), peer_failure_errors():
            sums = self._gradients(batches, num_targets)
            with self.stage("optimizer"):
                norm = self._clip()
        loss, nll = (number / num_targets for number in self._agree(sums))
        what = self._divergence(loss, norm, num_targets)
        if what is not None:
            self._diverged(what, update, batches)
            return
        rate = learning_rate(self.state.step + 1, self.config.training, self.config.model.d_model)
        with self.stage("optimizer"):
            self._apply(rate)
        self._advance(update, num_targets)
        if self.average is not None:
            self.average.update(self.model, self.state.step)
        self.state.window.add(loss, nll, norm if math.isfinite(norm) else 0.0, rate, num_targets)

    def _not_skipped(self, indices: Indices) -> Indices:
        """The pairs of a batch but those at which the loss diverged before."""
        skipped = self.state.skipped
        met = np.isin(indices, skipped) if skipped else np.zeros(0, np.bool_)
        return indices[~met] if met.any() else indices  # as it is: a thread has made its parts

    def _num_targets(self, batches: list[Indices]) -> int:
        """Real target positions of an update, over all processes."""
        return sum(int(self.corpus.tgt_lengths[indices].sum()) + len(indices) for indices in batches)

    def _gradients(self, batches: list[Indices], num_targets: int) -> list[float]:
        """Add up the gradients of this process's parts. Returns their loss and nll sums."""
        self.objective.train()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        with self.stage("data"):
            parts = self._parts(batches)
        for number, batch in parts.items():
            torch.manual_seed(_dropout_seed(self.config.seed, self.state.step, number))
            sums += self.backward(batch, num_targets, local=number != max(parts))
        loss, nll = sums.tolist()
        return [loss, nll]

    def _parts(self, batches: list[Indices]) -> dict[int, TensorBatch]:
        """This process's parts of an update, by their numbers among all; a thread may have made them."""
        if self._made is not None and self._made.is_of(batches):
            return self._made.parts
        return self._make_parts(batches)

    def _make_parts(self, batches: list[Indices]) -> dict[int, TensorBatch]:
        parts, made = split_into_micro_batches(batches, self.world.size, self.state.slices), {}
        for number in range(self.world.rank, len(parts), self.world.size):
            part = parts[number]
            make, pairs = (make_batch, part) if len(part) else (empty_batch, batches[0])
            made[number] = TensorBatch.from_batch(make(self.corpus, pairs, self.special), self.device)
        return made

    def backward(self, batch: Batch | TensorBatch, num_targets: int, *, local: bool = False) -> torch.Tensor:
        """Add a batch's gradient, of its loss sum over `num_targets`. Returns loss and nll sums: [2].

        Args:
            local: leave the gradient in this process: more batches of the update follow.
        """
        with no_gradient_sync(self.objective, local), compile_errors():
            loss, nll = self.objective(batch)
            with self.stage("backward"):
                # the engines average gradients over processes; theirs is to be a sum
                self.scaler.scale(loss * (self.world.size / num_targets)).backward()
        return torch.stack([loss.detach(), nll]).double()

    def _clip(self) -> float:
        """Scale large gradients down; returns the norm before."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.training.clip_norm or math.inf
        return float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)))

    def _apply(self, rate: float) -> None:
        set_learning_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)  # fp16: passed over if a gradient overflowed
        self.scaler.update()
        self._refuse_endless_overflow()
        self.optimizer.zero_grad(set_to_none=True)

    def memory_hint(self) -> str:
        """What to do when memory runs out."""
        training = self.config.training
        if training.batch_tokens == "auto":
            return "other programs may use the memory too: free it, or set training.activation_checkpointing"
        return (
            f"lower training.batch_tokens (now {training.batch_tokens:,}) and raise training.accumulate, "
            "or set training.activation_checkpointing"
        )

    def _refuse_endless_overflow(self) -> None:
        """fp16: each overflow halves the loss scale; when nothing is left of it, none of the updates was made."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_LOSS_SCALE:
            what = "gradients overflow fp16 whatever the loss scale"
            raise TrainingError(what, hint="set training.precision to bf16 or fp32, or lower learning_rate")

    def _advance(self, update: Update, num_targets: int) -> None:
        self.state.step += 1
        self._pass(update)
        self.state.target_tokens += num_targets
        self.stopwatch.tokens += num_targets

    def _pass(self, update: Update) -> None:
        """The next batch is the one after this update."""
        epoch, number, _ = update[-1]
        self.state.epoch, self.state.batch = epoch, number + 1

    # --- divergence -------------------------------------------------------------------------------------------

    def _divergence(self, loss: float, norm: float, num_targets: int) -> str | None:
        """What is wrong with the loss or the gradient of this update, if something is. Weights are not touched yet."""
        if not math.isfinite(loss):
            return "the loss of step {step} is not finite"
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            return "the gradient of step {step} is not finite"
        spike = self.state.watch.add(loss, num_targets)
        if spike and self.config.training.on_divergence == "rollback":
            watch = self.state.watch
            return f"the loss jumped from {watch.mean:.2f} to {watch.present:.2f} at step {{step}}"
        return None

    def _diverged(self, what: str, update: Update, batches: list[Indices]) -> None:
        """Stop, or go back to the newest checkpoint and on behind this update. Raises: TrainingError."""
        pairs = [int(index) for indices in batches for index in indices]
        places = [self.corpus.location(index) for index in pairs]
        shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
        what = f"{what.format(step=self.state.step + 1)}; its sentences: {shown}"
        diverged = {"diverged_step": self.state.step + 1, "reason": what, "sentences": places}
        self.progress.record("diverged", self.state.step + 1, diverged)
        hint = "lower training.learning_rate, lengthen warmup_steps, or look at these lines"
        if self.config.training.on_divergence == "stop":
            raise TrainingError(what, hint=f"{hint}; training.on_divergence rollback passes them over")
        self.optimizer.zero_grad(set_to_none=True)
        self._roll_back(what, update, pairs, hint)
        self.progress.record("rollback", self.state.step, diverged)
        step = self.state.step
        self.progress.log_rollback(step, f"{what}; going back to step {step} and on without these")

    def _roll_back(self, what: str, update: Update, pairs: list[int], hint: str) -> None:
        """Go back to the newest checkpoint, and on behind this update (Chowdhery et al. 2022, 5.1).

        The pairs of this update are in none that follow: in the next epoch they might do the same again.
        """
        before = self.state
        skipped = sorted({*before.skipped, *pairs})
        if len(skipped) == len(self.corpus):
            raise TrainingError(f"{what}; and there are no others to go on with", hint=hint)
        found = load_newest_checkpoint(self.run_folder, lambda fault: self.progress.say(str(fault)))
        steps = self.world.all_gather(None if found is None else found[1].state["step"])
        if len(set(steps)) > 1 or found is None:
            raise TrainingError(f"{what}; and there is no checkpoint to go back to", hint=hint)
        folder, checkpoint = found
        self.resume(checkpoint, str(folder))
        if before.best is not None:  # best/ is still there
            self.state.best, self.state.best_loss = before.best, before.best_loss
            self.state.best_step = before.best_step
        self._rollbacks_from[self.state.step] += 1
        if self._rollbacks_from[self.state.step] > _MOST_ROLLBACKS:
            raise TrainingError(f"{what}; going back {_MOST_ROLLBACKS} times did not help", hint=hint)
        self._pass(update)
        self.state.rollbacks, self.state.skipped = before.rollbacks + 1, skipped
        self.save()  # a run that is stopped now goes on from here

    # --- what is shown ----------------------------------------------------------------------------------------

    def _log(self) -> None:
        training, step = self.config.training, self.state.step
        if (step % training.log_every_steps and step != 1) or not self.state.window.updates:
            return
        numbers = self.state.window.means() | {
            "epoch": self.epochs_done(),
            "target_tokens": self.state.target_tokens,
            "target_tokens_per_second": self.stopwatch.tokens_per_second(),
            "seconds": self.stopwatch.total_seconds(),
        }
        self.progress.log_training(step, numbers, self.seconds_left())
        self.state.window = Window()

    def epochs_done(self) -> float:
        """Passes over the training pairs, with the share of the present one by tokens."""
        return self.state.target_tokens / self._targets_an_epoch

    def seconds_left(self) -> float | None:
        """Until a limit that can be foreseen."""
        training, elapsed, left = self.config.training, self.stopwatch.total_seconds(), []
        if training.step_limit is not None and self.state.step > 1:
            left.append(elapsed / self.state.step * (training.step_limit - self.state.step))
        if training.time_limit_minutes is not None:
            left.append(60 * training.time_limit_minutes - elapsed)
        if training.max_epochs is not None and self.epochs_done() > 0:
            left.append(elapsed / self.epochs_done() * (training.max_epochs - self.epochs_done()))
        return max(0.0, min(left)) if left else None

    # --- validation and checkpoints ---------------------------------------------------------------------------

    def validate_and_save(self, *, last: bool) -> None:
        """Validate and save where the config says so, and at the end."""
        step, training = self.state.step, self.config.training
        every = self.config.validation.every_steps
        validates = self.validator is not None and step > 0 and (last or step % every == 0)
        found = self._validate() if validates and self.state.validated_step != step else None
        saves = step % (training.save_every_steps or every) == 0 or last
        if saves and self.saved != (step, self.state.validated_step, self._time_is_over):
            with self.signals.deferred():
                self.save()
        if last and self.validator is None:
            with self.signals.deferred():
                self._save_best()
        if found is not None:  # shown when all that it changed is on the disk
            self.progress.log_validation(step, *found)

    def _validate(self) -> tuple[str, list[Sample]]:
        """Validate, and save the weights if they are the best. Returns what to show: a line, sample translations."""
        assert self.validator is not None
        with self.ema_weights():
            with compile_errors():
                result = self.validator.validate(self._whole_model(), self.world)
            name = self.config.validation.best
            improved = is_better(name, result.standing(name), self._best_so_far())
            with self.signals.deferred():
                self._note(result, improved)
                if improved:
                    self._save_best(averaged=True)
        self.stopwatch.restart_interval()
        marker = "  (best so far)" if improved else ""
        pairs = zip(self.validator.translated_pairs, result.hyps, strict=False)
        samples = [(src, tgt, hyp) for (src, tgt), hyp in islice(pairs, self.config.validation.num_samples)]
        line = f"validation at step {self.state.step}: {result.line()}{marker}"
        return "\n".join([line, *result.set_lines()]), samples

    def _best_so_far(self) -> Standing | None:
        """The standing of best/."""
        best = self.state.best
        return None if best is None else Standing(best, self.state.best_loss)

    def _note(self, result: ValidationResult, improved: bool) -> None:
        state = self.state
        state.validated_step = state.step
        state.validations_without_best = 0 if improved else state.validations_without_best + 1
        if improved:
            state.best, state.best_loss = result.standing(self.config.validation.best)
            state.best_step = state.step
        numbers = result.as_dict() | {"seconds": self.stopwatch.total_seconds(), "best": improved}
        self.progress.record("valid", state.step, numbers)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """With a moving average, the model holds it inside the block; never broken between the two exchanges."""
        if self.average is None:
            yield
            return
        swapped = False
        try:
            with self.signals.deferred():
                self.average.swap(self.model)
                swapped = True
            yield
        finally:
            if swapped:
                with self.signals.deferred(raise_after=False):
                    self.average.swap(self.model)

    def _whole_model(self) -> Transformer:
        """The model; if it is held in shards, a copy of it made whole for a validation.

        A search takes as many steps as its own sentences ask for: were layers gathered at each step, every process
        would wait for the others. The copy is made tensor by tensor. Its layers are in the precision that they
        compute in; embeddings, which are summed in float32, in float32.
        """
        if not is_sharded(self.model.parameters()):
            return self.model
        own = self.weights()
        model = self.make_model("meta")
        for layer in (*model.encoder, *model.decoder):
            layer.to(self.dtype)
        names = {parameter: name for name, parameter in model.named_parameters()}
        materialize(model, self.device, lambda parameter, tensor: tensor.copy_(whole(own[names[parameter]])))
        return model

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name, shared ones once; in shards if the model is."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def averaged(self) -> dict[str, torch.Tensor]:
        """The weights to translate with: their moving average if there is one."""
        return self.weights() if self.average is None else self.average.weights

    def _save_best(self, *, averaged: bool = False) -> None:
        """Write best/: the weights to translate with, no optimizer."""
        held = self.weights() if averaged else self.averaged()
        weights = gathered(held, self.world)
        checkpoint = Checkpoint(weights, dump_config(self.config), self._state_dict())
        if self.world.is_main:
            save_checkpoint(self.run_folder / BEST, checkpoint)
        self.world.barrier()

    def save(self) -> None:
        """Write a checkpoint from which training can go on, and delete those that are too old."""
        checkpoint = self._checkpoint()
        if self.world.is_main:
            save_checkpoint(step_folder(self.run_folder, self.state.step), checkpoint)
            remove_old_checkpoints(
                self.run_folder, self.state.step, self.config.training.num_checkpoints_kept
            )
        self.saved = self.state.step, self.state.validated_step, self._time_is_over
        self.world.barrier()

    def _checkpoint(self) -> Checkpoint:
        tensors = optimizer_state_dict(self.model, self.optimizer)
        if self.average is not None:  # the averaged weights are the model; the raw ones go with the optimizer
            tensors |= {f"weight/{name}": value for name, value in self.weights().items()}
        weights, optimizer = (gathered(held, self.world) for held in (self.averaged(), tensors))
        return Checkpoint(weights, dump_config(self.config), self._state_dict(), optimizer)

    def _state_dict(self) -> dict[str, Any]:
        self.state.seconds = self.stopwatch.total_seconds()
        if self.scaler.is_enabled():
            self.state.scaler = self.scaler.state_dict()
        return self.state.as_dict()

    def resume(self, checkpoint: Checkpoint, where: str) -> None:
        """Go on from a checkpoint. Raises: StorageError: it is not of this model."""
        own = self.state
        try:
            state = TrainState.of(checkpoint.state)
        except (KeyError, TypeError, ValueError) as error:
            what = f"the checkpoint's state is of another version of mtkit: {error}"
            raise StorageError(what, where=where, hint="start anew with `fresh`") from error
        if state.best is not None and not best_folder(self.run_folder).is_dir():
            state.forget_best()
        self.state = replace(  # at once: the thread that makes batches looks at it
            state,
            corpus=own.corpus,
            valid=own.valid,
            usual_src_tokens=own.usual_src_tokens,
            slices=max(state.slices, own.slices),
        )
        limit = self.config.training.time_limit_minutes
        over = limit is not None and self.state.seconds >= 60 * limit
        self.saved = self.state.step, self.state.validated_step, over
        tensors = dict(checkpoint.optimizer)
        if self.average is not None:
            names = [key for key in tensors if key.startswith("weight/")]
            raw = {name.removeprefix("weight/"): tensors.pop(name) for name in names}
            self._copy_weights(checkpoint.weights, where)
            self.average = ExponentialMovingAverage(self.model, self.average.decay)
            self._copy_weights(raw, where)
        else:
            self._copy_weights(checkpoint.weights, where)
        load_optimizer_state_dict(self.model, self.optimizer, tensors)
        self.scaler = self._make_scaler()  # one that was left in the middle of an update cannot go on
        if self.state.scaler is not None:
            self.scaler.load_state_dict(self.state.scaler)

    def _copy_weights(self, weights: dict[str, torch.Tensor], where: str) -> None:
        """Fill the model, or this process's shard of it. Raises: StorageError: names or shapes are not the model's."""
        copy_weights(self.model, weights, where, shard_like)


def _dropout_seed(seed: int, step: int, part: int) -> int:
    """The seed of a part's dropout masks: a hash, so that neighbouring numbers give unrelated masks."""
    digest = hashlib.sha256(f"{seed} {step} {part}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
