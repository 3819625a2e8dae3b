"""Training and translation on a GPU that is pretended (see `pretended_gpu`): nothing mixes devices, and little waits.

Every kind of update and every kind of search runs on it, and comes to the numbers and texts of the CPU; most of them in
the slow tests, because each of its operations takes a while.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from pretended_gpu import GPU, PretendedGPU, is_on_gpu
from rich.console import Console
from torch import Tensor

from mtkit import load_config, train
from mtkit.config.sections import Config, DecodingConfig
from mtkit.errors import ConfigError, TrainingError
from mtkit.model.build import make_model
from mtkit.model.cuda_graphs import ReplayedCall
from mtkit.model.transformer import Transformer
from mtkit.search.buckets import Buckets
from mtkit.search.constraints import Constraint
from mtkit.search.state import SYNC_EVERY_STEPS, Hypothesis
from mtkit.training import forecast
from mtkit.training.build import build_trainer
from mtkit.training.distillation import Teachers
from mtkit.training.engine import Engine
from mtkit.training.inputs import Inputs, configure_process, load_inputs
from mtkit.training.progress import Progress
from mtkit.training.trainer import Trainer
from mtkit.training.updates import Update
from mtkit.translation.segments import Segment
from mtkit.translation.translator import Translator

# --- the pretended GPU itself -------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with PretendedGPU() as gpu:
        yield gpu


def test_devices_do_not_mix(gpu: PretendedGPU) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert (there.device, here.device, there.is_cuda) == (GPU, torch.device("cpu"), True)
    for mixing in (
        lambda: there + here,
        lambda: here.add_(there),
        lambda: torch.cat([there, here]),
        lambda: torch.where(here > 0, there, there),
        lambda: torch.nn.functional.embedding(torch.zeros(2, dtype=torch.long), there[:, None]),
        lambda: torch.zeros(()).add_(there.sum()),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixing()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    assert ((there * torch.tensor(2.0)).device, there.new_zeros(2).device) == (GPU, GPU)
    assert there.to("cpu").device.type == torch.arange(3).device.type == "cpu"
    weight = torch.nn.Linear(3, 2).to("cuda").weight
    weight.sum().backward()
    assert is_on_gpu(weight) and weight.grad is not None and is_on_gpu(weight.grad)


def test_what_waits_is_counted(gpu: PretendedGPU) -> None:
    there, rows, mask = torch.ones(3, device="cuda"), torch.arange(2, device="cuda"), torch.ones(3) > 0
    mask_there, pinned = mask.to("cuda"), torch.ones(3).pin_memory()
    for waiting in (
        lambda: there.sum().item(), lambda: bool(there.any()), there.tolist, there.cpu, there.nonzero,
        lambda: there[mask_there], lambda: there[mask], lambda: there[[0, 1]], lambda: there[there.argmax()],
        lambda: torch.tensor([1.0], device="cuda"), lambda: there.new_tensor([1.0]), lambda: pinned.to("cuda"),
        lambda: there.copy_(torch.ones(3)), lambda: torch.ones(3).to("cuda", non_blocking=True),
        lambda: rows.repeat_interleave(rows),
    ):  # fmt: skip
        with gpu.counted() as found:
            waiting()
        assert found.total() == 1, found
    with gpu.counted() as found:
        there[mask_there] = 1.0
        there[0] = 2.0
        _ = there[rows], there[1:], torch.full((2,), 3, device="cuda"), pinned.to("cuda", non_blocking=True)
        _ = torch.where(mask_there, there, 0.0), there.masked_fill(mask_there, 1.0)
    assert not found


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run whose training pairs are aligned."""
    folder = tmp_path_factory.mktemp("discipline")
    links = tiny.write_lines(folder / "links", ["0-0 1-1"] * tiny.SPLITS["train"])
    path = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    text = path.read_text().replace("tgt: train.tgt}", f"tgt: train.tgt, alignments: {links}}}")
    path.write_text(
        text.replace("log_every_steps: 1,", "log_every_steps: 100, ema_decay: 0.9, accumulate: 2,")
    )
    return path


@pytest.fixture(scope="module")
def inputs(base: Path) -> Inputs:
    return load_inputs(load_config(base), base.parent, has_tokenizers=False, say=lambda _: None)


def trainer_of(config: Config, inputs: Inputs) -> Trainer:
    progress = Progress(Path(config.run), Console(quiet=True), writes_metrics=False)
    trainer = build_trainer(config, inputs, progress)
    trainer.state.step = 1  # the first update would be logged
    return trainer


