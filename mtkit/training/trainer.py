"""The training loop: updates, validations, checkpoints, and when it ends.

Training changes a model, an optimizer, an EMA of the weights and a `TrainState`, nothing else. The order of batches is
a function of (seed, epoch), and dropout one of (seed, step, micro-batch), so a run that is resumed from a checkpoint
gives the same numbers, bit for bit, as one that was never stopped.

An update is `batches_per_update` batches, split into micro-batches that are dealt to the processes. Its gradient is
that of the loss sum over the target tokens of the whole update, so the number of processes does not change what is
learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mtkit.checkpoint import Checkpoint
from mtkit.config.sections import Config
from mtkit.data.batching import length_quantile
from mtkit.device import dtype_name, out_of_memory_errors
from mtkit.evaluation.history import Sample
from mtkit.training.checkpointing import Checkpointer
from mtkit.training.compiling import compile_errors
from mtkit.training.distributed import peer_failure_errors
from mtkit.training.divergence import Divergence, Rollback, observe_loss
from mtkit.training.engine import Engine
from mtkit.training.inputs import Inputs
from mtkit.training.memory import find_num_micro_batches, out_of_memory_hint, try_batch
from mtkit.training.optimizer import ExponentialMovingAverage
from mtkit.training.progress import Progress, Stopwatch, estimate_seconds_left
from mtkit.training.report import ReportWriter
from mtkit.training.schedule import learning_rate
from mtkit.training.signals import Interrupted, Signals
from mtkit.training.state import TrainState, Window
from mtkit.training.updates import Update, UpdateLoader
from mtkit.training.validation import (
    SelectionScore,
    Validator,
    is_better,
    validation_fingerprint,
)
from mtkit.training.workers import WorkerLostError

_MOST_UNREAD = 1000
"""Updates of a GPU whose losses wait to be read, at most."""


class _Unread(NamedTuple):
    """An update whose losses have not been read yet."""

    step: int
    update: Update  # without its micro-batches
    numbers_3: Tensor
    """Sums of this process's loss and NLL, and the gradient norm."""
    num_targets: int
    rate: float


