"""Language codes: ISO 639, with or without region and script, such as zh, zh-TW or zho_Hans."""

from __future__ import annotations

import re

_SHORT = {
    **dict.fromkeys(("zho", "chi", "cmn", "yue", "wuu", "gan", "hak", "hsn", "lzh", "cn"), "zh"),
    **dict.fromkeys(("jpn", "jp"), "ja"),
    "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my", "bur": "my", "bod": "bo", "tib": "bo",
    "dzo": "dz", "cat": "ca", "ces": "cs", "cze": "cs", "deu": "de", "ger": "de", "ell": "el", "gre": "el", "eng": "en",
    "spa": "es", "est": "et", "fin": "fi", "fra": "fr", "fre": "fr", "gle": "ga", "hun": "hu", "isl": "is", "ice": "is",
    "ita": "it", "lit": "lt", "lav": "lv", "nld": "nl", "dut": "nl", "pol": "pl", "por": "pt", "ron": "ro", "rum": "ro",
    "rus": "ru", "slk": "sk", "slo": "sk", "slv": "sl", "swe": "sv", "tam": "ta",
}  # fmt: skip
"""Two-letter codes for the longer ones that matter here: of languages without spaces, and those that Moses has rules
for. Sinitic languages are written like Chinese. The names of files often have the codes of the countries, cn and jp."""
_UNSPACED_LANGUAGES = {"zh", "ja", "th", "lo", "km", "my", "bo", "dz", "shn", "nod", "khb", "tdd"}
_UNSPACED_SCRIPTS = {
    "hans",
    "hant",
    "hani",
    "jpan",
    "thai",
    "laoo",
    "khmr",
    "mymr",
    "tibt",
    "lana",
    "talu",
    "tale",
}

HAN_AND_KANA = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd"
"""Letters of Chinese and Japanese, which are written without spaces; for a character class of a regular expression."""
UNSPACED = HAN_AND_KANA + "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""The same and the letters of Thai, Lao, Burmese and Khmer, which have spaces between sentences but not words."""

HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"
"""Letters of Korean, whose particles and units follow names and numbers without a space."""
WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
"""What stands between spaces; of scripts without spaces, a letter."""
_LETTERLESS = "\u2e80"
"""First character of the scripts of East Asia, a token of which has few characters."""
_LETTERLESS_WEIGHT = 2.5
"""Characters of other scripts that stand for one of these."""

BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""sacreBLEU's tokenizers for languages that need one of their own."""


def short_code(code: str | None) -> str:
    """Return the language without region and script, in two letters if possible: zh for zho_Hans; "" for None."""
    primary = _subtags(code)[0]
    return _SHORT.get(primary, primary)


def is_unspaced(code: str | None) -> bool:
    """Return whether words are written without spaces between them; a script in the code decides."""
    scripts = [subtag for subtag in _subtags(code)[1:] if len(subtag) == 4 and subtag.isalpha()]
    if scripts:
        return scripts[0] in _UNSPACED_SCRIPTS
    return short_code(code) in _UNSPACED_LANGUAGES


def bleu_can_tokenize(code: str | None) -> bool:
    """Return whether one of sacreBLEU's tokenizers splits text in this language into words."""
    return short_code(code) in BLEU_TOKENIZERS or not is_unspaced(code)


def weighted_length(text: str) -> float:
    """Return the number of characters, as if all were of a script with letters."""
    if text.isascii():
        return len(text)
    return len(text) + (_LETTERLESS_WEIGHT - 1) * sum(character >= _LETTERLESS for character in text)


def _subtags(code: str | None) -> list[str]:
    return re.split("[-_]", (code or "").lower())
