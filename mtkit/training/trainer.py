"""The training loop: updates, validations, checkpoints, and how it ends.

All that changes is a model, an optimizer, an average of weights and a `TrainState`. The order of the batches is a
function of (seed, epoch) and dropout one of (seed, step, batch), so a run that goes on from a checkpoint gives the
same numbers, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mtkit.checkpoint import Checkpoint, remove_old_checkpoints, save_checkpoint, step_folder
from mtkit.config import Config
from mtkit.configfile import dump_config
from mtkit.data.batching import Batch, Indices, epoch_batches, make_batch
from mtkit.data.corpus import Corpus
from mtkit.data.tokenizer import Tokenizers
from mtkit.decoding.loading import copy_weights, make_model
from mtkit.device import choose_device, choose_dtype, out_of_memory_named
from mtkit.errors import StorageError, TrainingError
from mtkit.training.loss import LossSums, hidden_at_targets, loss_sums
from mtkit.training.optimizer import (
    MovingAverage,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from mtkit.training.progress import Progress, Stopwatch
from mtkit.training.schedule import learning_rate
from mtkit.training.signals import Interrupted, Signals
from mtkit.training.validation import ValidationResult, Validator, is_better, special_ids

SMALLEST_LOSS_SCALE = 2.0**-14


@dataclass
class Window:
    """Sums over the updates since the last line of progress."""

    loss: float = 0.0
    nll: float = 0.0
    norm: float = 0.0
    rate: float = 0.0
    targets: int = 0
    updates: int = 0

    def add(self, loss: float, nll: float, norm: float, rate: float, num_targets: int) -> None:
        """The loss and nll of an update are means over its targets."""
        self.loss += loss * num_targets
        self.nll += nll * num_targets
        self.norm += norm
        self.rate = rate
        self.targets += num_targets
        self.updates += 1

    def means(self) -> dict[str, float]:
        """Losses for each target, gradient norm for each update, the latest rate."""
        return {
            "loss": self.loss / self.targets,
            "nll": self.nll / self.targets,
            "grad_norm": self.norm / self.updates,
            "lr": self.rate,
        }


@dataclass
class TrainState:
    """Where a run stands, beside its weights."""

    step: int = 0
    """Updates made."""
    epoch: int = 0
    """Epoch of the next batch."""
    batch: int = 0
    """Number of the next batch in that epoch."""
    target_tokens: int = 0
    """Real target pieces trained on."""
    seconds: float = 0.0
    """Training time, earlier runs of the folder included."""
    validated_step: int = 0
    best: float | None = None
    """Best validation number so far, of the kind that the config names."""
    best_step: int | None = None
    validations_without_best: int = 0
    scaler: dict[str, Any] | None = None
    """Of the losses, fp16 only."""
    corpus: str = ""
    """Fingerprint of the training pairs."""
    tokenizers: str = ""
    """Fingerprint of the tokenizers: `load_model` takes no others."""
    window: Window = field(default_factory=Window)
    """What the next line of progress will tell of the updates made so far."""


class Trainer:
    """Trains one model.

    Args:
        config: the whole run.
        corpus: the encoded training pairs.
        tokenizers: of both sides.
        validator: validates, or None without validation pairs.
        progress: where to show and record what happens.
        signals: Ctrl-C and SIGTERM.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        tokenizers: Tokenizers,
        validator: Validator | None,
        progress: Progress,
        signals: Signals,
    ) -> None:
        self.config, self.corpus, self.tokenizers = config, corpus, tokenizers
        self.validator, self.progress, self.signals = validator, progress, signals
        self.run_folder = Path(config.run)
        self.device = choose_device(config.training.device)
        self.dtype = choose_dtype(config.training.precision, self.device)
        torch.manual_seed(config.seed)
        self.model = make_model(config.model, tokenizers).to(self.device)
        self.model.compute_dtype = self.dtype
        self.optimizer = make_optimizer(self.model, config.training)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        decay = config.training.ema_decay
        self.average = None if decay is None else MovingAverage(self.model, decay)
        self.state = TrainState(corpus=corpus.fingerprint, tokenizers=tokenizers.fingerprint)
        self.special = special_ids(tokenizers)
        self.stopwatch = Stopwatch(0.0)
        self.saved: tuple[int, int] | None = None  # step and validated step of the newest checkpoint
        self.stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
        if config.training.compile:
            self.model.compile(dynamic=True)

    def measure(self, stage: Callable[[str], AbstractContextManager[None]]) -> None:
        """Enter `stage(name)` around each stage of an update: data, forward, loss, backward, optimizer."""
        self.stage = stage

    def epoch_order(self, epoch: int) -> list[Indices]:
        """The batches of an epoch."""
        lengths = self.corpus.src_lengths, self.corpus.tgt_lengths
        return epoch_batches(*lengths, self.config.training.batch_tokens, self.config.seed, epoch)

    # --- the loop ---------------------------------------------------------------------------------------------

    def train(self) -> str:
        """Train to the end. Returns why it ended. Raises: TrainingError, StorageError, Interrupted (after saving)."""
        self.stopwatch = Stopwatch(self.state.seconds)
        try:
            reason = self._loop()
        except Interrupted:
            self.progress.stop_live()
            with self.signals.protected_to_the_end():
                self.save()
            raise
        self.progress.stop_live()
        return reason

    def _loop(self) -> str:
        batches = self.batches()
        while True:
            self.validate_and_save(last=False)
            reason = self.ended()
            update = [] if reason else list(islice(batches, self.config.training.accumulate))
            if not update:
                self.validate_and_save(last=True)
                return reason or f"epoch {self.config.training.max_epochs} was the last"
            with self.signals.protected():
                self.train_step(update)
                self._log()

    def batches(self) -> Iterator[tuple[int, int, Indices]]:
        """(epoch, number, pairs) of every batch from where the run stands to the last epoch."""
        training, epoch, first = self.config.training, self.state.epoch, self.state.batch
        while training.max_epochs is None or epoch < training.max_epochs:
            order = self.epoch_order(epoch)
            for number in range(first, len(order)):
                yield epoch, number, order[number]
            epoch, first = epoch + 1, 0

    def ended(self) -> str | None:
        """Why training is at its end, if it is."""
        training, patience = self.config.training, self.config.validation.patience
        if training.step_limit is not None and self.state.step >= training.step_limit:
            return f"step {self.state.step} is the last"
        if training.time_limit_minutes and self.stopwatch.seconds() >= 60 * training.time_limit_minutes:
            return f"{training.time_limit_minutes:g} minutes are over"
        if patience and self.state.validations_without_best >= patience:
            return f"no better {self.config.validation.best} in {patience} validations"
        return None

    # --- one update -------------------------------------------------------------------------------------------

    def train_step(self, update: list[tuple[int, int, Indices]]) -> None:
        """One update: the gradient of the loss sum over the token count of all its batches, clipped, applied."""
        self.model.train()
        with self.stage("data"):
            batches = [make_batch(self.corpus, indices, self.special) for _, _, indices in update]
        num_targets = sum(batch.num_targets for batch in batches)
        batch_tokens = self.config.training.batch_tokens
        with out_of_memory_named(
            f"lower training.batch_tokens (now {batch_tokens:,}), raise training.accumulate"
        ):
            sums = [self._backward(batch, number, num_targets) for number, batch in enumerate(batches)]
            with self.stage("optimizer"):
                norm = self._clip()
        loss = sum(s.loss.item() for s in sums) / num_targets
        nll = sum(s.nll.item() for s in sums) / num_targets
        self._refuse_non_finite(loss, 0.0 if self.scaler.is_enabled() else norm, batches)
        rate = learning_rate(self.state.step + 1, self.config.training, self.config.model.d_model)
        set_learning_rate(self.optimizer, rate)
        with self.stage("optimizer"):
            self.scaler.step(self.optimizer)  # fp16: passed over if a gradient overflowed
            self.scaler.update()
        self._refuse_endless_overflow()
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(update, num_targets)
        if self.average is not None:
            self.average.update(self.model, self.state.step)
        self.state.window.add(loss, nll, norm, rate, num_targets)

    def _backward(self, batch: Batch, number: int, num_targets: int) -> LossSums:
        torch.manual_seed(dropout_seed(self.config.seed, self.state.step, number))
        with self.stage("forward"):
            hidden_MD, targets_M = hidden_at_targets(self.model, batch)
        with self.stage("loss"):
            smoothing = self.config.training.label_smoothing
            sums = loss_sums(hidden_MD, self.model.output.weight, targets_M, smoothing)
        with self.stage("backward"):
            self.scaler.scale(sums.loss / num_targets).backward()
        return LossSums(sums.loss.detach(), sums.nll)

    def _clip(self) -> float:
        """Scale large gradients down; returns the norm before."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.training.clip_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))

    def _refuse_non_finite(self, loss: float, norm: float, batches: list[Batch]) -> None:
        """Raise before the weights are touched if the loss or the gradient is not a number."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "the loss" if not math.isfinite(loss) else "the gradient"
        places = [self.corpus.place(int(i)) for batch in batches for i in batch.indices]
        shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
        raise TrainingError(
            f"{what} of step {self.state.step + 1} is not finite; its sentences: {shown}",
            hint="lower training.learning_rate, lengthen warmup_steps, or look at these lines",
        )

    def _refuse_endless_overflow(self) -> None:
        """fp16: each overflow halves the loss scale; when nothing is left of it, none of the updates was made."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_LOSS_SCALE:
            what = "gradients overflow fp16 whatever the loss scale"
            raise TrainingError(what, hint="set training.precision to bf16 or fp32, or lower learning_rate")

    def _advance(self, update: list[tuple[int, int, Indices]], num_targets: int) -> None:
        epoch, number, _ = update[-1]
        self.state.step += 1
        self.state.epoch, self.state.batch = epoch, number + 1
        self.state.target_tokens += num_targets
        self.stopwatch.tokens += num_targets

    # --- what is shown ----------------------------------------------------------------------------------------

    def _log(self) -> None:
        training, step = self.config.training, self.state.step
        if step % training.log_every_steps and step != 1:
            return
        numbers = self.state.window.means() | {
            "epoch": self.epochs_done(),
            "target_tokens": self.state.target_tokens,
            "target_tokens_per_second": self.stopwatch.tokens_per_second(),
            "seconds": self.stopwatch.seconds(),
        }
        self.progress.training(step, numbers, self.seconds_left())
        self.state.window = Window()

    def epochs_done(self) -> float:
        """Passes over the training pairs, with the share of the present one by tokens."""
        return self.state.target_tokens / (int(self.corpus.tgt_lengths.sum()) + len(self.corpus))

    def seconds_left(self) -> float | None:
        """Until a limit that can be foreseen."""
        training, elapsed, left = self.config.training, self.stopwatch.seconds(), []
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
        if validates and self.state.validated_step != step:
            self._validate()
        saves = step % (training.save_every_steps or every) == 0 or last
        if saves and (self.saved != (step, self.state.validated_step) or self._time_ran_out_since_saved()):
            with self.signals.protected():
                self.save()
        if last and self.validator is None:
            with self.signals.protected():
                self._save_best()

    def _time_ran_out_since_saved(self) -> bool:
        """Whether the newest checkpoint does not know yet that the time limit is reached, and would train on."""
        limit = self.config.training.time_limit_minutes
        return limit is not None and self.state.seconds < 60 * limit <= self.stopwatch.seconds()

    def _validate(self) -> None:
        assert self.validator is not None
        with self.averaged_weights():
            result = self.validator.validate(self.model)
            name = self.config.validation.best
            improved = is_better(name, result.number(name), self.state.best)
            with self.signals.protected():
                self._note(result, improved)
                if improved:
                    self._save_best(averaged=True)
        self.stopwatch.skip()

    def _note(self, result: ValidationResult, improved: bool) -> None:
        state = self.state
        state.validated_step = state.step
        state.validations_without_best = 0 if improved else state.validations_without_best + 1
        if improved:
            state.best, state.best_step = result.number(self.config.validation.best), state.step
        assert self.validator is not None
        samples = list(zip(self.validator.corpus.srcs, self.validator.corpus.tgts, result.hyps, strict=False))
        marker = "  (best so far)" if improved else ""
        numbers = result.as_dict() | {"seconds": self.stopwatch.seconds(), "best": improved}
        line = f"validation at step {state.step}: {result.line()}{marker}"
        self.progress.validation(state.step, numbers, line, samples[: self.config.validation.num_samples])

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """With a moving average, the model holds it inside the block; never broken between the two exchanges."""
        if self.average is None:
            yield
            return
        swapped = False
        try:
            with self.signals.protected():
                self.average.swap(self.model)
                swapped = True
            yield
        finally:
            if swapped:
                with self.signals.protected_to_the_end():
                    self.average.swap(self.model)

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name, shared ones once."""
        return dict(self.model.named_parameters())

    def _save_best(self, *, averaged: bool = False) -> None:
        """Write best/: the weights to translate with, no optimizer."""
        held = self.weights() if averaged or self.average is None else self.average.weights
        checkpoint = Checkpoint(held, dump_config(self.config), self._state_dict())
        save_checkpoint(self.run_folder / "best", checkpoint)

    def save(self) -> None:
        """Write a checkpoint from which training can go on, and delete those that are too old."""
        tensors = optimizer_tensors(self.model, self.optimizer)
        weights = self.weights()
        if self.average is not None:  # the averaged weights are the model; the raw ones go with the optimizer
            tensors |= {f"weight/{name}": value for name, value in weights.items()}
            weights = self.average.weights
        checkpoint = Checkpoint(weights, dump_config(self.config), self._state_dict(), tensors)
        save_checkpoint(step_folder(self.run_folder, self.state.step), checkpoint)
        self.saved = self.state.step, self.state.validated_step
        remove_old_checkpoints(self.run_folder, self.state.step, self.config.training.keep_last)

    def _state_dict(self) -> dict[str, Any]:
        self.state.seconds = self.stopwatch.seconds()
        if self.scaler.is_enabled():
            self.state.scaler = self.scaler.state_dict()
        return asdict(self.state)

    def resume(self, checkpoint: Checkpoint, where: str) -> None:
        """Go on from a checkpoint. Raises: StorageError: it is not of this model."""
        if checkpoint.state.keys() != asdict(self.state).keys():
            raise StorageError(
                "the checkpoint's state is of another version of mtkit",
                where=where,
                hint="start anew with --fresh",
            )
        self.state = TrainState(**checkpoint.state | {"window": Window(**checkpoint.state["window"])})
        self.saved = self.state.step, self.state.validated_step
        tensors = dict(checkpoint.optimizer)
        if self.average is not None:
            raw = {
                key.removeprefix("weight/"): tensors.pop(key)
                for key in list(tensors)
                if key.startswith("weight/")
            }
            copy_weights(self.model, checkpoint.weights, where)
            self.average = MovingAverage(self.model, self.average.decay)
            copy_weights(self.model, raw, where)
        else:
            copy_weights(self.model, checkpoint.weights, where)
        load_optimizer_tensors(self.model, self.optimizer, tensors)
        if self.state.scaler is not None:
            self.scaler.load_state_dict(self.state.scaler)


def dropout_seed(seed: int, step: int, number: int, rank: int = 0) -> int:
    """The seed of a batch's dropout masks: a hash, so that neighbouring numbers give unrelated masks."""
    digest = hashlib.sha256(f"{seed} {step} {number} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
