"""Work of the stages of a diversification. torch is imported where it is needed, in the processes of the stages."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from mtkit.config.loading import AUTO, config_to_dict, parse_config
from mtkit.config.presets import CorpusSize
from mtkit.config.sections import DataConfig
from mtkit.data.readers import Columns, Pair, read_tsv
from mtkit.data.sources import Source, Split, open_sources, untagged
from mtkit.files import commit_folder, count_lines, make_folder, temporary_folder
from mtkit.pipelines.corpora import NewPairs, read_corpus, sides, write_corpora
from mtkit.pipelines.resumable_file import ResumableFile
from mtkit.pipelines.stages import Context, Settings, use_threads
from mtkit.pipelines.translation_filter import TranslationFilter, summary


def copy_corpora(settings: Settings, context: Context) -> dict[str, Any]:
    """Copy the training and validation corpora, without their tags; return their numbers of pairs and of bytes."""
    from mtkit.training.display import Display
    from mtkit.translation.options import LineProgress

    data, folder = DataConfig.model_validate(settings["data"]), Path(settings["folder"])
    progress = LineProgress(Display(context.console).say, task="copying")
    counts = write_corpora(folder, ((name, progress.over(pairs)) for name, pairs in _read_all(data)))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith("train"))
    return {"pairs": counts, "bytes": size}


def _read_all(data: DataConfig) -> Iterator[tuple[str, Iterator[Pair]]]:
    """Yield the corpora by the names of their copies."""
    splits: tuple[Split, ...] = ("train", "valid")
    for split in splits:
        entries = untagged(getattr(data, split))
        for number, source in enumerate(open_sources(entries, data, split)):
            yield f"{split}-{number}", _pairs(source)


def _pairs(source: Source) -> Iterator[Pair]:
    return (pair for _, pair in source.read())


def make_shared_tokenizers(settings: Settings, context: Context) -> dict[str, Any]:
    """Choose what a preset leaves open, once for all models; make the tokenizers that they share.

    Returns:
        Both configs with all values, and what was chosen for each and why.
    """
    from mtkit.training.display import Display
    from mtkit.training.inputs import cached_tokenizers
    from mtkit.training.preset import choose_values, measure_corpus

    say = Display(context.console).say
    config, helpers = parse_config(settings["config"]), parse_config(settings["helpers"])
    size: CorpusSize | None = None
    if config.preset == helpers.preset == AUTO:
        first, second = (each.data.model_copy(update={"valid": (), "test": ()}) for each in (config, helpers))
        size = measure_corpus(first, say) if first == second else None  # once for both
    config, choices = choose_values(config, size, say)
    helpers, of_helpers = choose_values(helpers, size, say)
    values, folder = config_to_dict(config), Path(settings["folder"])
    data = DataConfig.model_validate(values["data"] | {"train": settings["train"], "root": "."})
    sources = open_sources(data.train, data, "train")
    tokenizers = cached_tokenizers(config.model_copy(update={"data": data}), sources, say)
    with temporary_folder(folder) as temporary:
        tokenizers.save(temporary)
        commit_folder(temporary, folder)
    return {
        "config": values,
        "helpers": config_to_dict(helpers),
        "choices": choices,
        "choices_of_helpers": of_helpers,
    }


def estimate(settings: Settings, context: Context) -> dict[str, float | None]:
    """Estimate the seconds of a training and of the translation of a pair, and the bytes of the checkpoints.

    Validations tell how long a translation takes: without any, that is None.
    """
    from mtkit.training.build import build_trainer
    from mtkit.training.display import Display
    from mtkit.training.footprint import Footprint
    from mtkit.training.forecast import measure_speed, run_size
    from mtkit.training.inputs import configure_process, load_inputs
    from mtkit.training.progress import Progress

    config = parse_config(settings["config"])
    configure_process(config)
    with tempfile.TemporaryDirectory(prefix="mtkit-estimate-") as scratch:
        inputs = load_inputs(config, Path(scratch), has_tokenizers=False, say=Display(context.console).say)
        progress = Progress(Path(scratch), Console(quiet=True))
        trainer = build_trainer(config.model_copy(update={"run": scratch}), inputs, progress)
        trainer.fit_to_memory()
        speed = measure_speed(trainer)
        size = run_size(trainer, speed)
        num_validations = -(-size.num_updates // config.validation.every_steps) if size.num_valid_pairs else 0
        num_translated = len(trainer.validator.translated_pairs) if trainer.validator else 0
        beam = config.decoding.beam_size / config.validation.beam_size
        return {
            "training_seconds": size.num_updates * speed.update_seconds
            + num_validations * speed.validation_seconds,
            "seconds_per_pair": beam * speed.validation_seconds / num_translated if num_translated else None,
            "disk": Footprint.of(trainer.model, config.training).disk(config.training),
        }


def translate_corpora(settings: Settings, context: Context) -> dict[str, Any]:
    """Translate one side of the copied corpora; return the counts of the filter."""
    from mtkit.pipelines.translations import write_pairs
    from mtkit.training.display import Display
    from mtkit.translation.options import LineProgress
    from mtkit.translation.segments import Request
    from mtkit.translation.translator import Translator

    use_threads(settings)
    translator = Translator.load(
        settings["model"], device=settings["device"], precision=settings["precision"], n_best=1
    )
    translation_filter = TranslationFilter(translator.tokenizers, settings["max_ratio"])
    corpora, folder = Path(settings["corpora"]), Path(settings["folder"])
    machine_side = settings["machine_side"]
    make_folder(folder)
    counts: Counter[str] = Counter()
    say = Display(context.console).say
    total = sum(count_lines(sides(corpora, name)[0]) for name in settings["names"])
    for name, tag in settings["names"].items():
        with closing(ResumableFile(folder / f"{name}.tsv", settings, fresh=context.fresh)) as output:
            if not output.is_finished:
                side = 0 if machine_side == "tgt" else 1
                requests = (Request(pair[side], tag=tag) for pair in read_corpus(corpora, name))
                progress = LineProgress(say, total, counts.total() + output.num_lines)
                write_pairs(
                    output,
                    requests,
                    translator,
                    translation_filter,
                    machine_side,
                    on_progress=progress,
                    parallelism=context.parallelism,
                )
            counts.update(output.counts)
    say(summary(counts))
    return dict(counts)


def unite_corpora(settings: Settings, context: Context) -> dict[str, Any]:
    """Write the pairs of all translations that are neither in a corpus nor there before; return how many there are."""
    from mtkit.training.display import Display
    from mtkit.translation.options import LineProgress

    corpora, new = Path(settings["corpora"]), NewPairs()
    progress = LineProgress(Display(context.console).say, task="reading")
    for name in settings["names"]:
        for _ in new.of(progress.over(read_corpus(corpora, name))):
            pass
    read: Counter[str] = Counter()

    def translations(name: str) -> Iterator[Pair]:
        for folder in settings["earlier"]:
            yield from read_corpus(Path(folder), name)
        for folder in settings["translations"]:
            for _, pair in read_tsv(Path(folder) / f"{name}.tsv", Columns(None, ("", ""))):
                read[name] += 1
                yield pair

    united = ((name, new.of(progress.over(translations(name)))) for name in settings["names"])
    pairs = write_corpora(Path(settings["folder"]), united)
    return {"pairs": pairs, "translations": dict(read)}
