"""Fine-tuning: runs that start from another model, frozen parameters, vocabularies of other toolkits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch
import yaml

from mtkit import load_config
from mtkit.checkpoint import Checkpoint, load_checkpoint, load_tensors, save_checkpoint
from mtkit.config.loading import dump_config, parse_config, without_training_data
from mtkit.config.sections import TrainingConfig
from mtkit.data.encoding import encode_corpus
from mtkit.data.segmentation import SentencePiece
from mtkit.data.sources import open_sources
from mtkit.data.tokenizer import Tokenizer, Tokenizers, Vocabulary, VocabularyTokenizer, load_tokenizers
from mtkit.errors import ConfigError, DataError
from mtkit.model.build import copy_weights, extend_vocabulary, make_model
from mtkit.training.finetuning import FineTuningData, default_learning_rate, make_finetuning
from mtkit.training.freezing import freeze, make_training_model
from mtkit.training.optimizer import make_optimizer
from mtkit.training.validation import EvalSet
from mtkit.translation.loading import load_model, load_weights
from mtkit.translation.translator import Translator


@pytest.fixture
def model(tmp_path: Path, trained: Path) -> Path:
    """A copy of the trained run, which a test may delete."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def start_from(model: Path, config: Path) -> Path:
    """Let a config start from a model, in place of the sections that it takes over."""
    kept = [line for line in tiny.read_lines(config) if not line.startswith(("tokenizer:", "model:"))]
    return tiny.write_lines(config, [f"init: {model}", *kept])


@pytest.fixture
def finetuning(config: Path, trained: Path) -> Path:
    """A config that starts from the trained run."""
    return start_from(trained, config)


SHORT = (
    "training.max_steps=6", "training.keep_last=9", "training.warmup_steps=0", "data.test=[]",
    "validation.every_steps=3", "validation.metrics=[]", "validation.best=loss",
)  # fmt: skip
PLAIN = (*SHORT, "training.ema_decay=0.9", "model.dropout=0.3")
LORA = ("training.lora.rank=4", "training.lora.targets=[q, k, v, out, inner, outer]", "training.lora.alpha=8")
ADAPTED = (
    *SHORT,
    *LORA,
    "training.lora.dropout=0.2",
    "training.ema_decay=0.9",
    "training.learning_rate=0.02",
)


class Finetuned(NamedTuple):
    """A run that starts from the trained one, and what it printed; read-only."""

    run: Path
    out: str


def finetune(folder: Path, trained: Path, corpus: Path, changes: Sequence[str]) -> Finetuned:
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    code, out, err = tiny.mtkit("train", start_from(trained, config), *changes)
    assert (code, err) == (0, "")
    return Finetuned(folder / "run", out)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, trained: Path, corpus: Path) -> Finetuned:
    return finetune(tmp_path_factory.mktemp("finetuned"), trained, corpus, PLAIN)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, trained: Path, corpus: Path) -> Finetuned:
    return finetune(tmp_path_factory.mktemp("adapted"), trained, corpus, ADAPTED)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "model.safetensors")


