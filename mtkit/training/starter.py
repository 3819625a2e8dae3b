"""Starter configs: what `mtkit init` writes for given files.

They name the files and leave sizes and methods to preset auto.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mtkit.config.loading import AUTO, parse_config
from mtkit.config.sections import DataConfig, SourceConfig
from mtkit.config.yaml_document import format_value
from mtkit.data.held_out import divide
from mtkit.data.recognize import Entry, Languages, find_held_out, recognize
from mtkit.data.sources import Split, open_sources, read_sides
from mtkit.errors import ConfigError
from mtkit.files import storage_errors
from mtkit.training.preset import choose_for

_FILE_KEYS = ("src", "tgt", "path")
"""Keys of a data source that hold paths."""

_TEMPLATE = """\
# {src} to {tgt}, {num_pairs:,} training pairs. Written by `mtkit init`.
# `mtkit check` estimates time and memory, `mtkit config show` prints every key with its value.
run: {run}  # the run folder, for everything that training writes
preset: auto  # sizes and methods for this corpus and the machine that trains; {summary} here
data:
{root}  src: {src}
  tgt: {tgt}
{train}{valid}{test}# What you set yourself counts more than the preset, for example
# training: {{time_limit_minutes: 30}}
# model: {{dropout: 0.2}}
"""


@dataclass(frozen=True)
class StarterConfig:
    """A commented YAML config, and what it was derived from.

    Attributes:
        text: the YAML.
        languages: codes of source and target language.
        num_pairs: number of training pairs.
        path: the file that it is for.
        divided: files that the pairs were divided into, with the number of pairs in each.
        missing: splits without files, out of `valid` and `test`.
        warning: what the user may regret about the pairs, or None.
        notes: what the user should look at: files that were found, columns that were guessed, and sheets that are not
            read.
    """

    text: str
    languages: Languages
    num_pairs: int
    path: str
    divided: dict[str, int]
    missing: tuple[str, ...]
    warning: str | None
    notes: tuple[str, ...]


def make_starter_config(
    train: Sequence[str],
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
    languages: tuple[str | None, str | None] = (None, None),
    columns: tuple[str, str] | None = None,
    run: str | None = None,
    path: str | None = None,
    hold_out: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> StarterConfig:
    """Write a config for these files. All are read to the end, so that a faulty one is reported now.

    Args:
        train: training files.
        valid: validation files; by default, files beside the training files that are named like such.
        test: test files; by default, files beside the training files that are named like such.
        languages: source and target language, each needed only if file or column names do not tell it.
        columns: columns of source and target in the tables; by default they are recognized.
        run: run folder.
        path: the file that the config is for; by default, the languages are its name.
        hold_out: number of training pairs to hold out for validation, and as many for testing, where there are no
            files for that; the training pairs are divided into files in a folder beside `path`.
        say: prints a line about the progress.

    Raises:
        ConfigError: If languages or columns cannot be recognized or text files have none, if nothing is to be held out,
            or if the config or the folder for the divided pairs exists already.
        DataError: If a file cannot be read, has no pairs, or differs in length from its parallel file.
        StorageError: If a file of pairs cannot be written.
    """
    recognized = recognize(train, languages, columns)
    codes = recognized.languages
    valid, test, found_notes = find_held_out(recognized.entries[0], train, valid, test)
    splits: dict[str, list[Entry]] = {"train": recognized.entries, "valid": [], "test": []}
    notes = recognized.notes + found_notes
    for split, files in (("valid", valid), ("test", test)):
        if files:
            found = recognize(files, codes, columns)
            splits[split] = found.entries
            notes += found.notes
    if columns is not None and not any("path" in entry for entries in splits.values() for entry in entries):
        raise ConfigError("text files have no columns", where="`columns`", hint="leave it out")
    path = path or f"{'-'.join(codes)}.yaml"
    given = parse_config({"run": "none", "data": {"src": codes[0], "tgt": codes[1], **splits}}).data
    _read_held_out(given)
    with ExitStack() as unless_complete:
        divided = {} if hold_out is None else _divide(given, path, hold_out, unless_complete)
        splits |= {split: [{"path": file}] for split, (file, _) in divided.items()}
        root = _common_folder([entry for entries in splits.values() for entry in entries])
        if root != ".":
            splits = {
                split: [_relative_to_folder(entry) for entry in entries] for split, entries in splits.items()
            }
        run = run or f"runs/{'-'.join(codes)}"
        data = {"root": root, "src": codes[0], "tgt": codes[1], **splits}
        choice = choose_for(parse_config({"run": run, "preset": AUTO, "data": data}), say=say)
        unless_complete.pop_all()
    summary = f"{choice.preset}, {choice.values['training.max_steps']:,} updates"
    text = _render_yaml(run, codes, root, splits, choice.num_pairs, summary)
    missing = tuple(split for split, entries in splits.items() if not entries)
    parts = dict(divided.values())
    return StarterConfig(text, codes, choice.num_pairs, path, parts, missing, choice.warning, notes)


def _divide(
    data: DataConfig, path: str, hold_out: int, unless_complete: ExitStack
) -> dict[str, tuple[str, int]]:
    """Divide the training pairs into files in a new folder beside the config, which `unless_complete` removes.

    Returns:
        The file of each new split, and its number of pairs.
    """
    missing = [split for split, sources in (("valid", data.valid), ("test", data.test)) if not sources]
    if not missing:
        what = "nothing to hold out: there are validation and test pairs"
        raise ConfigError(what, where="`hold_out`", hint="leave it out")
    folder = Path(f"{path.removesuffix('.yaml').removesuffix('.yml')}.data")
    for taken in (Path(path), folder):
        if os.path.lexists(taken):
            raise ConfigError("exists already", where=str(taken), hint="choose another name of the config")
    files = {split: folder / f"{split}.tsv" for split in ("train", *missing)}
    with storage_errors(folder):
        folder.mkdir()
    unless_complete.callback(shutil.rmtree, folder)
    counts = divide(open_sources(data.train, data, "train"), hold_out, files)
    return {split: (str(file), counts[split]) for split, file in files.items()}


def _common_folder(entries: Sequence[Entry]) -> str:
    """Return the folder that contains all files; if they are in several, the current one."""
    files = [str(entry[key]) for entry in entries for key in _FILE_KEYS if key in entry]
    folders = {os.path.dirname(file) or "." for file in files}
    return folders.pop() if len(folders) == 1 else "."


def _relative_to_folder(entry: Entry) -> Entry:
    """Reduce the paths of a data source to file names."""
    return {key: os.path.basename(str(entry[key])) if key in _FILE_KEYS else entry[key] for key in entry}


def _read_held_out(data: DataConfig) -> None:
    """Read the validation and test sets, so that a faulty one is reported now.

    Raises:
        DataError: If one cannot be read.
    """
    splits: dict[Split, Sequence[SourceConfig]] = {"valid": data.valid, "test": data.test}
    for split, configs in splits.items():
        for source in open_sources(configs, data, split):
            read_sides(source)


def _render_yaml(
    run: str,
    languages: Languages,
    root: str,
    splits: Mapping[str, Sequence[Entry]],
    num_pairs: int,
    summary: str,
) -> str:
    """Return the YAML."""
    return _TEMPLATE.format(
        src=format_value(languages[0]),
        tgt=format_value(languages[1]),
        num_pairs=num_pairs,
        run=format_value(run),
        summary=summary,
        root="" if root == "." else f"  root: {format_value(root)}  # relative paths start here\n",
        train=_source_list("train", splits["train"]),
        valid=_source_list(
            "valid",
            splits["valid"],
            "  # selects the best checkpoint; about 1,000 pairs that are not in train",
        ),
        test=_source_list("test", splits["test"], "  # translated and scored once, at the end"),
    )


def _source_list(key: str, entries: Sequence[Entry], comment: str = "") -> str:
    """Return the YAML of a list of data sources, one per line."""
    if not entries:
        return f"  {key}: []{comment}\n"
    return "".join([f"  {key}:{comment}\n", *(f"    - {format_value(entry)}\n" for entry in entries)])
