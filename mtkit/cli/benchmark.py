"""`mtkit benchmark`: speed of training and translation on this machine, and the cost of a training pair."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from mtkit.cli import completion, options
from mtkit.cli.lines import check_same_length
from mtkit.cli.terminal import make_console, open_stdout, print_stdout
from mtkit.cli.translators import load_translator_and_config, resolve_decoding
from mtkit.errors import ConfigError, DataError


def benchmark_train(
    config: options.ConfigPath,
    overrides: options.Overrides = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another training loop, on the same batches and in turn with mtkit: torch (nn.Transformer), compile "
            "(mtkit with torch.compile), threads (mtkit with training.workers 1) or transformers (Hugging Face's "
            "Marian); may be repeated. torch and transformers run in the precision and with the threads that are "
            "fastest for them.",
            autocompletion=completion.one_of("torch", "compile", "threads", "transformers"),
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Updates to measure, after a warm-up.")] = 20,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Measure for this many minutes instead.")
    ] = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic", help="Random tokens in sentences as long as those of news; needs no corpus."
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure training: throughput, time of each stage, memory, FLOP/s. The run folder is not changed."""
    from mtkit.config.loading import load_config

    loaded = load_config(config, overrides or ())
    from mtkit.benchmark.train import benchmark_train as benchmark

    progress = make_console(sys.stderr)
    result = benchmark(
        loaded,
        against=tuple(against or ()),
        num_updates=steps,
        minutes=minutes,
        synthetic=synthetic,
        say=lambda line: progress.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    if as_json:
        print_stdout(json.dumps(result.as_dict(), indent=2) + "\n")
    else:
        make_console(open_stdout()).print(result.table())


def benchmark_data(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="Also encode its training pairs, without the cache."),
    ] = None,
    overrides: options.Overrides = None,
    pairs: Annotated[int, typer.Option(min=1, help="Number of pairs, of random lengths.")] = 10_000_000,
    as_json: options.AsJson = False,
) -> None:
    """Measure the time and memory that a training pair costs: batch order, deduplication, encoding."""
    from mtkit.config.loading import load_config

    loaded = None if config is None else load_config(config, overrides or ())
    from mtkit.benchmark.data import benchmark_data as benchmark

    progress = make_console(sys.stderr)
    result = benchmark(
        pairs, loaded, say=lambda line: progress.print(line, markup=False, highlight=False, soft_wrap=True)
    )
    if as_json:
        print_stdout(json.dumps(result.as_dict(), indent=2) + "\n")
    else:
        make_console(open_stdout()).print(result.table())


def benchmark_translate(
    model: options.ModelPath,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Lines to translate.")],
    ref: Annotated[str | None, typer.Option(help="References, for BLEU.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another system with the same weights, in turn with mtkit: ctranslate2 or transformers (Hugging "
            "Face's generate); may be repeated.",
            autocompletion=completion.one_of("ctranslate2", "transformers"),
        ),
    ] = None,
    compute_type: Annotated[
        list[str] | None,
        typer.Option(help="Compute type of CTranslate2; may be repeated. Default: float32 and int8."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of times that each system translates the file.")
    ] = 3,
    beam_size: options.BeamSize = None,
    batch_tokens: options.BatchTokens = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Measure translation: sentences and tokens per second, latency, time of each stage, peak memory.

    Other systems are measured in the workers, threads and batches that a short round finds to be their fastest, mtkit
    as it is by default; all from text to text.
    """
    from mtkit.files import read_lines

    if compute_type and "ctranslate2" not in (against or ()):
        raise ConfigError("--compute-type needs --against ctranslate2", hint="no other system has it")
    lines, refs = list(read_lines(file)), None if ref is None else list(read_lines(ref))
    if not lines:
        raise DataError("nothing to translate", where=file, hint="it has no lines")
    if refs is not None:
        check_same_length(file, lines, [ref or ""], [refs])
    decoding = resolve_decoding(model, {
        "beam_size": beam_size, "batch_tokens": batch_tokens,
        "penalty_kind": "simple" if against else None, "stop": "finished" if against else None,  # as the others do
        "avoid_loops": False if against else None,
    })  # fmt: skip
    if beam_size is not None and (decoding.sample or decoding.mbr is not None):
        key = "sample" if decoding.sample else "mbr"
        what = f"--beam-size cannot be combined with decoding.{key}, which the model's config enables"
        raise ConfigError(what, hint="leave it out")
    from mtkit.benchmark.translate import benchmark_translate as benchmark

    report = benchmark(
        model,
        lines,
        refs,
        lambda: load_translator_and_config(model, decoding, device, precision),
        against=against or (),
        compute_types=compute_type or ("float32", "int8"),
        rounds=rounds,
        command=[sys.executable, "-m", "mtkit", "translate", model, "--device", device, "--precision", precision,
                 "--quiet", *(() if beam_size is None else ("--beam-size", str(beam_size)))],
    )  # fmt: skip
    if as_json:
        print_stdout(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        print_stdout("".join(f"{line}\n" for line in report.lines()))