def test_a_run_starts_from_the_weights_and_tokenizer_of_another(finetuned: Finetuned, trained: Path) -> None:
    run, out = finetuned
    before, first = weights(trained / "best"), weights(tiny.checkpoint(run, 0))
    assert before.keys() == first.keys()
    assert all(torch.equal(before[name], first[name]) for name in before)
    assert (run / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["init"] == str(trained)
    assert (stored["model"]["d_model"], stored["model"]["positions"]) == (32, "rotary")
    assert (stored["model"]["dropout"], stored["tokenizer"]["vocab_size"]) == (0.3, 96)
    assert stored["decoding"]["beam_size"] == 3
    assert tiny.losses(run)[0]["loss"] < 3  # random weights start above 4
    assert "the corpus is too small for" not in out
    assert f"Fine-tuned from {trained}" in (run / "README.md").read_text()


def test_a_run_resumes_without_the_model_that_it_started_from(
    finetuning: Path, finetuned: Finetuned, model: Path, tmp_path: Path
) -> None:
    common = (*PLAIN, f"init={model}")
    assert tiny.mtkit("train", finetuning, *common, "training.max_steps=3")[0] == 0
    shutil.rmtree(model)
    code, out, err = tiny.mtkit("train", finetuning, *common)
    assert (code, err) == (0, ""), err
    assert "resuming from step 3" in out
    whole, resumed = (tiny.tensors(tiny.checkpoint(run, 6)) for run in (finetuned.run, tmp_path / "run"))
    assert whole == resumed
    code, _, err = tiny.mtkit("train", finetuning, *PLAIN, "init=elsewhere")
    assert code == 2 and "init: " in tiny.one_line(err)
    stored = tmp_path / "run/config.yaml"
    assert tiny.mtkit("train", stored, "training.max_steps=7")[0] == 0


def test_show_and_check_know_the_initial_model(finetuning: Path, trained: Path, tmp_path: Path) -> None:
    code, out, _ = tiny.mtkit("config", "show", finetuning)
    assert code == 0 and "  positions: rotary\n" in out
    code, whole, _ = tiny.mtkit("check", finetuning)
    assert code == 0 and f"init       starts from the weights and tokenizers of {trained / 'best'}" in whole
    code, adapters, _ = tiny.mtkit("check", finetuning, "training.lora.rank=1")
    needed = [
        int(re.search(rf"{what} (\d+) kB", out)[1])  # type: ignore[index]
        for out in (whole, adapters)
        for what in ("memory    ", "for checkpoints of")
    ]
    assert code == 0 and needed[2] < needed[0] / 3 and needed[3] < needed[1] / 5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            ["model.d_model=64", "tokenizer.vocab_size=99"],
            2,
            "model.d_model is 32, not 64; tokenizer.vocab_size",
        ),
        (["init=no-such-folder"], 2, "no-such-folder: no such folder"),
        (["init=~nobody-here/x"], 2, "no home folder"),
        (["training.freeze=[encoder.*, decoder.9.*]"], 2, "training.freeze[1]: no parameter has a name like"),
        (["training.freeze=['*']"], 2, "every parameter is frozen"),
    ],
)
def test_mistakes_are_one_line(
    finetuning: Path, tmp_path: Path, changes: list[str], code: int, message: str
) -> None:
    found, _, err = tiny.mtkit("train", finetuning, *changes)
    assert found == code and message in tiny.one_line(err)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_run_does_not_overwrite_the_model_that_it_starts_from(finetuning: Path, model: Path) -> None:
    before = tiny.tree(model)
    for init in (model, model / "best"):
        code, _, err = tiny.mtkit("train", finetuning, f"init={init}", f"run={model}", "--fresh")
        assert code == 2 and tiny.one_line(err)
    assert tiny.tree(model) == before


def test_a_damaged_model_is_refused(finetuning: Path, model: Path, tmp_path: Path) -> None:
    (model / "best/model.safetensors").write_bytes(b"damaged")
    code, _, err = tiny.mtkit("train", finetuning, f"init={model}")
    assert code == 5 and "damaged" in tiny.one_line(err)
    assert not (tmp_path / "run/checkpoints").exists()


# --- frozen parameters --------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_bit_for_bit(finetuning: Path, tmp_path: Path) -> None:
    """A tied matrix is frozen under any of its names; neither weight decay nor the EMA touches it."""
    patterns = "training.freeze=[encoder.*, output.weight, '*.cross.q.bias']"
    decay = ("training.weight_decay=0.5", "training.decay_embeddings=true", "training.ema_decay=0.5")
    code, out, err = tiny.mtkit("train", finetuning, *SHORT, patterns, *decay)
    assert (code, err) == (0, "")
    assert "of them trained" in out
    run = tmp_path / "run"
    first, last = weights(tiny.checkpoint(run, 0)), weights(tiny.checkpoint(run, 6))
    frozen = {name for name in first if name.startswith("encoder.") or "embedding" in name}
    frozen.add("decoder.0.cross.q.bias")
    assert {name for name in first if torch.equal(first[name], last[name])} == frozen
    optimizer = load_tensors(tiny.checkpoint(run, 6) / "optimizer.safetensors")
    moments = {name.partition("/")[2] for name in optimizer if not name.startswith("weight/")}
    assert moments == first.keys() - frozen


def test_the_optimizer_decays_what_it_should(trained: Path) -> None:
    config = load_config(trained / "config.yaml")
    tokenizers = load_tokenizers(trained)
    for decay_embeddings in (False, True):
        model = make_model(config.model, tokenizers)
        freeze(model, ["encoder.*"])
        training = TrainingConfig(weight_decay=0.1, decay_embeddings=decay_embeddings)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decayed, others = (
            {names[id(p)] for p in g["params"]} for g in make_optimizer(model, training).param_groups
        )
        assert not any(name.startswith("encoder.") for name in decayed | others)
        assert ("src_embedding.weight" in decayed) == decay_embeddings
        assert "decoder.0.cross.kv.weight" in decayed and "decoder.0.cross.kv.bias" in others


