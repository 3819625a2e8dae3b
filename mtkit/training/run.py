"""A whole run, from a config to a scored translator: prepare, train, translate the test sets, say what came out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mtkit.checkpoint import Checkpoint, load_checkpoint, valid_checkpoints
from mtkit.config import Config, SourceConfig
from mtkit.configfile import diff_configs, dump_config, parse_config
from mtkit.data.batching import epoch_batches, padding_share
from mtkit.data.corpus import Corpus, encode_corpus
from mtkit.data.sources import Source, Split, open_sources, read_sides
from mtkit.data.tokenizer import Tokenizers, load_tokenizers, make_tokenizers
from mtkit.decoding.translator import Translator
from mtkit.device import keep_freed_memory
from mtkit.errors import ConfigError, StorageError
from mtkit.evaluation import metrics
from mtkit.evaluation.metrics import Score
from mtkit.files import FolderLock, storage_errors, write_text
from mtkit.training.progress import Progress, duration
from mtkit.training.signals import Signals
from mtkit.training.trainer import Trainer
from mtkit.training.validation import TextCorpus, Validator
from mtkit.yamlfile import parse_value

TEST_METRICS = ("bleu", "chrf")
OUTPUTS = (
    "checkpoints",
    "best",
    "test",
    "tensorboard",
    "metrics.jsonl",
    "results.json",
    "README.md",
    "config.yaml",
)

HARMLESS = (
    "run", "data.root", "data.cache", "data.test", "training.max_steps", "training.max_epochs",
    "training.time_limit_minutes", "training.device", "training.num_threads", "training.log_every_steps",
    "training.save_every_steps", "training.keep_last", "training.tensorboard", "validation.patience",
    "validation.num_samples", "decoding",
)  # fmt: skip
"""Keys that may change when a run goes on: what is learned stays the same (but a longer cosine is another curve)."""


@dataclass(frozen=True)
class TestResult:
    """A test set, translated and scored."""

    name: str
    hyps: list[str]
    scores: list[Score]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    reason: str
    """Why training ended."""
    step: int
    best: float | None
    """Best validation number."""
    best_step: int | None
    tests: list[TestResult] = field(default_factory=list)


@dataclass(frozen=True)
class Inputs:
    """All that is read before the first update."""

    tokenizers: Tokenizers
    corpus: Corpus
    valid: TextCorpus | None
    tests: list[Source]


def train(config: Config, *, fresh: bool = False, console: Console | None = None) -> TrainResult:
    """Train, or go on from the newest checkpoint of the run folder, and score the test sets with the best weights.

    Args:
        config: the run.
        fresh: delete what an earlier run left in the folder.
        console: where progress is shown; by default nowhere.

    Raises:
        ConfigError: the config asks for what is not there, or it differs from that of the checkpoint.
        DataError: a corpus is missing, malformed or empty.
        TrainingError: not-a-number, out of memory.
        StorageError: the disk failed, or another run uses the folder.
        Interrupted: SIGINT or SIGTERM, after saving.
    """
    run = Path(config.run)
    signals = Signals()
    console = console or Console(quiet=True)
    with signals.handled(), FolderLock(run), Progress(run, console, config.training.tensorboard) as progress:
        if fresh:
            remove_outputs(run)
        keep_freed_memory()
        if config.training.num_threads is not None:
            torch.set_num_threads(config.training.num_threads)
        metrics.check_metrics((*config.validation.metrics, *TEST_METRICS), tgt=config.data.tgt)
        checkpoint = resumable(config, progress.say)
        inputs = prepare(config, resumed=checkpoint is not None, say=progress.say)
        validator = None if inputs.valid is None else Validator(inputs.valid, inputs.tokenizers, config)
        trainer = Trainer(config, inputs.corpus, inputs.tokenizers, validator, progress, signals)
        describe(trainer, progress.say)
        begin(trainer, checkpoint, progress.say)
        reason = trainer.train()
        state = trainer.state
        progress.say(f"training ended: {reason}; {duration(trainer.stopwatch.seconds())} in all")
        del trainer, checkpoint
        tests = score_tests(config, inputs.tests, progress)
        result = TrainResult(run, reason, state.step, state.best, state.best_step, tests)
        write_text(
            run / "results.json", json.dumps(results_as_dict(result), indent=2, ensure_ascii=False) + "\n"
        )
        write_text(run / "README.md", model_card(config, result))
        return result


def remove_outputs(run: Path) -> None:
    """Delete what a run writes, and nothing else."""
    with storage_errors(run):
        for path in [run / name for name in OUTPUTS] + list(run.glob("tokenizer*.model")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# --- going on -----------------------------------------------------------------------------------------------------


def resumable(config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint of the run folder, if it is of the same run.

    Raises:
        ConfigError: the config has changed in a way that changes what is learned.
        StorageError: there are checkpoints, but none is valid.
    """
    faults = []
    for folder, fault in valid_checkpoints(Path(config.run)):
        if fault is not None:
            say(f"passing over a damaged checkpoint: {fault}")
            faults.append(fault)
            continue
        checkpoint = load_checkpoint(folder, with_optimizer=True)
        refuse_changes(config, checkpoint)
        return checkpoint
    if faults:
        raise StorageError(
            "no checkpoint of this run is valid",
            where=config.run,
            hint="start anew with --fresh, or restore one",
        )
    return None


