"""Building a Trainer: model, loss, optimizer, EMA and data loading from a config and its inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mtkit.config.sections import Config
from mtkit.data.corpus import Corpus
from mtkit.data.directions import BothDirections
from mtkit.data.tokenizer import Tokenizers
from mtkit.data.variation import Variation, make_variation
from mtkit.device import choose_device, choose_dtype, out_of_memory_errors
from mtkit.evaluation import metrics
from mtkit.formatting import format_count
from mtkit.training.distributed import SINGLE_PROCESS, World, peer_failure_errors
from mtkit.training.engine import Engine
from mtkit.training.freezing import make_training_model
from mtkit.training.inputs import Inputs
from mtkit.training.loss import Consistency
from mtkit.training.minimum_risk import MinimumRisk
from mtkit.training.optimizer import ExponentialMovingAverage, make_optimizer
from mtkit.training.parallel import Objective, Stage, apply_ddp, apply_fsdp, untimed
from mtkit.training.progress import Progress
from mtkit.training.results import TEST_METRICS
from mtkit.training.schedule import low_peak_warning
from mtkit.training.signals import Signals
from mtkit.training.trainer import Trainer
from mtkit.training.updates import UpdateLoader, make_order
from mtkit.training.validation import Validator, special_ids
from mtkit.training.workers import choose_num_workers, with_workers


@out_of_memory_errors("choose a smaller model, or free memory on the device")
def build_trainer(
    config: Config,
    inputs: Inputs,
    progress: Progress,
    signals: Signals | None = None,
    world: World = SINGLE_PROCESS,
    stage: Stage = untimed,
) -> Trainer:
    """Return a trainer with initial weights, at step 0.

    Args:
        config: config of the run; the trainer's has the number of workers in place of `auto`.
        inputs: tokenizers, and encoded training and validation pairs.
        progress: shows and records what happens.
        signals: handlers of signals; by default none are installed.
        world: the processes that train the model, all of which must call this.
        stage: times the stages of an update.

    Raises:
        ConfigError: If there cannot be as many workers as the config wants.
        TrainingError: If memory runs out.
    """
    training, signals = config.training, signals or Signals()
    device = choose_device(training.device, local_rank=world.local_rank)
    dtype = choose_dtype(training.precision, device)
    is_sharded = training.parallel == "fsdp" and world.is_distributed

    torch.manual_seed(config.seed)
    with torch.device("meta" if is_sharded else "cpu"):
        model = make_training_model(config, inputs.tokenizers, dtype)
    num_workers = choose_num_workers(training, model)
    config = with_workers(config, num_workers)
    training = config.training
    if not is_sharded:
        model = model.to(device)
    model.recompute, model.compiles = training.activation_checkpointing, training.compile
    model.uses_float8 = training.precision == "fp8"

    if inputs.teachers is not None:
        inputs.teachers.to(device, dtype)
    minimum_risk = None
    if training.minimum_risk is not None:
        minimum_risk = MinimumRisk(training.minimum_risk, config, inputs.tokenizers.tgt)
    consistency = None
    if training.simcut:
        consistency = Consistency.simcut(training.simcut, training.cutoff)
    elif training.r_drop:
        consistency = Consistency.r_drop(training.r_drop)
    objective = Objective(
        model,
        training.label_smoothing,
        stage,
        consistency,
        inputs.teachers,
        training.guided_alignment,
        minimum_risk,
        inputs.tokenizers.src.pad if training.pack else None,
    )
    with peer_failure_errors():
        if is_sharded:
            initial = make_training_model(config, inputs.tokenizers, dtype) if world.is_main else None
            world.barrier()  # a large model takes the main process longer than a collective may
            apply_fsdp(objective, initial, world, device, dtype)
            wrapped: torch.nn.Module = objective
        else:
            wrapped = apply_ddp(objective, world)

    engine = Engine(
        model,
        wrapped,
        make_optimizer(model, training, dtype, num_workers),
        device,
        seed=config.seed,
        clip_norm=training.clip_norm,
        world=world,
        stage=stage,
        num_workers=num_workers,
    )
    return Trainer(
        config,
        inputs,
        engine=engine,
        ema=None if training.ema_decay is None else ExponentialMovingAverage(model, training.ema_decay),
        loader=_make_loader(config, inputs, world, device, num_workers),
        validator=None if inputs.valid is None else Validator(inputs.valid, inputs.tokenizers, config),
        progress=progress,
        signals=signals,
    )


def make_pairs(
    config: Config, tokenizers: Tokenizers, corpus: Corpus
) -> tuple[Corpus | BothDirections, Variation | None]:
    """Return the pairs in one direction or both, and what differs in each pass, if anything does.

    Args:
        config: config of the run.
        tokenizers: its tokenizers.
        corpus: the encoded training pairs.
    """
    data = config.data
    pairs: Corpus | BothDirections = corpus
    if data.reverse:
        tags = {number: source.tag for number, source in enumerate(data.train) if source.tag is not None}
        lengths = [len(ids) for ids in tokenizers.src.encode(list(tags.values()))] if tags else []
        pairs = BothDirections(corpus, dict(zip(tags, lengths, strict=True)))
    variation = make_variation(
        config.tokenizer,
        config.augment,
        pairs,
        tokenizers,
        max_length=data.max_length,
        tags=data.train_tags,
        seed=config.seed,
    )
    return pairs, variation


def _make_loader(
    config: Config, inputs: Inputs, world: World, device: torch.device, num_workers: int
) -> UpdateLoader:
    """Return what loads the updates: in one direction or both, the same in every pass or not."""
    pairs, variation = make_pairs(config, inputs.tokenizers, inputs.corpus)
    data, training, seed = config.data, config.training, config.seed
    order = make_order(pairs, training, seed, data.train_weights, variation, data.reverse_epochs)
    special = special_ids(inputs.tokenizers, config.model.source_eos)
    return UpdateLoader(pairs, order, special, training, seed, world, device, variation, num_workers)


def describe(trainer: Trainer, say: Callable[[str, str], None]) -> None:
    """Say what will be trained, and on what.

    Args:
        trainer: trainer of the run.
        say: shows a fact and its name.
    """
    config, inputs, order = trainer.config, trainer.inputs, trainer.loader.order
    src, tgt = inputs.tokenizers.src, inputs.tokenizers.tgt
    say("data", inputs.corpus.counts.summary())
    sizes = " and ".join(f"{tokenizer.num_pieces:,}" for tokenizer in dict.fromkeys([src, tgt]))
    wanted = config.tokenizer.vocab_size
    is_small = config.trains_tokenizer and max(src.num_pieces, tgt.num_pieces) < wanted
    reason = f": the corpus is too small for {wanted:,}" if is_small else ""
    say("tokenizer", f"{sizes} pieces{reason}")
    say("batches", f"{len(order):,} an epoch, {100 * order.padding_share:.1f} % padding")
    if config.data.reverse:
        epochs = config.data.reverse_epochs
        when = "" if epochs is None else f" in the first {format_count(epochs, 'epoch')}, then one"
        say("pairs", f"in both directions{when}")
    if trainer.loader.variation is not None and trainer.loader.variation.growth != [1.0, 1.0]:
        src_growth, tgt_growth = trainer.loader.variation.growth
        growth = f"{src_growth:.2f}x source and {tgt_growth:.2f}x target tokens"
        say("sampling", f"{growth}, compared with the usual segmentation")
    if trainer.validator is not None and trainer.validator.num_left_out:
        left_out = format_count(trainer.validator.num_left_out, "pair")
        say("valid", f"left out of the loss: {left_out} longer than data.max_length")
    warning = metrics.bleu_warning(TEST_METRICS, config.data.tgt, tokenize=config.validation.bleu_tokenizer)
    if warning is not None:
        say("metrics", warning)
    warning = low_peak_warning(config.training, config.model.d_model)
    if warning is not None:
        say("warning", warning)
    processes = f", {trainer.world.size} processes" if trainer.world.is_distributed else ""
    if trainer.engine.num_workers > 1:
        processes = f", {trainer.engine.num_workers} workers"
    where = f"{trainer.precision} on {trainer.device}{processes}"
    model = trainer.model
    num_trained = model.num_trained_parameters()
    trained = "" if num_trained == model.num_parameters() else f" ({num_trained:,} of them trained)"
    say("model", f"{model.num_parameters():,} parameters{trained}, {where}")
