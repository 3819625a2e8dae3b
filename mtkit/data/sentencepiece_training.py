"""Training of SentencePiece models (Kudo and Richardson 2018).

In: lines of text. Out: the bytes of a .model file, the same for the same lines and settings.
"""

from __future__ import annotations

import io
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import sentencepiece

from mtkit.config.sections import TokenizerConfig
from mtkit.data.readers import Pair
from mtkit.errors import ConfigError, DataError, MtkitError

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
"""pad, unk, bos and eos of a model trained here; their ids are 0, 1, 2 and 3."""

MAX_TRAINING_CHARS = 4000
"""Longer lines are not used for training."""

_TRAINING_THREADS = 16  # The EM algorithm sums per thread, so another number gives another model.


def sample_pairs(pairs: Iterable[Pair], size: int, seed: int) -> list[Pair]:
    """Sample evenly in one pass (Vitter 1985, algorithm R); return all pairs, in order, if there are at most `size`."""
    rng = random.Random(seed)
    sample: list[Pair] = []
    for number, pair in enumerate(pairs):
        if number < size:
            sample.append(pair)
        elif (index := rng.randrange(number + 1)) < size:
            sample[index] = pair
    return sample


def count_lost_characters(lines: Iterable[str], normalization: str) -> tuple[Counter[str], float]:
    """Count the characters, other than white space, that normalization removes or turns into others.

    Args:
        lines: lines of text.
        normalization: name of SentencePiece's rule.

    Returns:
        How often each is lost, and what share of all characters they are.
    """
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=normalization)
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for line in lines:
        before.update("".join(line.split()))
        after.update("".join(normalizer.normalize(line).split()))
    lost = before - after
    return lost, lost.total() / max(1, before.total())


def train_sentencepiece(lines: list[str], config: TokenizerConfig, normalization: str) -> bytes:
    """Train a model on these lines and return the bytes of its .model file.

    Args:
        lines: lines of text; blank and very long ones are left out.
        config: type and size of the vocabulary.
        normalization: name of SentencePiece's rule.

    Raises:
        ConfigError: If the vocabulary is too small for the corpus, or user symbols clash.
        DataError: If there is no text to train on.
    """
    usable = [line for line in lines if line.strip() and len(line) <= MAX_TRAINING_CHARS]
    if not usable:
        raise DataError(
            "no text to train the tokenizer on",
            hint="data.train has no pair with text: fill its files, or name others",
        )
    model = io.BytesIO()
    try:
        train = partial(
            sentencepiece.SentencePieceTrainer.train,
            sentence_iterator=iter(usable),
            model_writer=model,
            model_type=config.type,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            normalization_rule_name=normalization,
            user_defined_symbols=list(config.user_symbols),
            max_sentence_length=4 * MAX_TRAINING_CHARS,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIALS[0],
            unk_piece=SPECIALS[1],
            bos_piece=SPECIALS[2],
            eos_piece=SPECIALS[3],
        )
        _run_in_thread(train)
    except RuntimeError as error:
        raise _describe_training_error(str(error), config) from error
    return model.getvalue()


def _run_in_thread(work: Callable[[], object]) -> None:
    """Call a function that spends minutes in C++, where the main thread could not handle Ctrl-C or SIGTERM."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    # A daemon, so that the process can end without waiting for it.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def check_user_symbols(symbols: Sequence[str]) -> None:
    """Check for symbols that SentencePiece rejects without a reason, or takes for special pieces.

    Raises:
        ConfigError: If there is one.
    """
    for symbol in symbols:
        if symbol.split() != [symbol] or symbol in SPECIALS or symbols.count(symbol) > 1:
            what = f"{symbol!r} is blank or has a space, is listed twice, or is a special piece"
            raise ConfigError(what, where="tokenizer.user_symbols", hint="remove it")


def _describe_training_error(message: str, config: TokenizerConfig) -> MtkitError:
    """Return an error that says what SentencePiece's message means."""
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        what = f"{config.vocab_size} is too few for the characters, bytes and special pieces of this corpus"
        coverage = f"tokenizer.character_coverage from {config.character_coverage:g}"
        hint = f"set it to at least {needed[1]}, or lower {coverage}"
        return ConfigError(what, where="tokenizer.vocab_size", hint=hint)
    if clash := re.search(r"(\S+) is already defined", message):
        what = f"{clash[1]!r} is already a piece"
        return ConfigError(what, where="tokenizer.user_symbols", hint="remove it")
    if "all_chars_count" in message:
        return DataError("no text to train the tokenizer on", hint="data.train contains only white space")
    what = f"SentencePiece cannot train on this corpus: {' '.join(message.split())}"
    return DataError(what, hint="try another tokenizer.vocab_size or tokenizer.type")