def refuse_changes(config: Config, checkpoint: Checkpoint) -> None:
    """Compare with the checkpoint's config. Raises: ConfigError: with the keys that changed."""
    document = parse_value_of_yaml(checkpoint.config)
    changes = [line for line in diff_configs(parse_config(document), config) if not is_harmless(line)]
    if changes:
        raise ConfigError(
            "the config has changed since the last checkpoint:\n  " + "\n  ".join(changes) + "\n",
            where=config.run,
            hint="undo it, choose another run folder, or start anew with --fresh",
        )


def parse_value_of_yaml(text: str) -> dict[str, object]:
    """The mapping of a YAML text that mtkit wrote."""
    value = parse_value(text)
    assert isinstance(value, dict)
    return value


def is_harmless(change: str) -> bool:
    """Whether a line of `diff_configs` is about a key that may change."""
    key = change.partition(":")[0]
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS)


def begin(trainer: Trainer, checkpoint: Checkpoint | None, say: Callable[[str], None]) -> None:
    """Put the checkpoint's state into the trainer, or save step 0, which proves the disk before time is spent."""
    if checkpoint is None:
        write_text(trainer.run_folder / "config.yaml", dump_config(trainer.config))
        trainer.save()
        return
    if checkpoint.state.get("corpus") != trainer.corpus.fingerprint:
        raise ConfigError(
            "the training data has changed since the last checkpoint",
            where="data.train",
            hint="restore the files, choose another run folder, or start anew with --fresh",
        )
    trainer.resume(checkpoint, str(trainer.run_folder))
    drop_later_lines(trainer.run_folder / "metrics.jsonl", trainer.state.step)
    say(f"going on from step {trainer.state.step}")


def drop_later_lines(path: Path, step: int) -> None:
    """Forget what was logged after the step that the run goes on from: it will be logged again."""
    if not path.exists():
        return
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line and is_up_to(line, step)]
    write_text(path, "".join(line + "\n" for line in kept))


def is_up_to(line: str, step: int) -> bool:
    """Whether a line of metrics.jsonl is whole and of no later step."""
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


# --- reading ------------------------------------------------------------------------------------------------------


def prepare(config: Config, *, resumed: bool, say: Callable[[str], None]) -> Inputs:
    """Open all sources, make or load the tokenizers, encode the training pairs."""
    sources, valids, tests = (open_split(config, split) for split in ("train", "valid", "test"))
    run = Path(config.run)
    if resumed:
        tokenizers = load_tokenizers(run)
    else:
        pairs = (pair for source in sources for _, pair in source.read())
        tokenizers = make_tokenizers(config.tokenizer, pairs, config.seed)
        tokenizers.save(run)
    corpus = encode_corpus(sources, tokenizers, config.data, lambda n: say(f"encoded {n:,} pairs"))
    valid = None
    if valids:
        sides = [read_sides(source) for source in valids]
        srcs, tgts = ([line for side in sides for line in side[i]] for i in (0, 1))
        valid = TextCorpus.of(srcs, tgts, tokenizers)
    return Inputs(tokenizers, corpus, valid, tests)