# --- vocabularies of other toolkits -------------------------------------------------------------------------------


def foreign_model(folder: Path, trained: Path) -> Tokenizers:
    """Write a random model with Marian's vocabulary: ids of its own, the decoder starts with pad, language tags."""
    spm = Tokenizer.load(trained / "tokenizer.model")
    pieces = [spm.piece(i) for i in range(4, spm.num_pieces)]
    vocabulary = Vocabulary(
        ("</s>", "<unk>", ">>fr<<", *pieces, "<pad>"), "<pad>", "<unk>", "<pad>", "</s>", tags=True
    )
    plain = Vocabulary(vocabulary.tokens, "<pad>", "<unk>", "<pad>", "</s>")
    src, tgt = (VocabularyTokenizer(SentencePiece(spm.model), each) for each in (vocabulary, plain))
    tokenizers = Tokenizers(src, tgt, joint=True)
    config = without_training_data(parse_config({
        "run": str(folder),
        "data": {"src": "en", "tgt": "fr", "train": [{"path": "none.tsv"}]},
        "tokenizer": {"vocab_size": src.vocab_size},
        "model": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "norm_position": "post",
                  "output_bias": True},
    }))  # fmt: skip
    torch.manual_seed(1)
    made = make_model(config.model, tokenizers)
    state = {"tokenizers": tokenizers.fingerprint}
    stored = {name: parameter.detach() for name, parameter in made.named_parameters()}
    save_checkpoint(folder, Checkpoint(stored, dump_config(config), state), tokenizers.files())
    return tokenizers


