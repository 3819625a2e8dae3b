"""Measures fairseq's own training of Transformer-big on random tokens, if fairseq is installed.

Its benchmark task makes batches of sentences of one length, without padding.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile


def main() -> int:
    """Print the speed as JSON."""
    device, is_tiny = sys.argv[1], "tiny" in sys.argv[2:]
    if importlib.util.find_spec("fairseq") is None:
        print(json.dumps({"left_out": "fairseq is not installed"}))
        return 0
    length, tokens, updates = (8, 128, 3) if is_tiny else (32, 25_000, 40)
    arch = "transformer_iwslt_de_en" if is_tiny else "transformer_wmt_en_de_big"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "fairseq_cli.train", "--task", "dummy_mt",
            "--dict-size", "500" if is_tiny else "37000",
            "--src-len", str(length), "--tgt-len", str(length), "--dataset-size", "100000", "--arch", arch,
            "--share-all-embeddings", "--max-tokens", str(tokens), "--optimizer", "adam", "--lr", "0.0005",
            "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0", "--criterion", "label_smoothed_cross_entropy",
            "--label-smoothing", "0.1", "--max-update", str(updates), "--log-interval", "10" if not is_tiny else "1",
            "--log-format", "json", "--no-save", "--save-dir", folder, "--disable-validation",
        ]  # fmt: skip
        command += ["--cpu"] if device == "cpu" else ["--bf16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    speeds = [float(found) for found in re.findall(r'"wps": "([\d.]+)"', done.stdout + done.stderr)]
    if done.returncode or not speeds:
        print(json.dumps({"left_out": (done.stderr or done.stdout)[-1500:]}))
        return 0
    print(
        json.dumps(
            {"arch": arch, "max_tokens": tokens, "length": length, "target_tokens_per_second": speeds[-1]}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