def open_split(config: Config, split: Split) -> list[Source]:
    """The sources of a split."""
    configs = {"train": config.data.train, "valid": config.data.valid, "test": config.data.test}[split]
    return open_sources(configs, config.data, split)


def describe(trainer: Trainer, say: Callable[[str], None]) -> None:
    """What will be trained, on what, in four lines."""
    corpus, training, tokenizers = trainer.corpus, trainer.config.training, trainer.tokenizers
    batches = epoch_batches(
        corpus.src_lengths, corpus.tgt_lengths, training.batch_tokens, trainer.config.seed, 0
    )
    padding = padding_share(batches, corpus.src_lengths, corpus.tgt_lengths)
    sizes = " and ".join(f"{t.num_pieces:,}" for t in dict.fromkeys([tokenizers.src, tokenizers.tgt]))
    say(f"data       {corpus.counts.summary()}")
    say(f"tokenizer  {sizes} pieces")
    say(f"batches    {len(batches):,} an epoch, {100 * padding:.1f} % padding")
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[trainer.dtype]
    say(f"model      {trainer.model.num_parameters():,} parameters, {precision} on {trainer.device}")


# --- test sets ----------------------------------------------------------------------------------------------------


def score_tests(config: Config, tests: list[Source], progress: Progress) -> list[TestResult]:
    """Translate the test sets with the best weights, write the translations, score them."""
    if not tests:
        return []
    run = Path(config.run)
    translator = Translator.load(
        run, decoding=config.decoding, device=config.training.device, precision="fp32"
    )
    results = []
    with storage_errors(run):
        (run / "test").mkdir(exist_ok=True)
    for source in tests:
        srcs, tgts = read_sides(source)
        hyps = [translation.text for translation in translator.translate(srcs)]
        write_text(
            run / "test" / f"{source.name.replace('/', '_')}.hyps.txt", "".join(hyp + "\n" for hyp in hyps)
        )
        scores = metrics.score(hyps, [tgts], TEST_METRICS, tgt=config.data.tgt)
        results.append(TestResult(source.name, hyps, scores))
        progress.say(f"test {source.name}, {len(srcs):,} sentences, beam {config.decoding.beam_size}:")
        for result in scores:
            progress.say(f"    {result.format()}")
    return results


def results_as_dict(result: TrainResult) -> dict[str, Any]:
    """For results.json."""
    tests = [
        {"name": test.name, "scores": [score.as_dict() for score in test.scores]} for test in result.tests
    ]
    return {
        "ended": result.reason,
        "step": result.step,
        "best": result.best,
        "best_step": result.best_step,
        "tests": tests,
    }


def model_card(config: Config, result: TrainResult) -> str:
    """A README for the run folder: what the model is, how good it is, how to use it."""
    lines = [
        f"# {config.data.src} → {config.data.tgt} translation model",
        "",
        f"Trained with mtkit for {result.step:,} updates; {result.reason}.",
        "",
        "| test set | score | signature |",
        "|---|---|---|",
    ]
    for test in result.tests:
        lines += [f"| {test.name} | {s.name} {s.value:.2f} | `{s.signature}` |" for s in test.scores]
    lines += [
        "",
        "Use: `mtkit translate THIS_FOLDER < input.txt`. Everything the model needs is in this folder.",
        "The config it was trained with is `config.yaml`.",
        "",
        "Trained on: " + ", ".join(map(describe_source, config.data.train)),
        "",
    ]
    return "\n".join(lines)


def describe_source(source: SourceConfig) -> str:
    """A data source in a few words."""
    return " ".join(f"{key} {value}" for key, value in source.model_dump(exclude_none=True).items())
