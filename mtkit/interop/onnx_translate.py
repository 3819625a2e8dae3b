"""Translates lines by greedy search: python translate.py < lines. Needs onnxruntime and sentencepiece."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from sentencepiece import SentencePieceProcessor


class Translator:
    """A model that `mtkit export --to onnx` wrote into a folder."""

    def __init__(self, folder: Path) -> None:
        config, src_tokens, self.tgt_tokens = (
            json.loads((folder / name).read_text("utf-8"))
            for name in ("config.json", "source_vocab.json", "target_vocab.json")
        )
        self.config, self.src_ids = config, {token: number for number, token in enumerate(src_tokens)}
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )
        self.source, self.target = (
            SentencePieceProcessor(model_file=str(folder / name)) for name in ("source.spm", "target.spm")
        )

    def encode(self, line: str) -> list[int]:
        """Return the ids of a source line. A language tag such as >>fra<< before its text is a token of its own."""
        tags: list[str] = []
        if self.config["source_tags"] and line.startswith(">>") and "<<" in line:
            end = line.index("<<") + 2
            tags, line = [line[:end]], line[end:]
        pieces = tags + self.source.encode(line, out_type=str)
        return [self.src_ids.get(piece, self.config["source_unk"]) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a translation."""
        text: str = self.target.decode([self.tgt_tokens[number] for number in ids])
        # tokens that target.spm lacks keep their mark of a space; byte tokens may write line breaks
        return text.translate(str.maketrans("\u2581\n\r", "   ", "\0")).strip()

    def translate(self, lines: Sequence[str]) -> list[str]:
        """Return the translations of a batch of lines, none of them blank."""
        config = self.config
        rows = [self.encode(line) for line in lines]
        limits = [int(config["max_length_ratio"] * len(row)) + config["max_length_extra"] for row in rows]
        if config["source_ends_with_eos"]:
            rows = [[*row, config["source_eos"]] for row in rows]
        longest = max(map(len, rows))
        src_ids = np.array([row + [config["source_pad"]] * (longest - len(row)) for row in rows])

        states = [output.name for output in self.encoder.get_outputs()]
        encoded = dict(zip(states, self.encoder.run(states, {"src_ids": src_ids}), strict=True))
        inputs = {name: value for name, value in encoded.items() if name.startswith("memory_")}
        caches = [port for port in self.decoder.get_inputs() if port.name.startswith("past_")]
        for cache in caches:  # [batch, heads, 0 steps, width]
            shape = (len(rows), cache.shape[1], 0, cache.shape[3])
            inputs[cache.name] = np.zeros(shape, dtype=config["cache_type"])
        outputs = ["logits", *(cache.name.replace("past_", "present_") for cache in caches)]

        found: list[list[int]] = [[] for _ in rows]
        live = set(range(len(rows)))
        newest = np.full((len(rows), 1), config["target_start"])
        while live:
            logits, *present = self.decoder.run(outputs, inputs | {"tgt_ids": newest})
            logits[:, :, config["never_generated"]] = -np.inf
            newest = logits[:, -1:].argmax(axis=-1)
            inputs |= zip((cache.name for cache in caches), present, strict=True)
            for row in list(live):
                if newest[row, 0] == config["target_eos"] or len(found[row]) == limits[row]:
                    live.remove(row)
                else:
                    found[row].append(int(newest[row, 0]))
        return [self.decode(ids) for ids in found]


if __name__ == "__main__":
    translator = Translator(Path(__file__).parent)
    for line in sys.stdin:
        print(translator.translate([line.rstrip("\n")])[0] if line.strip() else "", flush=True)
