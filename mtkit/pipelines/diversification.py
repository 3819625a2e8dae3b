"""Data diversification (Nguyen et al. 2020, "Data Diversification: A Simple Strategy For Neural Machine Translation").

K models of each direction, which differ in their seeds, translate the training corpora: forward models their sources,
backward models their targets. The final model is trained on the corpora and all these translations, without duplicates
(their algorithm 1). In further rounds, the models are trained on the union of the round before.

The functions of the stages are in `diversification_stages`; this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from mtkit.config.loading import config_to_dict, parse_config
from mtkit.config.sections import Config
from mtkit.data.cache import cache_folder
from mtkit.data.sources import Split, open_sources
from mtkit.errors import ConfigError
from mtkit.formatting import format_bytes, format_count, format_duration
from mtkit.languages import bleu_can_tokenize
from mtkit.pipelines.corpora import sides
from mtkit.pipelines.diversification_stages import (
    copy_corpora,
    estimate,
    make_shared_tokenizers,
    translate_corpora,
    unite_corpora,
)
from mtkit.pipelines.pipeline import Pipeline
from mtkit.pipelines.stages import Effort, Stage
from mtkit.pipelines.trainings import check_training, training, training_effort
from mtkit.translation.options import PARALLEL, Parallelism

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, Direction] = ("forward", "backward")

_ONCE = Effort("preparations", 0)
_TRANSLATION = Effort("translations of the corpus", 1)

_REFUSED = {
    "init": "a model to start from translates in one direction only",
    "training.distillation": "a teacher translates in one direction only",
    "training.guided_alignment": "machine translations have no alignments",
}
"""Keys of a config that cannot be diversified, and the reason."""


@dataclass(frozen=True)
class Diversification:
    """Plan of a diversification.

    Attributes:
        config: config of the final run.
        helpers: config of the models that translate; its run folder does not count.
        num_models: models of each direction in each round.
        num_rounds: rounds.
        max_ratio: see `TranslationFilter`.
        choices, choices_of_helpers: what a preset chose for the two configs, and why.
    """

    config: Config
    helpers: Config
    num_models: int = 3
    num_rounds: int = 1
    max_ratio: float | None = 3.0
    choices: Sequence[str] = ()
    choices_of_helpers: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Folder of the pipeline."""
        return Path(f"{self.config.run.rstrip('/')}.stages")

    def check(self) -> None:
        """Check that the config can be diversified.

        Raises:
            ConfigError: If it cannot.
            DataError: If a file that training reads is missing.
        """
        for config in (self.config, self.helpers):
            for key, reason in _REFUSED.items():
                if attrgetter(key)(config):
                    raise ConfigError("cannot be used with diversification", where=key, hint=reason)
        # Presets may choose different vocabularies; that of the final model counts.
        of_tokenizer = {*self.config.tokenizer.model_fields_set, *self.helpers.tokenizer.model_fields_set}
        shared = [f"tokenizer.{key}" for key in sorted(of_tokenizer & _TRAINED_TOKENIZER)]
        shared += ["data.src", "data.tgt", "data.root", "data.train"]
        shared += ["data.valid"] if self.helpers.data.valid else []  # without any, helpers are not validated
        for key in shared:
            if attrgetter(key)(self.config) != attrgetter(key)(self.helpers):
                hint = "set it without `helpers` and `final`"
                raise ConfigError("it is the same for all models", where=key, hint=hint)
        for config in (self.config, self.helpers):
            check_training(config)

    @property
    def efforts(self) -> list[Effort]:
        """Effort of each stage, in order."""
        each = [training_effort(self.helpers), _TRANSLATION] * (2 * self.num_models)
        rounds = [*each, _ONCE] * self.num_rounds
        return [_ONCE, _ONCE, _ONCE, *rounds, training_effort(self.config)]

    def run(
        self, say: Callable[[str], None], *, fresh: bool = False, parallelism: Parallelism = PARALLEL
    ) -> dict[str, Any]:
        """Run all stages and return the result of the final training.

        Raises:
            MtkitError: As stages do.
            Interrupted: If a signal stops it; the same call goes on.
        """
        self.check()
        with Pipeline(self.folder, self.efforts, say, fresh=fresh, parallelism=parallelism) as pipeline:
            pipeline.check_free("final", Path(self.config.run))
            pairs = pipeline.run(self._copy())
            prepared = pipeline.run(self._tokenizers())
            for reason in prepared["choices"]:
                say(reason)
            config, helpers = parse_config(prepared["config"]), parse_config(prepared["helpers"])
            chosen = replace(
                self,
                config=config,
                helpers=helpers,
                choices=prepared["choices"],
                choices_of_helpers=prepared.get("choices_of_helpers", ()),
            )
            pipeline.efforts = chosen.efforts  # a preset may have changed the number of updates
            return chosen._train_and_translate(pipeline, pairs)

    def _train_and_translate(self, pipeline: Pipeline, pairs: dict[str, Any]) -> dict[str, Any]:
        """Run the stages after the preparations, with configs whose values are all chosen."""
        for line in self._forecast(pipeline.run(self._estimate()), pairs):
            pipeline.say(line)
        united: dict[str, Any] = {}
        for number in range(self.num_rounds):
            for stage in self._round(number):
                united = pipeline.run(stage)
        return pipeline.run(training("final", self.final_config(united), choices=self.choices))

    # --- configs ---------------------------------------------------------------------------------------------------

    def helper_config(self, direction: Direction, index: int, number: int) -> Config:
        """Return the config of a model that translates.

        Args:
            direction: its direction.
            index: number of the model among those of its direction, from 0.
            number: number of the round, from 0.
        """
        config = self.helpers
        values = config_to_dict(config)
        values["run"] = str(self.folder / _model_name(direction, index, number))
        values["seed"] = config.seed + _SEED_STEP * (number * self.num_models + index)
        values["tokenizer"] = self._tokenizer(config, direction)
        data = values["data"]
        data["root"], data["test"] = ".", []
        data["valid"] = [
            self._entry("corpora", f"valid-{n}", direction, tag=source.tag)
            for n, source in enumerate(config.data.valid)
        ]
        data["train"] = self._train_entries("corpora", direction)
        if number:
            data["train"] += self._train_entries(f"union-{number}", direction)
        if direction == "backward":
            data["src"], data["tgt"] = data["tgt"], data["src"]
            values["decoding"]["suppress"] = []
            _choose_metrics(values["validation"], forward=data["src"], backward=data["tgt"])
        return parse_config(values)

    def final_config(self, united: dict[str, Any]) -> Config:
        """Return the config of the final run.

        Args:
            united: what the last stage `unite_corpora` returned.
        """
        values = config_to_dict(self.config)
        values["tokenizer"] = self._tokenizer(self.config, "forward")
        how = f"{self.num_models} forward and {self.num_models} backward models"
        if self.num_rounds > 1:
            how += f" in {self.num_rounds} rounds"
        for name, source in self._train():
            if added := united["pairs"][name]:
                union = f"union-{self.num_rounds}"
                entry = self._entry(union, name, "forward", tag=source.tag, weight=source.weight)
                entry["synthetic"] = f"{format_count(added, 'pair')} translated by {how} (diversification)"
                values["data"]["train"].append(entry)
        return parse_config(values)

    def _train(self) -> Iterator[tuple[str, Any]]:
        """Yield the training corpora with the names of their copies."""
        return ((f"train-{number}", source) for number, source in enumerate(self.config.data.train))

    def _train_entries(self, folder: str, direction: Direction) -> list[dict[str, Any]]:
        """Return the training corpora in a folder as a config has them."""
        return [
            self._entry(folder, name, direction, tag=source.tag, weight=source.weight)
            for name, source in self._train()
        ]

    def _entry(
        self, folder: str, name: str, direction: Direction, *, tag: str | None, weight: float | None = None
    ) -> dict[str, Any]:
        """Return a corpus as a config has it; in a backward config its sides are exchanged, and it has no tag."""
        src, tgt = (os.path.abspath(path) for path in sides(self.folder / folder, name))
        if direction == "backward":
            src, tgt, tag = tgt, src, None
        entry = {"src": src, "tgt": tgt, "tag": tag, "weight": weight}
        return {key: value for key, value in entry.items() if value is not None}

    def _tokenizer(self, config: Config, direction: Direction) -> dict[str, Any]:
        """Return the section of the shared tokenizer; what is learned about it does not count any more."""
        folder = self.folder / "tokenizers"
        values = config_to_dict(config)["tokenizer"]
        fixed = {key: values[key] for key in values if key not in _TRAINED_TOKENIZER}
        joint = config.tokenizer.src_model is None and (
            config.tokenizer.joint or config.tokenizer.model is not None
        )
        if joint:
            return {**fixed, "model": os.path.abspath(folder / "tokenizer.model")}
        src, tgt = (os.path.abspath(folder / f"tokenizer.{side}.model") for side in ("src", "tgt"))
        if direction == "backward":
            src, tgt = tgt, src
        return {**fixed, "joint": config.tokenizer.joint, "src_model": src, "tgt_model": tgt}

    # --- stages ----------------------------------------------------------------------------------------------------

    def _copy(self) -> Stage:
        """Return the stage that copies the corpora."""
        data, folder = self.config.data, self.folder / "corpora"
        splits: tuple[Split, ...] = ("train", "valid")
        paths = [
            path
            for split in splits
            for source in open_sources(getattr(data, split), data, split)
            for path in source.paths
        ]
        settings = {"data": {**config_to_dict(self.config)["data"], "test": []}, "folder": str(folder)}
        return Stage("corpora", copy_corpora, settings, _ONCE, tuple(dict.fromkeys(paths)), (folder,))

    def _tokenizers(self) -> Stage:
        """Return the stage that chooses what a preset leaves open, and makes the tokenizers of all models."""
        folder = self.folder / "tokenizers"
        settings = {
            "config": config_to_dict(self.config),
            "helpers": config_to_dict(self.helpers),
            "train": self._train_entries("corpora", "forward"),
            "folder": str(folder),
        }
        return Stage(
            "tokenizers", make_shared_tokenizers, settings, _ONCE, (self.folder / "corpora",), (folder,)
        )

    def _estimate(self) -> Stage:
        """Return the stage that measures the speed of training."""
        settings = {"config": config_to_dict(self.helper_config("forward", 0, 0))}
        return Stage("estimate", estimate, settings, _ONCE, (self.folder / "tokenizers",))

    def _round(self, number: int) -> Iterator[Stage]:
        """Yield the stages of a round."""
        outputs = []
        for index in range(self.num_models):
            for direction in DIRECTIONS:
                config = self.helper_config(direction, index, number)
                name = _model_name(direction, index, number)
                folder = self.folder / f"{name}-translations"
                outputs.append(folder)
                yield training(name, config, choices=self.choices_of_helpers)
                yield self._translate(config, direction, folder)
        earlier = [] if number == 0 else [self.folder / f"union-{number}"]
        yield self._unite(number, outputs, earlier)

    def _translate(self, config: Config, direction: Direction, folder: Path) -> Stage:
        """Return the stage in which a model translates the training corpora."""
        settings = {
            "model": config.run,
            "corpora": str(self.folder / "corpora"),
            "names": {
                name: (source.tag or "") if direction == "forward" else "" for name, source in self._train()
            },
            "machine_side": "tgt" if direction == "forward" else "src",
            "folder": str(folder),
            "max_ratio": self.max_ratio,
            "device": config.training.device,
            "precision": config.training.translation_precision,
            "num_threads": config.training.num_threads,
        }
        inputs = (Path(config.run), self.folder / "corpora")
        return Stage(folder.name, translate_corpora, settings, _TRANSLATION, inputs, (folder,))

    def _unite(self, number: int, translations: list[Path], earlier: list[Path]) -> Stage:
        """Return the stage that collects the translations of a round, and the union of the round before."""
        folder = self.folder / f"union-{number + 1}"
        settings = {
            "corpora": str(self.folder / "corpora"),
            "earlier": [str(path) for path in earlier],
            "translations": [str(path) for path in translations],
            "names": [name for name, _ in self._train()],
            "folder": str(folder),
        }
        inputs = (self.folder / "corpora", *earlier, *translations)
        return Stage(folder.name, unite_corpora, settings, _ONCE, inputs, (folder,))

    def _forecast(self, speed: dict[str, Any], pairs: dict[str, Any]) -> Iterator[str]:
        """Yield how long all will take, and how much of the disk."""
        num_helpers = 2 * self.num_models * self.num_rounds
        num_pairs = sum(count for name, count in pairs["pairs"].items() if name.startswith("train"))
        each, translation = speed["training_seconds"], (speed["seconds_per_pair"] or 0.0) * num_pairs
        helper, final = training_effort(self.helpers), training_effort(self.config)
        last = each * final.number / helper.number if final.unit == helper.unit else each
        how_long = (
            f"{format_duration(translation)} each"
            if translation
            else "whose time is not known without data.valid"
        )
        yield (
            f"about {format_duration(num_helpers * (each + translation) + last)} in all: {num_helpers} trainings of "
            f"{format_duration(each)}, {num_helpers} translations of {format_count(num_pairs, 'pair')}, {how_long}, "
            f"and the final training of {format_duration(last)}"
        )
        text = pairs["bytes"] * (1 + 2 * num_helpers)
        # Each round encodes both directions, with the union of the rounds before; the final run has the last union.
        # A union has at most the pairs of all translations. Encoded pairs are about as large as their text.
        sizes = [1 + 2 * self.num_models * number for number in range(self.num_rounds + 1)]
        encoded = pairs["bytes"] * (2 * sum(sizes[:-1]) + sizes[-1])
        yield (
            f"at most {format_bytes((num_helpers + 1) * speed['disk'] + text + encoded)} of disk: "
            f"{format_bytes(speed['disk'])} for the checkpoints of each model, {format_bytes(text)} of text in "
            f"{self.folder}, {format_bytes(encoded)} of encoded pairs in {cache_folder(self.config.data)}"
        )


_TRAINED_TOKENIZER = {
    "type", "vocab_size", "joint", "byte_fallback", "character_coverage", "normalization", "user_symbols",
    "training_lines", "add_tokens", "model", "src_model", "tgt_model",
}  # fmt: skip
"""Keys about how a tokenizer is made."""
_SEED_STEP = 1000
"""Distance between the seeds of models, so that diversifications with seeds 1, 2, 3 share none."""


def _model_name(direction: Direction, index: int, number: int) -> str:
    """Return the name of a model, such as forward-1, or round-2-forward-1."""
    return (f"round-{number + 1}-" if number else "") + f"{direction}-{index + 1}"


def _choose_metrics(validation: dict[str, Any], forward: str, backward: str) -> None:
    """Let a backward model have the defaults of its own target language, unless the config has chosen another metric.

    Args:
        validation: section `validation`.
        forward: target language of the config.
        backward: target language of the backward model.
    """
    validation["bleu_tokenizer"] = None
    usual, own = ("bleu" if bleu_can_tokenize(language) else "chrf" for language in (forward, backward))
    if validation["best"] == usual and own in validation["metrics"]:
        validation["best"] = own
