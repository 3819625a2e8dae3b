"""A correct model learns to copy sequences it has never seen; one with a bug in masks, positions or loss does not."""

import random
from pathlib import Path

import tiny

import mtkit

CONFIG = """\
run: {folder}/run
data:
  root: {folder}
  src: a
  tgt: b
  train: [{{src: train.txt, tgt: train.txt}}]
  test: [{{src: test.txt, tgt: test.txt}}]
tokenizer: {{vocab_size: 32, byte_fallback: false}}
model: {{d_model: 64, encoder_layers: 1, decoder_layers: 1, num_heads: 4, norm_position: post, dropout: 0.0}}
training:
  {{batch_tokens: 512, max_steps: 550, learning_rate: 0.005, schedule: cosine, warmup_steps: 50, num_threads: 1,
   report: false, precision: fp32}}
"""


def distinct_rows(number: int, seed: int) -> list[str]:
    """Return distinct rows of two to nine letters and digits, such as `7 c 0 0 j`."""
    rng = random.Random(seed)
    rows: dict[str, None] = {}
    while len(rows) < number:
        rows[" ".join(rng.choices("abcdefghij0123456789", k=rng.randint(2, 9)))] = None
    return list(rows)


def test_a_copy_task_is_learned(tmp_path: Path) -> None:
    rows = distinct_rows(4200, seed=1)
    tiny.write_lines(tmp_path / "train.txt", rows[:4000])
    tiny.write_lines(tmp_path / "test.txt", rows[4000:])
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    result = mtkit.train(mtkit.load_config(path))
    bleu = result.tests[0].scores[0]
    assert (bleu.name, len(result.tests[0].hyps)) == ("BLEU", 200)
    assert bleu.value >= 98
