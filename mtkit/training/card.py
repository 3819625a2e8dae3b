"""Model card: README.md of a run folder, in the form that hubs read (Mitchell et al. 2019, "Model Cards").

It begins with metadata as the Hugging Face hub defines them, in YAML between two lines of dashes; then come the same
and more in words. What was not measured or is not known is said to be so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from mtkit import __version__
from mtkit.checkpoint import ADAPTERS_FILE, MANIFEST_FILE, MODEL_FILE, best_folder
from mtkit.config.sections import Config, SourceConfig
from mtkit.config.yaml_document import format_value
from mtkit.data.cache import open_cache
from mtkit.data.sources import Source, Split, open_sources
from mtkit.errors import MtkitError
from mtkit.evaluation import metrics
from mtkit.evaluation.history import History, read_history, read_object
from mtkit.evaluation.metrics import Score
from mtkit.evaluation.robustness_table import NOTE, robustness_cells, robustness_header
from mtkit.evaluation.run_files import CARD_FILE, CARD_PHRASE, FACTS_FILE
from mtkit.files import write_text
from mtkit.formatting import format_count, format_duration
from mtkit.training.results import TEST_METRICS, TestResult, TrainResult

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NUM_BOOTSTRAP, _MIN_SENTENCES = 1000, 100
"""Resamples of an interval, and sentences below which there is none: it would say little."""
_SPLIT_NAMES: dict[Split, str] = {"train": "training", "valid": "validation", "test": "test"}


def write_card(config: Config, result: TrainResult, refs: Mapping[str, list[str]]) -> None:
    """Write the model card of a run that has ended to its folder.

    Args:
        config: its config.
        result: its outcome.
        refs: references of each test set.

    Raises:
        StorageError: If it cannot be written.
    """
    facts, history = read_object(result.run / FACTS_FILE), None
    with suppress(MtkitError):
        history = read_history(result.run)
    tests = [(test, _with_intervals(test, refs[test.name], config)) for test in result.tests]
    sections = [
        [f"# {config.data.src} → {config.data.tgt} translation model", "", *_introduction(config, result)],
        ["## Use", "", *_use(result)],
        ["## Scores", "", *_scores(config, result, tests)],
        ["## Data", "", *_data(config, facts)],
        ["## Model and training", "", *_training(config, result, facts, history)],
        ["## Speed", "", *_speed(tests, facts, history)],
        ["## Robustness", "", *_robustness(result)],
        ["## Limits", "", *_limits(config, facts)],
        ["## License", "", "Not set. Choose one that the licenses of the corpora allow, and write it here and into "
         "the metadata above."],
        ["## How to cite", "", *_citation(config, result)],
    ]  # fmt: skip
    body = "\n\n".join("\n".join(lines) for lines in sections)
    write_text(result.run / CARD_FILE, f"---\n{_metadata(config, result, tests)}---\n\n{body}\n")


def _metadata(config: Config, result: TrainResult, tests: Sequence[tuple[TestResult, list[Score]]]) -> str:
    """Return the metadata of the Hugging Face hub as YAML."""
    src, tgt = config.data.src, config.data.tgt
    hubs = [source.hub for source in config.data.train if source.hub is not None]
    results = [
        {
            "task": {"type": "translation", "name": f"Translation {src}-{tgt}"},
            "dataset": {"name": test.name, "type": test.name},
            "metrics": [
                {
                    "type": metrics.NAMES[score.name],
                    "name": score.name,
                    "value": round(score.value, 2),
                }
                for score in scores
            ],
        }
        for test, scores in tests
    ]
    name = result.run.resolve().name
    fields: dict[str, Any] = {
        "language": list(dict.fromkeys([src, tgt])),
        "license": "unknown",
        "library_name": "mtkit",
        "pipeline_tag": "translation",
        "tags": ["translation", "mtkit"],
    }
    if hubs:
        fields["datasets"] = list(dict.fromkeys(hubs))
    if config.init is not None and _HUB_NAME.fullmatch(config.init) and not Path(config.init).exists():
        fields["base_model"] = config.init
    if results:
        fields |= {"metrics": list(TEST_METRICS), "model-index": [{"name": name, "results": results}]}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)


def _introduction(config: Config, result: TrainResult) -> Iterator[str]:
    """Yield what the model is, in two sentences."""
    yield (
        f"Translates from {config.data.src} to {config.data.tgt}. "
        f"{CARD_PHRASE}{format_count(result.step, 'update')} ({result.reason})."
    )
    if config.init is not None:
        yield f"Fine-tuned from {config.init}."
    if config.training.distillation is not None:
        yield f"It also learned from the predictions of {', '.join(config.training.distillation.teacher)}."


def _use(result: TrainResult) -> Iterator[str]:
    """Yield commands that translate with the model."""
    example = result.example or "…"
    quoted = example.replace("'", "'\\''")
    yield from (
        "This folder has everything that translating needs, and can be moved or copied. In it,",
        "",
        "```sh",
        f"echo '{quoted}' | mtkit translate .",
        "mtkit translate . < input.txt > output.txt",
        "```",
        "",
        "or from Python:",
        "",
        "```python",
        "import mtkit",
        "",
        'translator = mtkit.Translator.load(".")',
        f"print(translator.translate_one({json.dumps(example, ensure_ascii=False)}).text)",
        "```",
    )


# --- scores -------------------------------------------------------------------------------------------------------


def _with_intervals(test: TestResult, refs: list[str], config: Config) -> list[Score]:
    """Return the scores with 95 % intervals, or as they are if there are too few sentences."""
    if len(refs) < _MIN_SENTENCES:
        return test.scores
    tokenizer, tgt = config.validation.bleu_tokenizer, config.data.tgt
    return metrics.score(
        test.hyps, [refs], TEST_METRICS, tokenize=tokenizer, tgt=tgt, num_bootstrap=_NUM_BOOTSTRAP
    )


def _scores(
    config: Config, result: TrainResult, tests: Sequence[tuple[TestResult, list[Score]]]
) -> Iterator[str]:
    """Yield the scores of test sets and the best validation."""
    if tests:
        yield "| test set | metric | score | 95 % interval | signature |"
        yield "|---|---|---|---|---|"
    for test, scores in tests:
        for score in scores:
            interval = "not computed"
            if score.mean is not None and score.confidence is not None:
                low, high = score.mean - score.confidence, score.mean + score.confidence
                interval = f"{low:.2f} to {high:.2f}"
            signature = score.signature.replace("|", "\\|")
            name = test.name.replace("|", "\\|")
            yield f"| {name} | {score.name} | {score.value:.2f} | {interval} | `{signature}` |"
    if tests:
        setup = tests[0][0].translated_with.describe()
        yield from (
            "",
            f"Cased and detokenized, computed by sacreBLEU (Post 2018); {setup}, mtkit {__version__}.",
        )
        if any(score.mean is not None for _, scores in tests for score in scores):
            yield f"Intervals are from {_NUM_BOOTSTRAP:,} bootstrap resamples (Koehn 2004)."
    else:
        yield "No test set was given (`data.test`), so there are no scores of held-out text."
    if result.best is not None:
        digits = 4 if config.validation.best == "loss" else 2
        best = f"{config.validation.best} {result.best:.{digits}f} at update {result.best_step or 0:,}"
        yield from ("", f"The weights are those of the best validation: {best}.")


# --- data ---------------------------------------------------------------------------------------------------------


def _data(config: Config, facts: dict[str, Any]) -> Iterator[str]:
    """Yield the corpora with their licenses and hashes, and how many pairs and tokens they gave."""
    yield "| | corpus | license | SHA-256 |"
    yield "|---|---|---|---|"
    for split, noun in _SPLIT_NAMES.items():
        for source in getattr(config.data, split):
            license_ = (source.license or "not given").replace("|", "\\|")
            hashes = "<br>".join(_hashes(source, config, split)) or "not available"
            yield f"| {noun} | {_describe_source(source)} | {license_} | {hashes} |"
    counts = facts.get("pairs", {})
    with suppress(TypeError, ValueError, KeyError):
        read = sum(counts.values())
        yield from (
            "",
            f"{counts['kept']:,} of {format_count(read, 'training pair')} were used: {facts['src_tokens']:,} source "
            f"and {facts['tgt_tokens']:,} target tokens. Left out: {counts['empty']:,} empty, "
            f"{counts['too_long']:,} too long, {counts['ratio']:,} too unequal in length, {counts['duplicate']:,} "
            "repeated.",
        )


def _describe_source(source: SourceConfig) -> str:
    """Describe a data source as the config does: `{src: train.en, tgt: train.de}`."""
    fields = source.model_dump(exclude_none=True, exclude={"license"})
    return f"`{format_value(fields)}`".replace("|", "\\|")


def _hashes(settings: SourceConfig, config: Config, split: Split) -> Iterator[str]:
    """Yield the SHA-256 of each file of a corpus; nothing if it has no files, or they are no longer there."""
    with suppress(MtkitError, OSError):
        _, hashes = open_cache(config.data, "tokenizers")
        source: Source
        [source] = open_sources([settings], config.data, split)
        for path in source.paths:
            if path.is_file():
                yield f"{path.name}: `{hashes.of_bytes(path)}`"


# --- model and training -------------------------------------------------------------------------------------------


def _training(
    config: Config, result: TrainResult, facts: dict[str, Any], history: History | None
) -> Iterator[str]:
    """Yield the architecture, the tokenizer and the training in words."""
    model, training, tokenizer = config.model, config.training, config.tokenizer
    size = f", {facts['parameters'] / 1e6:,.1f} M parameters" if "parameters" in facts else ""
    yield (
        f"- Transformer (Vaswani et al. 2017) with {model.encoder_layers} encoder and {model.decoder_layers} decoder "
        f"layers of width {model.d_model}, {model.norm_position}-norm, {model.positions} positions{size}"
    )
    pieces = facts.get("vocabulary", {})
    sizes = " and ".join(f"{each:,}" for each in dict.fromkeys(pieces.values()) if isinstance(each, int))
    given = tokenizer.model is not None or tokenizer.src_model is not None or config.init is not None
    kind = (
        "given with the model it starts from or in the config"
        if given
        else f"SentencePiece, {tokenizer.type}"
    )
    optimizer = {"adamw": "AdamW", "muon": "Muon and AdamW"}[training.optimizer]
    if facts.get("choices"):
        yield f"- chosen by mtkit: {'; '.join(map(str, facts['choices']))}"
    yield f"- tokenizer: {kind}{', ' + sizes + ' pieces' if sizes else ''}"
    rate = "a factor of the learning rate of" if training.schedule == "noam" else "peak learning rate"
    yield (
        f"- {optimizer}, {rate} {training.learning_rate:g}, {training.schedule} schedule, "
        f"{format_count(training.warmup_steps, 'update')} of warm-up, batches of at most "
        f"{training.batch_token_budget * training.batches_per_update:,} tokens, dropout {model.dropout:g}, label "
        f"smoothing {training.label_smoothing:g}, random seed {config.seed}"
    )
    if methods := _methods(config):
        yield f"- {', '.join(methods)}"
    if training.lora is not None:
        yield f"- LoRA adapters of rank {training.lora.rank} (Hu et al. 2022)"
    epochs = None if history is None else history.epochs
    seconds = None if history is None else history.seconds
    where = f" on {facts['processor']}" if facts.get("processor") else ""
    if seconds is not None:
        of_epochs = "" if epochs is None else f", {epochs:.1f} epochs"
        precision = f", {facts['precision']}" if "precision" in facts else ""
        yield f"- {format_duration(seconds)}{of_epochs}{where}{precision}, validations included"
    yield "- every key: [config.yaml](config.yaml); every record of training: [metrics.jsonl](metrics.jsonl)"


def _methods(config: Config) -> list[str]:
    """Return the training methods that are on."""
    model, training, tokenizer = config.model, config.training, config.tokenizer
    strengths = {
        "SimCut": training.simcut,
        "R-Drop": training.r_drop,
        "subword sampling": tokenizer.sampling_alpha,
        "BPE-dropout": tokenizer.bpe_dropout,
        "token dropout": model.token_dropout,
        "layer dropout": model.layer_dropout,
        "guided alignment": training.guided_alignment,
    }
    methods = [f"{name} {strength:g}" for name, strength in strengths.items() if strength]
    methods += ["augmented pairs"] if config.augment.is_on else []
    methods += ["pairs in both directions"] if config.data.reverse else []
    return methods + (["minimum-risk training"] if training.minimum_risk is not None else [])


def _speed(
    tests: Sequence[tuple[TestResult, list[Score]]], facts: dict[str, Any], history: History | None
) -> Iterator[str]:
    """Yield how fast training and translating were on the machine of the run."""
    where = f" on {facts['processor']}" if facts.get("processor") else ""
    rates = [] if history is None else [rate for _, rate in history.train_curve("target_tokens_per_second")]
    if rates:
        yield f"- training: {median(rates):,.0f} target tokens/s{where}"
    num, seconds = sum(len(test.hyps) for test, _ in tests), sum(test.seconds for test, _ in tests)
    if seconds > 0:
        yield f"- translating: {num / seconds:,.1f} sentences/s, {tests[0][0].translated_with.describe()}{where}"
    if not rates and not seconds:
        yield "Not measured."


def _robustness(result: TrainResult) -> Iterator[str]:
    """Yield what became of changed lines of the first test set."""
    command = "the option `robustness` of `mtkit evaluate`"
    found = result.tests[0].robustness if result.tests else None
    if found is None or not found.copies:
        reason = "there is no test set" if found is None else found.reason
        yield f"Not measured, because {reason}; {command} measures it."
        return
    copies = found.as_dict()["copies"]
    clean = copies[0]
    yield (
        f"{format_count(clean['lines'], 'line')} of {result.tests[0].name}, changed; {command} changes whole "
        "test sets in more ways."
    )
    yield ""
    header = ["copy", *robustness_header(clean)]
    yield f"| {' | '.join(header)} |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for copy in copies:
        yield f"| {' | '.join([copy['copy'], *robustness_cells(copy, clean)])} |"
    yield from ("", NOTE)
    yield from (f"Left out: {kind}, because {reason}." for kind, reason in found.left_out.items())


def _limits(config: Config, facts: dict[str, Any]) -> Iterator[str]:
    """Yield what the model is not good at."""
    with suppress(TypeError, KeyError):
        pairs = format_count(facts["pairs"]["kept"], "pair")
        learned = f"It has learned from {pairs}, and nothing else"
        if config.init is not None:
            learned = f"It was fine-tuned on {pairs}, starting from {config.init}, whose training data it has also seen"
        yield (
            f"- {learned}: text of other kinds than the training data is translated worse than the scores say."
        )
    yield (
        "- Translations can leave out or add content, and get names and numbers wrong, in fluent sentences: have "
        "them read where it matters."
    )
    yield "- What is unfair or offensive in the training data can be in the translations."
    yield (
        f"- Sources longer than {config.data.max_length} tokens are translated in parts; sentences of a text do not "
        "know of each other."
    )


def _citation(config: Config, result: TrainResult) -> Iterator[str]:
    """Yield what identifies the weights, and the papers behind them."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        files = json.loads((best_folder(result.run) / MANIFEST_FILE).read_bytes())["files"]
        for name in (MODEL_FILE, ADAPTERS_FILE):
            if name in files:
                yield from (
                    f"SHA-256 of `best/{name}`, which identifies the weights:",
                    f"`{files[name]['sha256']}`.",
                    "",
                )
    yield (
        f"Name the corpora above and mtkit {__version__}. The model is a Transformer (Vaswani et al. 2017, *Attention "
        "Is All You Need*); its tokenizer is SentencePiece (Kudo and Richardson 2018); its scores are sacreBLEU's "
        "(Post 2018, *A Call for Clarity in Reporting BLEU Scores*)."
    )