def make_updates(trainer: Trainer, number: int) -> None:
    """Make updates as a run does, with a thread that fetches."""
    updates = trainer.loader.updates(trainer.state.epoch, trainer.state.batch)
    with closing(trainer.loader.prefetch(updates, 1)) as prefetched:
        for _ in range(number):
            trainer.train_step(next(prefetched))


EXACT = ["model.dropout=0", "training.precision=fp32"]
OPTIONS = {
    "plain": EXACT,
    "fp16, muon": ["training.precision=fp16", "training.optimizer=muon"],
    "fp16": ["training.precision=fp16", "training.activation_checkpointing=true"],
    "muon": ["training.optimizer=muon", *EXACT],
    "simcut": ["training.simcut=3", "model.layer_dropout=0.5", "model.token_dropout=0.2", "model.positions=learned"],
    "r_drop": ["training.r_drop=5", "model.attention_dropout=0.1", "model.positions=relative"],
    "gated": ["model.activation=swiglu", "model.norm=rmsnorm", "model.positions=rotary", "model.num_kv_heads=1"],
    "guided": ["training.guided_alignment=0.3", "model.decoder_layers=2", *EXACT],
    "packed": ["training.pack=true", "training.r_drop=5", *EXACT],
    "fp8": ["training.precision=fp8", "training.clip_norm=null", "model.encoder_layers=2",
            "model.unique_encoder_layers=1"],
    "taught": ["model.norm_position=post", *EXACT],
}  # fmt: skip


@pytest.mark.slow
def test_minimum_risk_waits_to_sample_and_to_read_samples(base: Path, inputs: Inputs) -> None:
    """Not for each token or sentence: the texts of samples are scored on the CPU, so there is something to wait for."""
    options = [*EXACT, "training.minimum_risk={samples: 3}", "training.accumulate=1", "training.workers=1"]
    cpu = trainer_of(load_config(base, options), inputs)
    make_updates(cpu, 2)
    with PretendedGPU() as gpu:
        trainer = trainer_of(load_config(base, [*options, "training.device=cuda"]), inputs)
        with gpu.counted() as waits:
            make_updates(trainer, 2)
        assert waits.total() <= 2 * 12, waits
        trainer.read_updates()
    assert dataclasses.asdict(trainer.state.window) == pytest.approx(
        dataclasses.asdict(cpu.state.window), rel=1e-4
    )


def cases(names: Iterable[str], quick: Sequence[str]) -> list[Any]:
    """Return the names as parameters of a test, slow but for the quick ones."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(OPTIONS, ("plain", "fp16, muon", "packed", "fp8")))
def test_updates_wait_for_nothing(name: str, base: Path, inputs: Inputs) -> None:
    """Losses are read where they are logged, in one copy; what is learned is what a CPU learns."""
    config = load_config(base, [*OPTIONS[name], "training.workers=1"])
    if name == "taught":
        torch.manual_seed(9)
        teacher = make_model(config.model, inputs.tokenizers)
        inputs = dataclasses.replace(inputs, teachers=Teachers([teacher], 0.5, 2.0))
    expected: dict[str, float] | None = None
    if config.model.dropout == 0:
        trainer = trainer_of(config, inputs)
        make_updates(trainer, 2)
        expected = dataclasses.asdict(trainer.state.window)
    with PretendedGPU() as gpu:
        trainer = trainer_of(load_config(base, [*OPTIONS[name], "training.device=cuda"]), inputs)
        with gpu.counted() as waits:
            make_updates(trainer, 2)
        assert not waits
        with gpu.counted() as waits:
            trainer.read_updates()
        assert waits.total() == 1 + (config.training.precision == "fp16")  # the scale of the loss is read too
        tensors = (value for state in trainer.engine.optimizer.state.values() for value in state.values())
        assert all(map(is_on_gpu, [*trainer.model.parameters(), *tensors]))
        if expected is not None:
            assert dataclasses.asdict(trainer.state.window) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_late_rollback_learns_what_an_early_one_does(
    base: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update that diverged is noticed three updates later; those are undone, and made again without it."""
    original = Engine.forward_backward

    def forward_backward(self: Engine, update: Update, num_targets: int, step: int) -> Tensor:
        sums = original(self, update, num_targets, step)
        return sums * math.nan if update.last_batch == 5 else sums

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)
    options = ["model.dropout=0", "training.precision=fp32", "training.on_divergence=rollback", "training.max_steps=9",
               "training.save_every_steps=2", "training.log_every_steps=6", "validation.every_steps=100",
               "validation.metrics=[]", "validation.best=loss", "training.workers=1"]  # fmt: skip
    runs = {}
    for device in ("cpu", "cuda"):
        config = load_config(base, [*options, f"run={tmp_path / device}", f"training.device={device}"])
        with PretendedGPU() if device == "cuda" else nullcontext():
            trainer = build_trainer(config, inputs, Progress(tmp_path / device, Console(quiet=True)))
            reason = trainer.train()
        diverged = [record["diverged_step"] for record in tiny.records(tmp_path / device, "diverged")]
        window = dataclasses.asdict(trainer.state.window)
        runs[device] = (
            reason,
            diverged,
            trainer.state.skipped,
            trainer.state.batch,
            trainer.state.target_tokens,
            window,
        )
    assert runs["cuda"][:5] == runs["cpu"][:5]
    assert runs["cpu"][1] == [3] and len(runs["cpu"][2]) > 4
    assert runs["cuda"][5] == pytest.approx(runs["cpu"][5], rel=1e-4)


