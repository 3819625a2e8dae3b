"""Vocabularies of Marian, and what splits text for them.

A vocabulary is a SentencePiece model (.spm), whose ids are the model's own, or a table (.yml, .json, or one token a
line). Text for a table is split outside of Marian: by the SentencePiece models or BPE codes that OPUS-MT keeps next to
the model as source.spm and target.spm, or source.bpe and target.bpe, or by spaces alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mtkit.data.segmentation import (
    WORD_START,
    Preparation,
    Segmentation,
    SentencePiece,
    Words,
    load_sentencepiece,
)
from mtkit.data.tokenizer import VocabularyTokenizer
from mtkit.errors import ConfigError, StorageError
from mtkit.interop.importing import (
    guess_preparation,
    make_vocabulary,
    read_file,
    read_lines_of,
    read_segmentation,
)

_HINT = "copy the vocabulary that the model was trained with again"
_SPECIAL = {"eos": ("</s>", "eos", 0), "unk": ("<unk>", "UNK", 1)}
"""Name of a special token, its name in vocabularies of Nematus, and the id that it has there."""
_ENTRY = re.compile(
    r"""(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)'|([^\s"'&*!|>%@`].*?)):[ \t]+(\d{1,9})[ \t]*"""
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_TAG = re.compile(">>[^<>]+<<")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CODES = (".spm", ".model", ".bpe", ".codes")


def read_tokenizer(
    path: Path, side: str, rows: int, given: Path | None, language: str
) -> VocabularyTokenizer:
    """Return the tokenizer of a side. Its last token is padding, and what the decoder starts with.

    Args:
        path: the vocabulary.
        side: source or target.
        rows: rows of the embedding.
        given: file that splits text, if the user names one.
        language: code of the language.

    Raises:
        ConfigError: If the vocabulary is of a kind that mtkit does not have, or what splits text is not there.
        StorageError: If a file is missing or damaged, or does not fit the embedding.
    """
    if path.suffix == ".fsv":
        raise ConfigError("a factored vocabulary", where=str(path), hint="mtkit has no factors")
    if path.suffix == ".spm":
        segmentation: Segmentation = SentencePiece(read_file(path), str(path))
        ids, eos, unk = _read_sentencepiece(segmentation.model, path, rows)
    else:
        ids, eos, unk = _read_table(path, rows)
        segmentation = _read_segmentation(path.parent, side, given, set(ids.values()), language)
    tokens = [ids.get(index, f"<unused {index}>") for index in range(rows)]
    start = "<pad>"
    while start in tokens:
        start = f"<{start}>"
    vocabulary = make_vocabulary(
        [*tokens, start], str(path), pad=start, bos=start, eos=tokens[eos], unk=tokens[unk]
    )
    has_tags = path.suffix != ".spm" and any(_TAG.fullmatch(token) for token in tokens)
    return VocabularyTokenizer(segmentation, replace(vocabulary, tags=has_tags))


def _read_sentencepiece(model: bytes, path: Path, rows: int) -> tuple[dict[int, str], int, int]:
    """Return the pieces of a model by id, and the ids of eos and unk.

    Raises:
        StorageError: If it has no eos, or not a piece for each row.
    """
    processor = load_sentencepiece(model, str(path))
    number, eos, unk = processor.get_piece_size(), processor.eos_id(), processor.unk_id()
    if number != rows:
        raise StorageError(_sizes(number, rows), where=str(path), hint=_HINT)
    if eos < 0:
        raise StorageError("a SentencePiece model without </s>", where=str(path), hint=_HINT)
    return {index: processor.id_to_piece(index) for index in range(number)}, eos, unk


def _read_table(path: Path, rows: int) -> tuple[dict[int, str], int, int]:
    """Return the tokens of a table by id, and the ids of eos and unk.

    Raises:
        StorageError: If it is missing, not a table, or does not fit the embedding.
    """
    lines = read_lines_of(path)
    is_mapping = path.suffix in (".yml", ".yaml", ".json")
    if not is_mapping:
        entries = [(line, index) for index, line in enumerate(lines)]
    elif "".join(lines).lstrip().startswith("{"):
        entries = _parse_json("\n".join(lines), path)
    else:
        entries = _parse_yaml(lines, path)
    tokens: dict[int, str] = {}
    known = set()
    for token, index in entries:
        if _SURROGATE.search(token):
            raise StorageError(f"half of a surrogate pair as id {index}", where=str(path), hint=_HINT)
        if token in known or index in tokens:
            what = f"the {'token' if token in known else 'id of'} {token!r:.40} is there twice"
            raise StorageError(what, where=str(path), hint=_HINT)
        known.add(token)
        tokens[index] = token
    if not tokens or max(tokens) >= rows:
        hint = (
            "the first tokens of a longer vocabulary, if the model was trained with dim-vocabs; else its own"
        )
        raise StorageError(_sizes(max(tokens, default=-1) + 1, rows), where=str(path), hint=hint)
    eos, unk = (_special_id(tokens, is_mapping, name, path) for name in ("eos", "unk"))
    return tokens, eos, unk


def _sizes(number: int, rows: int) -> str:
    """Return that a vocabulary does not fit an embedding."""
    return f"{number:,} tokens, but the embedding has {rows:,} rows"


def _special_id(tokens: dict[int, str], is_mapping: bool, name: str, path: Path) -> int:
    """Return the id of eos or unk; an id that vocabularies of Nematus have for it, if nothing else has it.

    Raises:
        StorageError: If there is none.
    """
    token, older, usual = _SPECIAL[name]
    if is_mapping and tokens.get(usual) in (None, older):
        tokens.setdefault(usual, token)
        return usual
    for index, found in tokens.items():
        if found == token:
            return index
    raise StorageError(f"no {token} in this vocabulary", where=str(path), hint=_HINT)


def _parse_json(text: str, path: Path) -> list[tuple[str, int]]:
    """Return the entries of a table in JSON.

    Raises:
        StorageError: If it is not one.
    """
    try:
        entries = json.loads(text, object_pairs_hook=list)
        if not all(type(index) is int and index >= 0 for _, index in entries):
            raise ValueError("not a mapping from tokens to ids")
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error).split("\n")[0]
        raise StorageError(f"not a vocabulary: {reason:.80}", where=str(path), hint=_HINT) from error
    return [(str(token), index) for token, index in entries]


def _parse_yaml(lines: Sequence[str], path: Path) -> list[tuple[str, int]]:
    """Return the entries of a table in YAML, as Marian and PyYAML write it: one a line, or key and id on two lines.

    A YAML parser takes many seconds for some ten thousand lines.

    Raises:
        StorageError: If a line is something else.
    """
    entries = []
    key = ""
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip() or (number == 1 and line.strip() == "---"):
            continue
        if line.startswith("? "):
            key = line[2:].strip()
            continue
        found = _ENTRY.fullmatch(key + line if key else line)
        if found is None:
            what = f"expected a token and its id, got {line!r:.40}"
            raise StorageError(what, where=f"{path}:{number}", hint=_HINT)
        double, single, plain, index = found.groups()
        try:
            token = (
                _ESCAPE.sub(_unescape, double) if double is not None else (single or "").replace("''", "'")
            )
        except ValueError as error:
            what = f"not a character: {line!r:.40}"
            raise StorageError(what, where=f"{path}:{number}", hint=_HINT) from error
        entries.append((plain or token, int(index)))
        key = ""
    return entries


def _unescape(escape: re.Match[str]) -> str:
    """Return the character of an escape in a string in double quotes.

    Raises:
        ValueError: If there is none with this number.
    """
    code = escape[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)


def _read_segmentation(
    folder: Path, side: str, given: Path | None, tokens: set[str], language: str
) -> Segmentation:
    """Return what splits text for a table.

    Raises:
        ConfigError: If it is not there, or the model was trained on text that mtkit cannot prepare.
        StorageError: If a file is missing or damaged.
    """
    path = given or _find_codes(folder, side)
    if path is None:
        for kind, wanted, sign in (
            ("SentencePiece model", f"{side}.spm", any(token.startswith(WORD_START) for token in tokens)),
            ("BPE codes", f"{side}.bpe", any(token.endswith("@@") for token in tokens)),
        ):
            if sign:
                hint = "name the file with `src_tokenizer` and `tgt_tokenizer`"
                raise ConfigError(f"no {kind} ({wanted}) for the vocabulary", where=str(folder), hint=hint)
    preparation = _read_preparation(folder, tokens, language)
    if path is None:
        return Words(b"", preparation=preparation)
    return read_segmentation(path, preparation)


def _find_codes(folder: Path, side: str) -> Path | None:
    """Return the SentencePiece model or BPE codes of a side: OPUS-MT's, or the only file of that kind.

    Raises:
        ConfigError: If there are several.
    """
    for ending in (".spm", ".bpe"):
        if (folder / f"{side}{ending}").is_file():
            return folder / f"{side}{ending}"
    found = sorted(path for path in folder.iterdir() if path.suffix in _CODES and path.is_file())
    if len(found) > 1:
        what = f"{len(found)} files that split text: {', '.join(path.name for path in found[:3])}"
        hint = "name them with `src_tokenizer` and `tgt_tokenizer`"
        raise ConfigError(what, where=str(folder), hint=hint)
    return found[0] if found else None


def _read_preparation(folder: Path, tokens: set[str], language: str) -> Preparation:
    """Return what happens to text before it is split, from OPUS-MT's preprocess.sh or the entities in a vocabulary.

    Raises:
        ConfigError: If it is truecased.
        StorageError: If preprocess.sh cannot be read.
    """
    path = folder / "preprocess.sh"
    if not path.exists():
        return guess_preparation(tokens, language)
    script = "\n".join(line for line in read_lines_of(path) if not line.lstrip().startswith("#"))
    if "truecase.perl" in script:
        hint = "mtkit has no Moses truecasing models; remove the line from a copy if the text is truecased already"
        raise ConfigError("text for this model is truecased", where=str(path), hint=hint)
    lowercase = "lowercase.perl" in script
    found = re.search(r"/tokenizer\.perl([^|\n]*)", script)
    if found is None:
        return Preparation(lowercase=lowercase)
    flags = found[1].split()
    return Preparation(language, "-no-escape" not in flags, "-a" in flags, lowercase)