def test_a_model_with_a_vocabulary_of_its_own_is_trained(
    finetuning: Path, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    tokenizers = foreign_model(tmp_path / "foreign", trained)
    tagged = [f">>fr<< {line}" for line in tiny.read_lines(corpus / "train.src")]
    tiny.write_lines(tmp_path / "tagged.src", tagged)
    changes = [f"init={tmp_path / 'foreign'}", f"data.train.0.src={tmp_path / 'tagged.src'}"]
    code, out, err = tiny.mtkit("train", finetuning, *SHORT, *changes)
    assert (code, err) == (0, ""), err
    run = tmp_path / "run"
    assert load_tokenizers(run).fingerprint == tokenizers.fingerprint
    assert load_tokenizers(run).src.encode(tagged[:1])[0][0] == 2
    losses = [line["loss"] for line in tiny.losses(run) if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    translator = Translator.load(run)
    assert translator.tokenizers.tgt.bos == translator.tokenizers.tgt.pad
    assert translator.translate_one("the dog sees a cat .").text
    assert tiny.mtkit("train", finetuning, *SHORT, *changes, "training.max_steps=8")[0] == 0


# --- new tokens ---------------------------------------------------------------------------------------------------


def test_new_tokens_are_appended_with_the_mean_of_the_old_rows(
    finetuning: Path, trained: Path, tmp_path: Path, corpus: Path
) -> None:
    marked = [f"{line} <new>" for line in tiny.read_lines(corpus / "train.src")]
    tiny.write_lines(tmp_path / "marked.src", marked)
    changes = ("tokenizer.add_tokens=[<new>, ünï]", f"data.train.0.src={tmp_path / 'marked.src'}")
    code, _, err = tiny.mtkit("train", finetuning, *SHORT, *changes)
    assert (code, err) == (0, ""), err
    run = tmp_path / "run"
    old, new = load_tokenizers(trained).src, load_tokenizers(run).src
    assert (old.num_pieces, new.num_pieces, new.vocab_size) == (96, 98, 104)
    assert [new.piece(i) for i in range(96)] == [old.piece(i) for i in range(96)]
    ids = new.encode(["the dog <new> ünï"])[0].tolist()
    assert (ids.count(96), ids.count(97)) == (1, 1)
    assert new.decode([ids]) == ["the dog <new> ünï"]
    assert new.encode(["the dog sees"])[0].tolist() == old.encode(["the dog sees"])[0].tolist()
    before, first, last = (
        weights(folder)["src_embedding.weight"]
        for folder in (trained / "best", tiny.checkpoint(run, 0), tiny.checkpoint(run, 6))
    )
    assert torch.equal(first[:96], before)
    torch.testing.assert_close(first[96:], before.mean(dim=0).expand(8, -1))
    assert not torch.allclose(last[96], last[98], atol=1e-3)  # it was trained
    assert tiny.mtkit("train", finetuning, *SHORT, *changes, "training.max_steps=7")[0] == 0
    code, _, err = tiny.mtkit("train", finetuning, *SHORT, *changes[1:])
    assert code == 2 and "tokenizer.add_tokens" in tiny.one_line(err)
    again = (*SHORT, "training.max_steps=1", f"init={run}", f"run={tmp_path / 'again'}")
    assert tiny.mtkit("train", finetuning, *again)[0] == 0  # the tokens are there, and are not added twice
    assert load_tokenizers(tmp_path / "again").fingerprint == load_tokenizers(run).fingerprint


def test_a_vocabulary_of_another_toolkit_takes_new_tokens(
    finetuning: Path, trained: Path, tmp_path: Path
) -> None:
    before = foreign_model(tmp_path / "foreign", trained)
    changes = (f"init={tmp_path / 'foreign'}", "tokenizer.add_tokens=['<new>']", "training.max_steps=1")
    code, _, err = tiny.mtkit("train", finetuning, *SHORT, *changes)
    assert (code, err) == (0, ""), err
    after = load_tokenizers(tmp_path / "run")
    number = before.src.vocab_size
    for side in (after.src, after.tgt):
        assert side.vocab_size == number + 1 and side.encode(["the <new> dog"])[0].tolist().count(number) == 1
    old, new = weights(tmp_path / "foreign"), weights(tiny.checkpoint(tmp_path / "run", 0))
    assert torch.equal(new["src_embedding.weight"][:-1], old["src_embedding.weight"])
    assert torch.equal(new["output.bias"][:-1], old["output.bias"])


def test_ids_after_the_last_piece_move_with_their_rows(trained: Path) -> None:
    """A SentencePiece model without pad has it after its last piece, so new pieces shift its row."""

    class Named:
        def __init__(self, pieces: list[str]) -> None:
            self.num_pieces = self.vocab_size = len(pieces)
            self.piece = pieces.__getitem__

    before, after = (
        Tokenizers(Named(p), Named(p), True) for p in (["a", "b", "<pad>"], ["a", "b", "new", "<pad>"])
    )  # type: ignore[arg-type]
    rows = torch.tensor([[1.0], [2.0], [6.0]])
    extended = extend_vocabulary({"src_embedding.weight": rows}, before, after)
    assert extended["src_embedding.weight"].tolist() == [[1.0], [2.0], [3.0], [6.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["tokenizer.add_tokens=[a b]"], "'a b' is blank, has a space"),
        (["tokenizer.add_tokens=[<s>]"], "'<s>' is a token already"),
        (["tokenizer.add_tokens=[x1, x1]"], "listed twice"),
        (["tokenizer.add_tokens=[x1]", "init=null"], "tokenizer.add_tokens needs init"),
        (["tokenizer.add_tokens=[x1]", "training.lora.rank=2"], "needs trained embeddings"),
    ],
)
def test_mistakes_of_new_tokens_are_one_line(finetuning: Path, changes: list[str], message: str) -> None:
    code, _, err = tiny.mtkit("train", finetuning, *changes)
    assert code == 2 and message in tiny.one_line(err)


# --- mtkit finetune and mixing ------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """A folder with pairs of a client, a validation and a test set next to them, and general pairs elsewhere."""
    folder = tmp_path / "client"
    folder.mkdir()
    for seed, (name, number) in enumerate((("client", 40), ("valid", 12), ("test", 8))):
        lines = [f"{src}\t{tgt}" for src, tgt in tiny.pairs(number, 50 + seed)]
        tiny.write_lines(folder / f"{name}.tsv", lines)
    tiny.write_lines(tmp_path / "general.tsv", [f"{src}\t{tgt}" for src, tgt in tiny.pairs(150, 60)])
    return folder


@pytest.mark.parametrize(
    ("d_model", "rate"), [(1024, 2e-5), (512, 2e-5), (256, 8e-5), (128, 3.2e-4), (32, 5e-4)]
)
def test_small_models_are_fine_tuned_with_higher_rates(d_model: int, rate: float) -> None:
    assert default_learning_rate(d_model) == pytest.approx(rate)


def test_finetune_writes_a_config_and_runs_it(client: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "ft"
    data = ("--data", client / "client.tsv", "--keep", tmp_path / "general.tsv", "-o", run)
    changes = (
        "training.max_epochs=2", "validation.metrics=[bleu]", "training.log_every_steps=1", "training.report=false",
    )  # fmt: skip
    code, out, err = tiny.mtkit("finetune", trained, *data, *changes)
    assert (code, err) == (0, "")
    path = tmp_path / "runs" / "ft.yaml"
    assert out.startswith(f"{path}: 40 pairs and 39 general ones in each of 2 epochs\n")
    text = path.read_text()
    assert text.startswith(f"# en to fr: {trained} fine-tuned on 40 pairs in 2 epochs.")
    made = load_config(path)
    training = made.training
    assert (training.learning_rate, training.weight_decay, training.keep_last) == (5e-4, 0.01, 3)
    assert (training.schedule, training.warmup_steps, training.betas) == ("linear", 0, (0.9, 0.999))
    assert made.data.train_weights == (1.0, 0.26)
    assert made.init == str(trained)
    assert [Path(str(entry.path)).name for entry in (*made.data.valid, *made.data.test)] == [
        "valid.tsv",
        "test.tsv",
    ]
    validated = [line["step"] for line in tiny.records(run, "valid")]
    assert validated == [training.max_steps // 2, training.max_steps]  # type: ignore[operator]
    code, out, err = tiny.mtkit("finetune", trained, *data, *changes)
    assert (code, err) == (0, "") and f"resuming from step {training.max_steps}" in out
    code, _, err = tiny.mtkit("finetune", trained, *data)
    assert code == 2 and "a config of another run" in tiny.one_line(err)
    assert path.read_text() == text


def test_a_few_pairs_get_more_epochs(client: Path, trained: Path, tmp_path: Path) -> None:
    files = FineTuningData([str(client / "client.tsv")])
    made = make_finetuning(str(trained), files, str(tmp_path / "ft"), (), Path)
    assert (made.num_pairs, made.num_kept, made.num_epochs) == (40, 0, 20)
    config = parse_config(yaml.safe_load(made.text))
    assert config.data.train_weights == (1.0,)
    cosine = ("training.schedule=cosine", "training.warmup_steps=3")
    longer = make_finetuning(str(trained), files, str(tmp_path / "ft"), cosine, Path)
    assert parse_config(yaml.safe_load(longer.text)).training.max_steps == config.training.max_steps
    steps = (*cosine, f"training.max_steps={config.training.max_steps}")
    assert make_finetuning(str(trained), files, str(tmp_path / "ft"), steps, Path).num_epochs == 20


def test_the_config_of_a_run_that_cannot_start_is_not_kept(
    client: Path, trained: Path, tmp_path: Path
) -> None:
    """Otherwise the corrected command would be refused: it has another config."""
    arguments = ("--data", client / "client.tsv", "-o", tmp_path / "ft", "training.lora={targets: [nothing]}")
    code, _, err = tiny.mtkit("finetune", trained, *arguments)
    assert code == 2 and "no matrix has a name like 'nothing'" in tiny.one_line(err)
    assert not (tmp_path / "ft.yaml").exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("# mine\n", [], "ft.yaml: not written by `mtkit finetune` (move it away"),
        ("# mine\n", ["--fresh"], "ft.yaml: not written by `mtkit finetune` (move it away"),
        ("# Written by `mtkit finetune`.\n", ["--fresh"], "ft: training would overwrite config.yaml"),
    ],
)
def test_a_run_that_is_refused_keeps_the_file_of_its_config(
    client: Path, trained: Path, tmp_path: Path, text: str, options: list[str], message: str
) -> None:
    for path in (tmp_path / "ft.yaml", tmp_path / "ft" / "config.yaml"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    arguments = ("--data", client / "client.tsv", "-o", tmp_path / "ft", *options)
    code, _, err = tiny.mtkit("finetune", trained, *arguments)
    assert code == 2 and message in tiny.one_line(err)
    assert (tmp_path / "ft.yaml").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-model", "--data", "client/client.tsv", "-o", "ft"], 2, "no-such-model: no such folder"),
        (["model", "--data", "none.tsv", "-o", "ft"], 3, "none.tsv"),
        (["model", "--data", "client/client.tsv", "-o", "ft", "training.nothing=1"], 2, "training.nothing"),
        (["client", "--data", "client/client.tsv", "-o", "ft"], 2, "client: no model of a known format"),
        (
            ["model", "--data", "client/client.tsv", "-o", "ft", "--tag", "a b"],
            2,
            "--tag: 'a b' is blank or has",
        ),
        (["model", "--data", "client/client.tsv", "-o", "ft", "--keep-tag", "<x>"], 2, "needs --keep"),
    ],
)
def test_mistakes_of_finetune_are_one_line(
    client: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, _, err = tiny.mtkit("finetune", *arguments)
    assert found == code and message in tiny.one_line(err)
    assert not (tmp_path / "ft.yaml").exists() and not (tmp_path / "ft").exists()


def test_finetune_puts_tags_before_source_lines(
    client: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = foreign_model(tmp_path / "foreign", trained)
    several_segments = " ".join(src for src, _ in tiny.pairs(30, 70))
    with (client / "test.tsv").open("a") as file:
        file.write(f"{several_segments}\tx\n")
    data = ("--data", client / "client.tsv", "--keep", tmp_path / "general.tsv", "-o", tmp_path / "ft")
    short = (*SHORT[1:3], "training.max_steps=1", "training.report=false")
    tags = ("--tag", ">>fr<<", "--keep-tag", "<general>", *short)
    code, out, err = tiny.mtkit("finetune", tmp_path / "foreign", *data, *tags)
    assert (code, err) == (0, "")
    assert "<general> is not in the vocabulary of the model: it is added as a new token\n" in out
    assert ">>fr<< is not" not in out and "echo '>>fr<< " in out
    made = load_config(tmp_path / "ft.yaml")
    assert made.tokenizer.add_tokens == ("<general>",)
    assert list(made.data.tags.values()) == [">>fr<<", "<general>", ">>fr<<", ">>fr<<"]
    sources = open_sources(made.data.train, made.data, "train")
    corpus = encode_corpus(sources, load_tokenizers(tmp_path / "ft"), made.data)
    tagged = [{*corpus.src(number)[:2].tolist()} & {2, before.src.vocab_size} for number in range(190)]
    assert tagged == [{2}] * 40 + [{before.src.vocab_size}] * 150
    [tested] = json.loads((tmp_path / "ft" / "results.json").read_text())["tests"]
    code, out, err = tiny.mtkit("evaluate", "--model", tmp_path / "ft", "--metric", "chrf", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["scores"][0]["score"] == tested["scores"][1]["score"]
    monkeypatch.setattr("mtkit.cli.finetune.train_and_report", lambda config, *, fresh: None)
    code, _, err = tiny.mtkit("finetune", tmp_path / "foreign", *data, *tags[:2], "-o", tmp_path / "same")
    assert (code, err) == (0, "") and set(load_config(tmp_path / "same.yaml").data.tags.values()) == {tags[1]}


def test_an_unknown_tag_in_a_config_is_refused(finetuning: Path, tmp_path: Path) -> None:
    code, _, err = tiny.mtkit("train", finetuning, "data.valid.0.tag=<2fr>")
    assert code == 2 and "data.valid.0.tag: '<2fr>' is not a single token of the source" in tiny.one_line(err)
    code, _, err = tiny.mtkit("train", finetuning, "init=null", "data.train.0.tag=<2fr>")
    assert code == 2 and "data.train.0.tag is '<2fr>', which is not in tokenizer." in tiny.one_line(err)
    assert not (tmp_path / "run/checkpoints").exists()


def test_the_tag_of_a_test_set_goes_before_each_segment() -> None:
    test = EvalSet("test", ["<2fr> the dog", "", "<2fr> <2fr> x"], ["le chien", "", ""], "<2fr>")
    assert [(request.tag, request.text) for request in test.requests()] == [
        ("<2fr>", "the dog"), ("<2fr>", ""), ("<2fr>", "<2fr> x"),
    ]  # fmt: skip


def test_a_weight_cannot_change_when_a_run_resumes(finetuning: Path) -> None:
    assert tiny.mtkit("train", finetuning, *SHORT, "data.train.0.weight=0.5", "training.max_steps=3")[0] == 0
    code, _, err = tiny.mtkit("train", finetuning, *SHORT, "data.train.0.weight=0.6")
    assert code == 2 and "weights in data.train: [0.5] -> [0.6]" in tiny.one_line(err)
    assert tiny.mtkit("train", finetuning, *SHORT, "data.train.0.weight=0.5")[0] == 0
    code, _, err = tiny.mtkit("train", finetuning, *SHORT, "data.valid.0.weight=0.5")
    assert code == 2 and "only training corpora" in tiny.one_line(err)
    code, _, err = tiny.mtkit("train", finetuning, *SHORT, "data.train.0.weight=0.001", "--fresh")
    assert code == 2 and "less than a pair" in tiny.one_line(err)


# --- LoRA ---------------------------------------------------------------------------------------------------------


def test_adapters_are_trained_alone_and_saved_apart(adapted: Finetuned, trained: Path) -> None:
    run, out = adapted
    assert "of them trained" in out
    for folder in (run / "best", tiny.checkpoint(run, 0), tiny.checkpoint(run, 6)):
        assert (folder / "adapters.safetensors").exists() and not (folder / "model.safetensors").exists()
    base, before = weights(run / "base"), weights(trained / "best")
    assert base.keys() == before.keys() and all(torch.equal(base[name], before[name]) for name in base)
    adapters = load_tensors(tiny.checkpoint(run, 6) / "adapters.safetensors")
    assert len(adapters) == 2 * (6 + 10)  # matrices of an encoder and of a decoder layer
    moments = load_tensors(tiny.checkpoint(run, 6) / "optimizer.safetensors")
    assert {name.partition("/")[2] for name in moments} == adapters.keys()
    sizes = [
        file.stat().st_size for file in (run / "best/adapters.safetensors", run / "base/model.safetensors")
    ]
    assert sizes[0] < sizes[1] / 2
    translated = tiny.mtkit("translate", run / "base", stdin="the dog sees a cat .\n")
    assert translated == tiny.mtkit("translate", trained, stdin="the dog sees a cat .\n")


def test_merged_and_unmerged_models_translate_the_same(adapted: Finetuned, tmp_path: Path) -> None:
    run, merged = adapted.run, tmp_path / "merged"
    code, out, err = tiny.mtkit("merge", run, "-o", merged)
    assert (code, err) == (0, "") and out == f"merged {run / 'best'} into {merged}\n"
    lines = "".join(f"{src}\n" for src, _ in tiny.pairs(30, 9))
    assert tiny.mtkit("translate", run, stdin=lines) == tiny.mtkit("translate", merged, stdin=lines)
    config = load_config(run / "config.yaml")
    assert config.training.lora is not None
    unmerged = make_training_model(config, load_tokenizers(run), torch.float32).eval()
    adapters = load_tensors(run / "best/adapters.safetensors")
    copy_weights(unmerged, weights(run / "base") | adapters, "run")
    _, _, plain = load_model(merged)
    src, tgt = torch.randint(4, 90, (4, 7)), torch.randint(4, 90, (4, 6))
    with torch.inference_mode():
        outputs = [each.logits(each(src, tgt)) for each in (unmerged, plain.eval())]
        base = make_model(config.model, load_tokenizers(run)).eval()
        copy_weights(base, weights(run / "base"), "run")
        change = (base.logits(base(src, tgt)) - outputs[1]).abs().max()
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert change > 0.01
    assert yaml.safe_load((merged / "config.yaml").read_text())["training"]["lora"] is None
    code, _, err = tiny.mtkit("merge", merged, "-o", tmp_path / "twice")
    assert code == 2 and "no adapters to merge" in tiny.one_line(err)
    code, _, err = tiny.mtkit("merge", run, "-o", merged)
    assert code == 2 and "already exists" in tiny.one_line(err)


def test_a_run_with_adapters_resumes_bit_for_bit(
    finetuning: Path, adapted: Finetuned, model: Path, tmp_path: Path
) -> None:
    common = (*ADAPTED, f"init={model}")
    assert tiny.mtkit("train", finetuning, *common, "training.max_steps=3")[0] == 0
    shutil.rmtree(model)
    code, _, err = tiny.mtkit("train", finetuning, *common)
    assert (code, err) == (0, ""), err
    whole, resumed = (tiny.tensors(tiny.checkpoint(run, 6)) for run in (adapted.run, tmp_path / "run"))
    assert whole == resumed
    code, _, err = tiny.mtkit("train", finetuning, *common, "training.lora.rank=5")
    assert code == 2 and "training.lora.rank: 4 -> 5" in tiny.one_line(err)


def test_adapters_need_their_weights(adapted: Finetuned, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(adapted.run, tmp_path / "run"))
    shutil.copytree(run / "best", tmp_path / "alone")
    code, _, err = tiny.mtkit("translate", tmp_path / "alone", stdin="x\n")
    assert code == 5 and "adapters without the weights in base/" in tiny.one_line(err)
    code, _, err = tiny.mtkit("average", run, "--last", "2", "-o", tmp_path / "average")
    assert code == 2 and "LoRA adapters" in tiny.one_line(err)
    shutil.rmtree(run / "base")
    stored = load_checkpoint(trained / "best")
    changed = {name: tensor + 1 for name, tensor in stored.weights.items()}
    save_checkpoint(run / "base", replace(stored, weights=changed))
    code, _, err = tiny.mtkit("translate", run, stdin="x\n")
    assert code == 5 and "not the weights that these adapters were trained for" in tiny.one_line(err)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.lora.targets=[q, qq]"], "training.lora.targets[1]: no matrix has a name like 'qq'"),
        (["training.lora.rank=2", "init=null"], "training.lora needs init"),
        (["training.lora.rank=2", "training.freeze=[encoder.*]"], "lora freezes all weights"),
        (["training.lora.rank=2", "training.average_last=2"], "average_last cannot average"),
        (["training.lora.rank=0"], "training.lora.rank"),
    ],
)
def test_mistakes_of_lora_are_one_line(finetuning: Path, changes: list[str], message: str) -> None:
    code, _, err = tiny.mtkit("train", finetuning, *changes)
    assert code == 2 and message in tiny.one_line(err)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["freeze", "lora"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_start_from_the_same_model(
    finetuning: Path, tmp_path: Path, parallel: str, method: str
) -> None:
    """Two processes learn what one does, up to the order of sums, with frozen parameters and adapters too."""
    import subprocess

    settings = ["training.freeze=['encoder.*']"] if method == "freeze" else [*LORA]
    common = [*SHORT, *settings, "training.precision=fp32", "model.dropout=0.0"]
    assert tiny.mtkit("train", finetuning, *common, f"run={tmp_path / 'one'}")[0] == 0
    overrides = [*common, f"run={tmp_path / 'two'}", f"training.parallel={parallel}"]
    command = tiny.torchrun(2, "train", finetuning, *overrides)
    done = subprocess.run(command, env=tiny.child_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (load_weights(tiny.checkpoint(tmp_path / run, 6)) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=0)
    frozen = "encoder.0.attention.qkv.weight" if method == "freeze" else "src_embedding.weight"
    assert torch.equal(one[frozen], two[frozen])


def test_freezing_takes_patterns(trained: Path) -> None:
    model = make_model(load_config(trained / "config.yaml").model, load_tokenizers(trained))
    with pytest.raises(ConfigError, match=r"training\.freeze\[0\]"):
        freeze(model, ["encoder"])
    assert load_checkpoint(trained / "best").weights.keys() == dict(model.named_parameters()).keys()


def test_files_without_a_pair_that_is_left(trained: Path, corpus: Path, tmp_path: Path) -> None:
    new = tmp_path / "en-de.tsv"
    tiny.write_lines(new, [f"{'word ' * 400}\t{'Wort ' * 400}"] * 3)
    general = tmp_path / "general.en-de.tsv"
    tiny.write_lines(general, [f"{src}\t{tgt}" for src, tgt in tiny.pairs(50, 1)])
    files = FineTuningData([str(new)], [str(general)])
    with pytest.raises(DataError, match="no pair is left"):
        make_finetuning(str(trained), files, str(tmp_path / "ft"), (), Path)


def test_epochs_are_those_of_both_directions(trained: Path, corpus: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.en-fr.tsv"
    tiny.write_lines(new, [f"{src}\t{tgt}" for src, tgt in tiny.pairs(200, 1)])
    files, run = FineTuningData([str(new)]), str(tmp_path / "ft")
    reverse, first = "data.reverse=true", "data.reverse_epochs=1"
    once, both, mixed = (
        make_finetuning(str(trained), files, run, overrides, Path)
        for overrides in ((), (reverse,), (reverse, first, "training.max_epochs=4"))
    )
    num_steps = [yaml.safe_load(made.text)["training"]["max_steps"] for made in (once, both, mixed)]
    per_epoch = [num_steps[0] // once.num_epochs, num_steps[1] // both.num_epochs]
    assert per_epoch[1] == pytest.approx(2 * per_epoch[0], rel=0.2)
    assert num_steps[2] == per_epoch[1] + 3 * per_epoch[0]
