"""Sequence-level distillation (Kim and Rush 2016, "Sequence-Level Knowledge Distillation"), for translating on CPUs.

A student is trained on the translations of a teacher, which are simpler and more consistent than those of people. It
then hardly needs a beam, few layers in the decoder suffice, and with a shortlist and matrices in 8 bits it is what the
efficiency tasks of WMT were won with (Bogoychev et al. 2020, "Edinburgh's Submissions to the 2020 Machine Translation
Efficiency Task").

The functions of the stages are in `distillation_stages`; this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkit.checkpoint import MANIFEST_FILE
from mtkit.config.loading import config_to_dict, parse_config
from mtkit.config.sections import Config
from mtkit.data.sources import open_sources
from mtkit.errors import ConfigError
from mtkit.pipelines.corpora import sides
from mtkit.pipelines.distillation_stages import (
    choose_targets,
    compare_systems,
    export_int8,
    list_tokens,
    write_targets,
)
from mtkit.pipelines.pipeline import Pipeline
from mtkit.pipelines.stages import Effort, Stage
from mtkit.pipelines.trainings import check_training, training, training_values
from mtkit.translation.model_folder import (
    SHORTLIST_FILE,
    override_decoding,
    read_decoding,
    read_languages,
    shortlist_file,
)
from mtkit.translation.options import PARALLEL, Parallelism

_ALONE = Effort("stages", 0)
"""Effort of a stage whose time cannot be estimated from other stages."""
_MONO = "mono"
"""Name of the text without references among the corpora."""


@dataclass(frozen=True)
class Distillation:
    """Plan of a distillation.

    Attributes:
        config: config of the student.
        teachers: model folders; several are an ensemble. None if there are translations already.
        decoding: keys of `decoding` with which the teacher searches, in place of its own.
        mono: files of source text without references.
        translations: file of translations of all training corpora and then of `mono`, line by line, from anywhere.
        backward: model of the opposite direction, for the dual score.
        closest: of this many best translations of a training source, the one closest to the reference by sentence BLEU
            is taken (Kim and Rush 2016, section 3.3); 1 takes the best.
        max_ratio: see `TranslationFilter`.
        drop_worst: share of the pairs with the worst score that are left out.
        keep_original: train on the original pairs too.
        first, best: see `ShortlistSize`.
    """

    config: Config
    teachers: tuple[str, ...]
    decoding: dict[str, Any]
    mono: tuple[str, ...] = ()
    translations: str | None = None
    backward: str | None = None
    closest: int = 1
    max_ratio: float | None = 3.0
    drop_worst: float = 0.02
    keep_original: bool = False
    first: int = 100
    best: int = 100

    @property
    def folder(self) -> Path:
        """Folder of the pipeline."""
        return Path(f"{self.config.run.rstrip('/')}.stages")

    @property
    def small(self) -> Path:
        """Folder of the student in 8 bits."""
        return Path(f"{self.config.run.rstrip('/')}-int8")

    def check(self) -> None:
        """Check that there is something to learn from and a place to write to.

        Raises:
            ConfigError: If not.
            DataError: If a file that the student's training reads is missing.
        """
        if not self.teachers and self.translations is None:
            raise ConfigError("no teacher", hint="name a model, or a file with `translations`")
        if self.translations is not None and self.closest > 1:
            what = "a file has one translation of each line"
            raise ConfigError(what, where="`closest`", hint="leave it out")
        if self.config.training.guided_alignment and not self.keep_original:
            hint = "set it to 0, or add the original pairs with `keep_original`"
            raise ConfigError(
                "machine translations have no alignments", where="training.guided_alignment", hint=hint
            )
        if self.small.exists() and not (self.small / MANIFEST_FILE).exists():
            what = "it is not a model, and the student in 8 bits would be written there"
            raise ConfigError(what, where=str(self.small), hint="choose another run folder, or delete it")
        check_training(self.config)
        written = {Path(self.config.run).resolve(), self.small.resolve()}
        for path in filter(None, (*self.teachers, self.backward)):
            real = Path(path).resolve()
            if not written.isdisjoint([real, *real.parents]):
                what = "it would be overwritten by the student"
                raise ConfigError(what, where=path, hint="choose another run folder for the student")
        src, tgt = self.config.data.src, self.config.data.tgt
        models = [(path, src, tgt) for path in self.teachers]
        models += [(self.backward, tgt, src)] if self.backward is not None else []
        for path, from_, to in models:
            if from_ != to and read_languages(Path(path)) == (to, from_):
                what = f"it translates from {to} to {from_}, not from {from_} to {to}"
                raise ConfigError(what, where=path, hint="name a model of the other direction")

    def run(
        self, say: Callable[[str], None], *, fresh: bool = False, parallelism: Parallelism = PARALLEL
    ) -> dict[str, Any]:
        """Run all stages and return the result of the last, the comparison of the systems.

        Raises:
            MtkitError: As stages do.
            Interrupted: If a signal stops it; the same call goes on.
        """
        self.check()
        with Pipeline(self.folder, [_ALONE] * 6, say, fresh=fresh, parallelism=parallelism) as pipeline:
            pipeline.check_free("student", Path(self.config.run))
            pipeline.check_free("int8", self.small)
            pipeline.run(self._translate())
            targets = pipeline.run(self._choose())
            student = self.student_config(targets)
            pipeline.run(training("student", student, (self.folder / "targets",)))
            pipeline.run(self._list_tokens(student))
            pipeline.run(self._export())
            return pipeline.run(self._compare(student))

    def student_config(self, targets: dict[str, Any]) -> Config:
        """Return the config of the student.

        Args:
            targets: what `choose_targets` returned.
        """
        values = training_values(self.config)
        entries = list(values["data"]["train"]) if self.keep_original else []
        for name, tag, weight in self._corpora():
            if pairs := targets["pairs"][name]:
                src, tgt = map(os.path.abspath, sides(self.folder / "targets", name))
                entry = {"src": src, "tgt": tgt, "tag": tag, "weight": weight}
                how = f"{pairs:,} sentences translated by {self.teacher} (distillation)"
                kept = {key: value for key, value in entry.items() if value is not None}
                entries.append({**kept, "synthetic": how})
        values["data"]["train"] = entries
        return parse_config(values)

    @property
    def teacher(self) -> str:
        """Description of the teacher and its search."""
        if self.translations is not None:
            return self.translations
        changes = {**self.decoding, "n_best": self.closest}  # which may widen the beam
        search = override_decoding(read_decoding(Path(self.teachers[0])), changes).label
        closest = f", of {self.closest} the closest to the reference" if self.closest > 1 else ""
        return f"{' + '.join(self.teachers)} with {search}{closest}"

    def _corpora(self) -> Iterator[tuple[str, str | None, float | None]]:
        """Yield the name, the tag and the weight of each corpus of targets."""
        for number, source in enumerate(self.config.data.train):
            yield f"train-{number}", source.tag, source.weight
        if self.mono:
            tags = {source.tag for source in self.config.data.train}
            yield _MONO, tags.pop() if len(tags) == 1 else None, None

    def _machine(self) -> dict[str, Any]:
        """Return the settings of the machine, which are those of the student's training."""
        own = self.config.training
        return {"device": own.device, "precision": own.translation_precision, "num_threads": own.num_threads}

    # --- stages ----------------------------------------------------------------------------------------------------

    def _translate(self) -> Stage:
        """Return the stage that makes and scores the translations."""
        data = self.config.data
        sources = [path for source in open_sources(data.train, data, "train") for path in source.paths]
        others = [*self.teachers, *self.mono, *filter(None, (self.translations, self.backward))]
        if self.translations is None and (table := shortlist_file(Path(self.teachers[0]))).is_file():
            others.append(str(table))
        settings = {
            "data": {**config_to_dict(self.config)["data"], "valid": [], "test": []},
            "tags": {name: tag or "" for name, tag, _ in self._corpora()},
            "mono": list(self.mono),
            "teachers": list(self.teachers),
            # A key that a record lacks would pass for one that mtkit did not have before.
            "decoding": {"beam_size": None, "mbr_candidates": None, **self.decoding},
            "translations": self.translations,
            "backward": self.backward,
            "closest": self.closest,
            "max_ratio": self.max_ratio,
            "folder": str(self.folder / "translations"),
            **self._machine(),
        }
        inputs = tuple(dict.fromkeys([*sources, *map(Path, others)]))
        folder = self.folder / "translations"
        return Stage("translations", write_targets, settings, _ALONE, inputs, (folder,))

    def _choose(self) -> Stage:
        """Return the stage that leaves out the worst pairs."""
        source, folder = self.folder / "translations", self.folder / "targets"
        settings = {
            "translations": str(source),
            "names": [name for name, _, _ in self._corpora()],
            "drop_worst": self.drop_worst,
            "folder": str(folder),
        }
        return Stage("targets", choose_targets, settings, _ALONE, (source,), (folder,))

    def _list_tokens(self, student: Config) -> Stage:
        """Return the stage that makes the shortlist of the student."""
        settings = {
            "config": config_to_dict(student),
            "teacher": self.teachers[0] if self.teachers else None,
            "first": self.first,
            "best": self.best,
            **self._machine(),
        }
        run = Path(student.run)
        return Stage("shortlist", list_tokens, settings, _ALONE, (run,), (run / SHORTLIST_FILE,))

    def _export(self) -> Stage:
        """Return the stage that writes the student in 8 bits."""
        settings = {"config": config_to_dict(self.config), "folder": str(self.small)}
        run = Path(self.config.run)
        return Stage("int8", export_int8, settings, _ALONE, (run, run / SHORTLIST_FILE), (self.small,))

    def _compare(self, student: Config) -> Stage:
        """Return the stage that scores and times the systems."""
        settings = {
            "config": config_to_dict(student),
            "teachers": list(self.teachers),
            "small": str(self.small),
            "num_threads": self.config.training.num_threads,
        }
        data = student.data
        held_out = [*open_sources(data.test, data, "test"), *open_sources(data.valid, data, "valid")][:1]
        texts = [path for source in held_out for path in source.paths]
        inputs = (Path(student.run), self.small, *map(Path, self.teachers), *texts)
        return Stage("comparison", compare_systems, settings, _ALONE, inputs)