class Trainer:
    """Trains a model. `mtkit.training.build.build_trainer` makes one.

    Args:
        config: config of the run.
        inputs: tokenizers, and encoded training and validation pairs.
        engine: computes and applies the gradients of the model.
        ema: EMA of the model's weights, or None.
        loader: loads the updates.
        validator: validates, or None without validation pairs.
        progress: shows and records what happens.
        signals: SIGINT, SIGTERM and SIGHUP.
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        *,
        engine: Engine,
        ema: ExponentialMovingAverage | None,
        loader: UpdateLoader,
        validator: Validator | None,
        progress: Progress,
        signals: Signals,
    ) -> None:
        self.config, self.inputs, self.run_folder = config, inputs, Path(config.run)
        self.engine, self.model, self.ema, self.world = engine, engine.model, ema, engine.world
        self.device, self.dtype = engine.device, engine.model.compute_dtype
        self.precision = "fp8" if engine.model.uses_float8 else dtype_name(self.dtype)
        self.loader, self.validator, self.progress, self.signals = loader, validator, progress, signals
        self.checkpointer = Checkpointer(config, self.model, engine.optimizer, ema, signals, self.world)
        self.rollback = Rollback(config, loader.corpus, self.checkpointer, progress, self.world)
        self.state = TrainState(
            corpus=inputs.corpus.fingerprint,
            valid=validation_fingerprint(inputs.valid),
            tokenizers=inputs.tokenizers.fingerprint,
            teachers=inputs.teachers_fingerprint,
            usual_src_tokens=length_quantile(inputs.corpus.src_lengths),
        )
        is_wanted = config.training.report and self.world.is_main
        self.report = ReportWriter(self.run_folder, progress.say, is_wanted=is_wanted)
        self.stopwatch = Stopwatch(0.0)
        self._time_is_over = self._is_interrupted = False
        self._reads_late = self.device.type != "cpu"
        """Whether losses are read only when they are needed: reading waits until a GPU has done all that it was given.
        A divergence is then noticed later, but what is learned is the same."""
        self._unread: list[_Unread] = []
        self._is_rewound = False
        """Whether a rollback went back before updates that were made already."""
        self._saved: tuple[int, int, bool] | None = None
        """Step, validated step and whether time was over, of the newest checkpoint."""

    # --- the loop ---------------------------------------------------------------------------------------------

    def train(self, stop_at: int | None = None) -> str | None:
        """Train until a limit is reached, and return which; None if it only came to `stop_at`.

        Args:
            stop_at: update at which to stop although it is no limit: a run that goes on from there later is as if it
                had never stopped. It is validated and saved there, which changes nothing if it would have been anyway.

        Raises:
            TrainingError: If the loss diverges, memory runs out, or a worker is killed, before which the run is saved.
            StorageError: If a checkpoint cannot be written.
            Interrupted: If a signal arrives; the run is saved first.
        """
        self.stopwatch = Stopwatch(self.state.seconds)
        try:
            # A process that stopped in the middle of an update would leave the others waiting: see _check_stop.
            with self.signals.deferred(raise_after=False) if self.world.is_distributed else nullcontext():
                reason = self._loop(math.inf if stop_at is None else stop_at)
            if self.signals.pending is not None:  # it arrived during the last validation or save
                self.signals.raise_interrupted()
        except (Interrupted, WorkerLostError):
            self.progress.stop_live()
            with self.signals.deferred(raise_after=False):
                self.save()
            raise
        finally:
            self.engine.close()
        self.progress.stop_live()
        return reason

    def _loop(self, stop_at: float) -> str | None:
        self._check_stop()
        if self._end_reason() is None and self.state.step < stop_at:
            self._dry_run()
        self.engine.start()  # before there is a thread that fetches updates
        while True:
            self._is_rewound = False
            updates = self.loader.updates(self.state.epoch, self.state.batch)
            with closing(self.loader.prefetch(updates, self.state.slices)) as prefetched:
                reason = self._make_updates(prefetched, stop_at)
            if not self._is_rewound:
                return reason

    def _make_updates(self, prefetched: Iterator[Update], stop_at: float) -> str | None:
        """Make updates until a limit is reached, and return which; None at `stop_at`, or if training was rewound."""
        while True:
            self._validate_and_save(last=False)
            reason = self._end_reason()
            is_stop = reason is None and self.state.step >= stop_at
            update = None
            if not (self._is_rewound or reason or is_stop):
                with self._memory_errors():  # what failed in the thread that fetches is raised here
                    update = next(prefetched, None)
            if update is None:
                self._validate_and_save(last=not self._is_rewound)
                self._check_stop()  # a signal may have reached only some processes meanwhile
                if is_stop or self._is_rewound:
                    return None
                return reason or f"epoch {self.config.training.max_epochs} was the last"
            with self.signals.deferred():
                self.train_step(update)
                self._raise_if_interrupted()

    def _memory_errors(self) -> AbstractContextManager[None]:
        """Return a context manager that turns a lack of memory into a `TrainingError`."""
        return out_of_memory_errors(out_of_memory_hint(self.config.training))

    def _all_reduce(self, numbers: Sequence[float]) -> list[float]:
        """Sum numbers over all processes. The same exchange tells whether any of them must stop, so that all do."""
        limit = self.config.training.time_limit_minutes
        late = limit is not None and self.stopwatch.total_seconds() >= 60 * limit
        interrupted = self.signals.pending is not None and self.world.is_distributed
        *sums, num_late, num_interrupted = self.world.all_reduce([*numbers, float(late), float(interrupted)])
        self._time_is_over, self._is_interrupted = num_late > 0, num_interrupted > 0
        return sums

    def _raise_if_interrupted(self) -> None:
        """Stop all processes of a distributed run if one of them had received a signal at the last exchange.

        Raises:
            Interrupted: If so.
        """
        if self._is_interrupted:
            self.signals.raise_interrupted()

    def _check_stop(self) -> None:
        """Check the time limit and the signals of all processes, so that either all of them stop or none.

        Raises:
            Interrupted: If a process of a distributed run has received a signal.
        """
        self._all_reduce([])
        self._raise_if_interrupted()

    def _end_reason(self) -> str | None:
        """Return why training is over, or None."""
        training, patience = self.config.training, self.config.validation.patience
        if training.step_limit is not None and self.state.step >= training.step_limit:
            return f"step {self.state.step} is the last"
        if self._time_is_over:
            return f"the time limit of {training.time_limit_minutes:g} min is over"
        if patience and self.state.validations_without_best >= patience:
            return f"no better {self.config.validation.best} in {patience} validations"
        return None

    # --- one update -------------------------------------------------------------------------------------------

    def train_step(self, update: Update) -> None:
        """Make an update: fetch, forward and backward, clip, check, step, log."""
        with self.engine.threads():
            update = self._fetch(update)
            if not update.batches:  # all its pairs are skipped
                self.state.move_past(update.epoch, update.last_batch)
                return
            num_targets = self.loader.num_targets(update)
            with self._memory_errors(), peer_failure_errors():
                sums = self.engine.forward_backward(update, num_targets, self.state.step)
                norm = self.engine.clip_gradients()
            step = self.state.step + 1
            rate = learning_rate(step, self.config.training, self.config.model.d_model)
            numbers_3 = torch.cat([sums, norm.to(sums)[None]])
            self._unread.append(
                _Unread(step, replace(update, micro_batches={}), numbers_3, num_targets, rate)
            )
            if not self._reads_late and not self.read_updates():
                return
            # the first step allocates the state of the optimizer
            with self._memory_errors():
                self.engine.step(rate)
                if self.ema is not None:
                    self.ema.update(self.model, step)
            self.state.step = step
            self.state.move_past(update.epoch, update.last_batch)
            self.state.target_tokens += num_targets
            self.stopwatch.tokens += num_targets
            if not self._reads_late:
                self.engine.check_loss_scale()
            elif not (self._is_logged or len(self._unread) >= _MOST_UNREAD):
                self._all_reduce([])
            elif not self.read_updates():
                return
            self._log(update.num_epochs)

    def read_updates(self) -> bool:
        """Read the losses of the updates since the last time, and return whether training may go on from them.

        Returns:
            False after a rollback.

        Raises:
            TrainingError: If the loss diverged and there is no way to continue, or fp16 overflows at every loss scale.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return True
        rows = torch.stack([each.numbers_3 for each in unread]).tolist()
        sums = iter(self._all_reduce([number for loss, nll, _ in rows for number in (loss, nll)]))
        for each, (*_, norm) in zip(unread, rows, strict=True):
            loss, nll = next(sums) / each.num_targets, next(sums) / each.num_targets
            reason = observe_loss(
                self.state.watch,
                each.step,
                loss,
                norm,
                each.num_targets,
                handles_overflow=self.engine.scaler.is_enabled(),
                handles_spikes=self.config.training.on_divergence == "rollback",
            )
            if reason is not None:
                self._recover(reason, each)
                return False
            finite_norm = norm if math.isfinite(norm) else 0.0
            self.state.window.add(loss, nll, finite_norm, each.rate, each.num_targets)
        if self._reads_late:
            self.engine.check_loss_scale()
        return True

    def _fetch(self, update: Update) -> Update:
        """Return the update without skipped pairs, its micro-batches on the device."""
        with self._memory_errors(), self.engine.stage("data"):
            update = update.without(self.state.skipped_array)
            is_ready = update.micro_batches or not update.batches
            return update if is_ready else self.loader.fetch(update, self.state.slices)

    def _recover(self, reason: str, diverged: _Unread) -> None:
        """Roll back after an update that diverged; the updates made since then are made again.

        Raises:
            TrainingError: If the config says to stop instead, or there is no way to continue.
        """
        self._is_rewound = self._reads_late
        sentences = [self.loader.corpus.location(index) for index in diverged.update.pairs()]
        divergence = Divergence(diverged.step, reason, sentences)
        self.progress.record("diverged", divergence.step, divergence.as_dict())
        self.engine.discard_gradients()
        self._continue_from(self.rollback.recover(divergence, diverged.update, self.state))
        self.save()  # a run that is stopped now continues from here
        step = self.state.step
        self.progress.record("rollback", step, divergence.as_dict())
        self.progress.log_rollback(step, f"{divergence}; rolling back to step {step} and skipping them")

    @property
    def _is_logged(self) -> bool:
        """Return whether a line is logged at this step."""
        return self.state.step % self.config.training.log_every_steps == 0 or self.state.step == 1

    def _log(self, epochs: float) -> None:
        """Report the updates since the last report every `training.log_every_steps`."""
        state, training = self.state, self.config.training
        if not self._is_logged and not self.progress.is_due:
            return
        seconds = self.stopwatch.total_seconds()
        seconds_left = estimate_seconds_left(training, state.step, epochs, seconds)
        if not self._is_logged:
            self.progress.show_step(state.step, epochs, seconds, seconds_left)
            return
        numbers = state.window.means() | {
            "epoch": epochs,
            "target_tokens": state.target_tokens,
            "target_tokens_per_second": self.stopwatch.tokens_per_second(),
            "seconds": seconds,
            "memory": self.engine.peak_memory(),
        }
        self.progress.log_training(state.step, numbers, seconds_left)
        state.window = Window()

    # --- memory -----------------------------------------------------------------------------------------------

    def _dry_run(self) -> None:
        """Run the largest and the smallest batch, so that a lack of memory shows before the first update.

        Raises:
            TrainingError: If memory runs out.
        """
        before = self.state.slices
        self.fit_to_memory()
        if self.state.slices != before:
            if self.state.step:
                what = f"batches are split into {self.state.slices} micro-batches to fit in memory, {before} before"
                self.progress.say(f"{what}: dropout masks differ from here on")
            self.save()  # a run that is killed now is resumed with the same number
        batches = self.loader.epoch_batches(self.state.epoch)
        with self._memory_errors():
            for batch in (batches.largest(), batches.smallest()):
                try_batch(self.engine, self.loader, batch, self.state.slices)
        self.stopwatch.restart_interval()

    def fit_to_memory(self) -> None:
        """Find into how many micro-batches batches must be split, if the config says `batch_tokens: auto`.

        Raises:
            TrainingError: If not even a single pair fits.
        """
        if self.config.training.batch_tokens == "auto":
            self.state.slices = find_num_micro_batches(self.engine, self.loader, self.state)

    # --- validation and checkpoints ---------------------------------------------------------------------------

    def _validate_and_save(self, *, last: bool) -> None:
        """Validate and save if it is time to, or if this is the end."""
        step, training = self.state.step, self.config.training
        every = self.config.validation.every_steps
        is_validated = step > 0 and (last or step % every == 0) and self.state.validated_step != step
        is_saved = last or step % (training.save_every_steps or every) == 0
        if is_validated or is_saved:
            with self.signals.deferred():
                is_good = self.read_updates()
            if not is_good:
                return
        report = self._validate(self.validator) if is_validated and self.validator is not None else None
        with self.signals.deferred():
            if is_saved and self._saved != (step, self.state.validated_step, self._time_is_over):
                self.save()
            if last and self.validator is None:
                self.checkpointer.save_best(self._current_state())
        if report is not None:  # shown once everything it says is on disk
            self.progress.log_validation(step, *report)
            self.report.refresh()
            self.world.barrier()  # a page may take longer than the others would wait in the next update

    def _validate(self, validator: Validator) -> tuple[str, list[Sample]]:
        """Validate, and save the weights if they are the best so far. Returns the text to show and samples."""
        with self.checkpointer.ema_weights(), compile_errors():
            result = validator.validate(self.model, self.world)
        metric, state = self.config.validation.best, self.state
        score = result.selection_score(metric)
        best = None if state.best is None else SelectionScore(state.best, state.best_loss)
        improved = is_better(metric, score, best)
        numbers = result.as_dict() | {"seconds": self.stopwatch.total_seconds(), "best": improved}
        pairs = zip(validator.translated_pairs, result.hyps, strict=False)
        samples = [
            Sample(src, ref, hyp) for (src, ref), hyp in islice(pairs, self.config.validation.num_samples)
        ]
        with self.signals.deferred():
            state.add_validation(*score, improved=improved)
            self.progress.record("valid", state.step, numbers)
            self.progress.record_samples(state.step, samples)
            if improved:
                self.checkpointer.save_best(self._current_state())
        self.stopwatch.restart_interval()
        line = f"validation at step {state.step}: {result.line()}" + ("  (best so far)" if improved else "")
        return "\n".join([line, *result.set_lines()]), samples

    def save(self) -> None:
        """Write a checkpoint from which training can continue, and delete the oldest ones."""
        self.read_updates()
        self.checkpointer.save(self._current_state())
        self._saved = self.state.step, self.state.validated_step, self._time_is_over

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Continue from a checkpoint.

        Raises:
            StorageError: If it is of another model or of an incompatible version.
        """
        self._continue_from(self.checkpointer.restore(checkpoint, where, self.state))

    def _continue_from(self, state: TrainState) -> None:
        """Take over the state of a checkpoint whose weights have been restored."""
        self.state = state
        limit = self.config.training.time_limit_minutes
        time_was_over = limit is not None and state.seconds >= 60 * limit
        self._saved = state.step, state.validated_step, time_was_over
        self.engine.reset_scaler(state.scaler)

    def _current_state(self) -> TrainState:
        """Return the state as of now, to be saved."""
        self.state.seconds = self.stopwatch.total_seconds()
        if self.engine.scaler.is_enabled():
            self.state.scaler = self.engine.scaler.state_dict()
        return self.state