def test_timed_updates_that_diverge_are_an_error(
    base: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no line is logged, and so no loss is read."""
    original = Engine.forward_backward
    monkeypatch.setattr(Engine, "forward_backward", lambda *arguments: original(*arguments) * math.nan)
    monkeypatch.setattr(forecast, "_TIMED_UPDATES", 1)
    inputs = dataclasses.replace(inputs, valid=None)
    with PretendedGPU():
        trainer = trainer_of(load_config(base, [*EXACT, "training.device=cuda"]), inputs)
        with pytest.raises(TrainingError, match="the loss of step 2 is not finite"):
            forecast.measure_speed(trainer)


RUN = ["training.precision=fp32", "model.dropout=0", "training.workers=1", "validation.every_steps=2",
       "validation.max_sentences=4", "data.test=[]", "decoding.beam_size=2"]  # fmt: skip


@pytest.mark.slow
def test_a_whole_run_with_checkpoints_validation_and_resume(base: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        with PretendedGPU() if device == "cuda" else nullcontext():
            for steps in (2, 4) if device == "cuda" else (4,):
                options = [
                    *RUN,
                    f"run={tmp_path / device}",
                    f"training.device={device}",
                    f"training.max_steps={steps}",
                ]
                train(load_config(base, options))
    ours, theirs = (tiny.losses(tmp_path / device) for device in ("cuda", "cpu"))
    assert [line["kind"] for line in ours] == ["train", "valid", "valid"]
    for own, other in zip(ours, theirs, strict=True):
        numbers = {key: value for key, value in other.items() if isinstance(value, float)}
        assert {key: own[key] for key in numbers} == pytest.approx(numbers, rel=1e-3)


# --- translation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(base: Path, inputs: Inputs) -> list[Transformer]:
    """Two models with random weights."""
    config = load_config(base, ["model.d_model=16"]).model
    torch.manual_seed(3)
    return [make_model(config, inputs.tokenizers) for _ in range(2)]


SEARCHES: dict[str, dict[str, object]] = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 4, "n_best": 2, "length_penalty": 0.6},
    "certain": {"beam_size": 3, "stop": "certain", "min_pieces": 3, "renormalize": True},
    "unbeaten": {"beam_size": 3, "stop": "all_unbeaten", "no_repeat_ngram": 2},
    "coverage": {"beam_size": 3, "coverage_penalty": 0.2},
    "groups": {"beam_size": 4, "groups": 2, "suppress": ("dog", "the")},
    "samples": {"sample": True, "n_best": 3, "top_k": 20, "top_p": 0.9, "epsilon": 0.001},
    "risk": {"sample": True, "mbr": "chrf", "mbr_candidates": 4},
}


def search_all(
    models: list[Transformer],
    inputs: Inputs,
    decoding: DecodingConfig,
    buckets: Buckets | None = None,
    phrase: str | None = None,
) -> list[list[Hypothesis]]:
    """Search for translations of sentences of many lengths, every other one with a phrase that it must contain."""
    model, *others = models
    translator = Translator(model, inputs.tokenizers, decoding, 64, others, buckets=buckets)
    sources = inputs.tokenizers.src.encode([line * (1 + i % 3) for i, line in enumerate(tiny_sources())])
    tokens = [] if phrase is None else inputs.tokenizers.tgt.encode([phrase])
    constraints = tuple(Constraint((tuple(ids.tolist()),)) for ids in tokens)
    segments = [
        Segment(ids, 5 + 6 * (n % 6), n, constraints=constraints * (n % 2)) for n, ids in enumerate(sources)
    ]
    return translator.batched_search.search_segments(segments)


def tiny_sources() -> list[str]:
    return [src for src, _ in tiny.pairs(9, 5)]


@pytest.mark.parametrize("name", cases([*SEARCHES, "ensemble"], ("coverage", "samples")))
def test_searches_find_what_the_cpu_finds(
    name: str, models: list[Transformer], inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = DecodingConfig.model_validate(SEARCHES.get(name, {"beam_size": 2}))
    used = models[: 1 + (name == "ensemble")]
    expected = search_all([copy.deepcopy(model).eval() for model in used], inputs, decoding)
    with PretendedGPU() as gpu:
        on_gpu = [copy.deepcopy(model).eval().to("cuda") for model in used]
        steps = 0
        original = Transformer.step

        def step(self: Transformer, *arguments: Any) -> Tensor:
            nonlocal steps
            steps += 1
            return original(self, *arguments)

        monkeypatch.setattr(Transformer, "step", step)
        with gpu.counted() as waits:
            found = search_all(on_gpu, inputs, decoding)
    assert [[hyp.ids for hyp in hyps] for hyps in found] == [[hyp.ids for hyp in hyps] for hyps in expected]
    scores = [[hyp.score for hyp in hyps] for hyps in expected]
    assert [[hyp.score for hyp in hyps] for hyps in found] == [pytest.approx(own, rel=1e-4) for own in scores]
    steps //= len(used)
    assert steps > 20
    assert waits.total() < steps, waits


@pytest.mark.parametrize("name", cases(["beam", "groups", "samples", "constraints"], ("beam", "constraints")))
def test_searches_in_buckets_wait_once_in_several_steps(
    name: str, models: list[Transformer], inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the whole step is not a graph; in a graph nothing waits (`PretendedGPU` would refuse to capture)."""
    decoding = DecodingConfig.model_validate(SEARCHES.get(name, {"beam_size": 3}))
    phrase, per_step = ("chien", 2.2) if name == "constraints" else (None, 0.0)  # progress is on the CPU
    expected = search_all([copy.deepcopy(models[0]).eval()], inputs, decoding, phrase=phrase)
    with PretendedGPU() as gpu:
        on_gpu = [copy.deepcopy(models[0]).eval().to("cuda")]
        buckets, steps, original = Buckets(on_gpu), 0, ReplayedCall.__call__

        def call(self: ReplayedCall) -> None:
            nonlocal steps
            steps += 1
            original(self)

        monkeypatch.setattr(ReplayedCall, "__call__", call)
        with gpu.counted() as waits:
            found = search_all(on_gpu, inputs, decoding, buckets, phrase)
    assert [[hyp.ids for hyp in hyps] for hyps in found] == [[hyp.ids for hyp in hyps] for hyps in expected]
    assert buckets.num_graphs and steps > 20
    most = (
        per_step + 2 / SYNC_EVERY_STEPS
    ) * steps + 6  # to read what is done, to read its results, and once a batch
    assert waits.total() <= most, waits


def test_samples_of_test_sets_are_refused_where_all_must_be_deterministic(base: Path) -> None:
    config = load_config(
        base, ["training.device=cuda", "training.deterministic=true", "decoding.sample=true"]
    )
    assert config.data.test
    with PretendedGPU(), pytest.raises(ConfigError, match="no deterministic algorithm to draw the samples"):
        configure_process(config)


def test_deterministic_algorithms_are_those_of_the_run_that_wants_them(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for wanted in ("true", "false"):
        config = load_config(base, ["training.device=cuda", f"training.deterministic={wanted}"])
        with PretendedGPU():
            configure_process(config)
        assert torch.are_deterministic_algorithms_enabled() == (wanted == "true")


def test_a_translator_for_a_gpu_uses_graphs(
    base: Path, models: list[Transformer], inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the variable says otherwise. Its matrices are converted, its norms compute in float32."""
    config, words = load_config(base), ["dog", "the dog"]
    with PretendedGPU():
        translators = []
        for value in ("", "none"):
            monkeypatch.setenv("MTKIT_CUDA_GRAPHS", value)
            copied = copy.deepcopy(models[0])
            translators.append(Translator.of(config, inputs.tokenizers, copied, None, GPU, "bf16"))
        assert [each.backend for each in translators] == ["PyTorch, CUDA graphs", "PyTorch"]
        found, plain = ([each.text for each in translator.translate(words)] for translator in translators)
        assert found == plain
        model = translators[0].model
        assert all(map(is_on_gpu, model.parameters()))
        assert model.decoder_norm.weight.dtype == torch.float32
        assert model.output.weight.dtype == torch.bfloat16
    monkeypatch.setenv("MTKIT_CUDA_GRAPHS", "off")
    with pytest.raises(ConfigError, match="MTKIT_CUDA_GRAPHS: unknown value 'off'"):
        Translator.of(config, inputs.tokenizers, copy.deepcopy(models[0]), None, torch.device("cpu"), "fp32")
