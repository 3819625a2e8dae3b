"""Damaged and malicious checkpoints: each is detected, none is executed, and the previous checkpoint is used."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch

import mtkit
from mtkit import checkpoint as checkpoint_module
from mtkit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, verify_checkpoint
from mtkit.errors import StorageError
from mtkit.files import sha256_file
from mtkit.training.resume import find_resumable

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "manifest.json")
OPTIONS = ["training.max_steps=12", "validation.every_steps=6", "training.keep_last=100", "data.test=[]"]
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run with checkpoints of steps 0, 6 and 12; read-only."""
    folder = tmp_path_factory.mktemp("damage")
    config = tiny.write_config(folder / "config.yaml", run=folder / "run", root=corpus)
    mtkit.train(mtkit.load_config(config, OPTIONS))
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return shutil.copytree(run, tmp_path / "run")


def rewrite_manifest(folder: Path) -> None:
    """Make the manifest match the files, as someone hiding a change would."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in folder.iterdir()
        if path.name != "manifest.json" and path.is_file()
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


# --- damage -------------------------------------------------------------------------------------------------------


def changed(change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file."""

    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def flipped(place: float) -> Damage:
    """Flip a bit at a position between 0.0 and 1.0 of the file."""

    def flip(data: bytes) -> bytes:
        content = bytearray(data)
        content[min(int(place * len(content)), len(content) - 2)] ^= 0x10
        return bytes(content)

    return changed(flip)


def replaced(make: Callable[[Path], object]) -> Damage:
    """Put something else in place of a file."""

    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def other_name(path: Path) -> Path:
    """Return the next file of the same checkpoint."""
    return path.with_name(FILES[(FILES.index(path.name) + 1) % len(FILES)])


def swap(path: Path) -> None:
    """Swap a file with the next one."""
    a, b = path.read_bytes(), other_name(path).read_bytes()
    path.write_bytes(b)
    other_name(path).write_bytes(a)


DAMAGES: dict[str, Damage] = {
    "half": changed(lambda data: data[: len(data) // 2]),
    "one-byte-less": changed(lambda data: data[:-2]),
    "emptied": changed(lambda data: b""),
    "zeroed": changed(lambda data: bytes(len(data))),
    "appended": changed(lambda data: data + b"x"),
    "doubled": changed(lambda data: data + data),
    "flipped-first": flipped(0.0),
    "flipped-third": flipped(0.33),
    "flipped-two-thirds": flipped(0.67),
    "flipped-last": flipped(1.0),
    "missing": lambda path: path.unlink(),
    "a-folder": replaced(lambda path: path.mkdir()),
    "a-pipe": replaced(lambda path: os.mkfifo(path)),
    "a-link-to-nothing": replaced(lambda path: path.symlink_to("nothing")),
    "a-link-to-itself": replaced(lambda path: path.symlink_to(path.name)),
    "a-link-to-another": replaced(lambda path: path.symlink_to(other_name(path).name)),
    "swapped": swap,
}
OF_THE_OTHER = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def edited(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the manifest as JSON; the function may return a replacement."""

    def edit(path: Path) -> None:
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(change(manifest) or manifest))

    return edit


EDITS: dict[str, Damage] = {
    "format": edited(lambda m: m.update(format=2)),
    "no-format": edited(lambda m: m.pop("format") and None),
    "no-files": edited(lambda m: m.update(files={})),
    "a-list-of-files": edited(lambda m: m.update(files=sorted(m["files"]))),
    "a-list": edited(lambda m: [m]),
    "no-weights": edited(lambda m: m["files"].pop("model.safetensors") and None),
    "no-optimizer": edited(lambda m: m["files"].pop("optimizer.safetensors") and None),
    "one-more-file": edited(lambda m: m["files"].update(more=m["files"]["state.json"])),
    "a-file-above": edited(lambda m: m["files"].update({"../../config.yaml": m["files"]["config.yaml"]})),
    "a-name-with-nul": edited(lambda m: m["files"].update({"a\0b": None})),
    "size": edited(lambda m: m["files"]["state.json"].update(bytes=1)),
    "hash": edited(lambda m: m["files"]["state.json"].update(sha256="0" * 64)),
    "an-entry-is-null": edited(lambda m: m["files"].update({"state.json": None})),
    "deep": changed(lambda data: b"[" * 100_000),
    "a-huge-number": changed(lambda data: b'{"format": 1' + b"0" * 5000 + b"}"),
    "utf-16": changed(lambda data: data.decode().encode("utf-16")[1:]),
}


def of_another_step(path: Path) -> None:
    """Replace the whole checkpoint with that of step 6."""
    shutil.rmtree(path.parent)
    shutil.copytree(path.parent.with_name("step-00000006"), path.parent)


CASES = [
    *(pytest.param(name, damage, id=f"{name}-{kind}") for kind, damage in DAMAGES.items() for name in FILES),
    *(pytest.param("manifest.json", damage, id=f"manifest-{kind}") for kind, damage in EDITS.items()),
    pytest.param("manifest.json", of_another_step, id="checkpoint-of-another-step"),
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_every_damage_is_found_and_the_checkpoint_before_stands_in(
    copy: Path, name: str, damage: Damage
) -> None:
    newest, before = tiny.checkpoint(copy, 12), tiny.checkpoint(copy, 6)
    damage(newest / name)
    with pytest.raises(StorageError) as caught:
        load_checkpoint(newest, with_optimizer=True)
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(str(newest))
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    said: list[str] = []
    config = mtkit.load_config(before / "config.yaml", [f"run={copy}"])
    _, checkpoint = find_resumable(config, said.append)
    assert checkpoint is not None
    assert checkpoint.state["step"] == 6
    assert said == [f"skipping a damaged checkpoint: {caught.value}"]


@pytest.mark.parametrize("name", OF_THE_OTHER)
def test_a_file_of_another_step_is_found(copy: Path, name: str) -> None:
    shutil.copy(tiny.checkpoint(copy, 6) / name, tiny.checkpoint(copy, 12) / name)
    with pytest.raises(StorageError, match="damaged"):
        load_checkpoint(tiny.checkpoint(copy, 12))


def test_a_run_that_goes_on_hashes_each_file_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def sha256(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr(checkpoint_module, "sha256_file", sha256)
    newest = tiny.checkpoint(copy, 12)
    assert find_resumable(mtkit.load_config(newest / "config.yaml", [f"run={copy}"]), print)[1] is not None
    assert sorted(hashed) == sorted(path for path in newest.iterdir() if path.name != "manifest.json")


def test_a_checkpoint_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As best/ of a run that goes on training."""
    folder = tmp_path / "best"
    save_checkpoint(folder, Checkpoint({"a": torch.zeros(2)}, "run: x\n", {"step": 3}))
    num_saved = 0

    def sha256(path: Path) -> str:
        nonlocal num_saved
        if num_saved == 0:
            num_saved += 1
            save_checkpoint(folder, Checkpoint({"a": torch.ones(2)}, "run: x\n", {"step": 6}))
        return sha256_file(path)

    monkeypatch.setattr(checkpoint_module, "sha256_file", sha256)
    found = load_checkpoint(folder)
    assert found.state["step"] == 6 and found.weights["a"].tolist() == [1.0, 1.0]


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000003"
    save_checkpoint(folder, Checkpoint({"a": torch.ones(2)}, "run: x\n", {"step": 3}))
    path = folder / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content) - 1):  # the last is the end of the line
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(StorageError):
                verify_checkpoint(folder)
    path.write_bytes(content)
    verify_checkpoint(folder)


def test_flipped_bits_anywhere(copy: Path) -> None:
    folder, rng = tiny.checkpoint(copy, 12), random.Random(5)
    for name in FILES[:-1]:
        path = folder / name
        content = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(StorageError, match=f"{name}: damaged"):
                verify_checkpoint(folder)
        path.write_bytes(content)


def test_a_link_to_the_same_content_is_no_damage(copy: Path, tmp_path: Path) -> None:
    """Users may keep large files on another disk."""
    path = tiny.checkpoint(copy, 12) / "model.safetensors"
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    verify_checkpoint(path.parent)


def test_weights_with_a_fitting_manifest_are_read_strictly(tmp_path: Path) -> None:
    """Whatever bit is flipped before the manifest is written, the result is tensors or a one-line error."""
    folder = tmp_path / "folder"
    save_checkpoint(folder, Checkpoint({"a": torch.ones(3), "b": torch.ones(2, 2)}, "run: x\n"))
    path = folder / "model.safetensors"
    content = path.read_bytes()
    outcomes = set()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        rewrite_manifest(folder)
        try:
            load_checkpoint(folder)
            outcomes.add("read")
        except StorageError as error:
            outcomes.add(error.what)
    assert outcomes == {"read", "damaged, or not a safetensors file"}


# --- malice -------------------------------------------------------------------------------------------------------


class Payload:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def torch_saved(payload: Payload, zipped: bool) -> bytes:
    out = io.BytesIO()
    torch.save({"model": payload}, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def in_a_tar(payload: Payload) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        data = pickle.dumps(payload)
        entry = tarfile.TarInfo("pickle")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def behind_a_header(payload: Payload) -> bytes:
    """Return bytes that begin like a safetensors file and go on with the pickled payload."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + pickle.dumps(payload)


def in_an_array(payload: Payload) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([payload], dtype=object), allow_pickle=True)
    return out.getvalue()


def as_json(payload: Payload) -> bytes:
    reduce = {"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [str(payload.path)]}]}
    return json.dumps({"__reduce__": ["os.mkdir", [str(payload.path)]], **reduce}).encode()


def as_yaml(payload: Payload) -> bytes:
    return f"run: !!python/object/apply:os.mkdir ['{payload.path}']\ndata: {{}}\n".encode()


def among_metadata(payload: Payload) -> bytes:
    """Return a valid safetensors file with the pickled payload in its metadata."""
    metadata = {"pickle": pickle.dumps(payload, protocol=0).decode()}
    return safetensors.torch.save({"weight": torch.ones(2)}, metadata)


VARIANTS: dict[str, Callable[[Payload], bytes]] = {
    "pickle-0": lambda payload: pickle.dumps(payload, protocol=0),
    "pickle-2": lambda payload: pickle.dumps(payload, protocol=2),
    "pickle-4": lambda payload: pickle.dumps(payload, protocol=4),
    "pickle-5": lambda payload: pickle.dumps(payload, protocol=5),
    "torch-zip": lambda payload: torch_saved(payload, zipped=True),
    "torch-legacy": lambda payload: torch_saved(payload, zipped=False),
    "tar": in_a_tar,
    "safetensors-like": behind_a_header,
    "safetensors-metadata": among_metadata,
    "numpy": in_an_array,
    "json": as_json,
    "yaml": as_yaml,
    "gzip": lambda payload: gzip.compress(pickle.dumps(payload)),
    "zlib": lambda payload: zlib.compress(pickle.dumps(payload)),  # as joblib does
}
QUICK_VARIANTS = {"pickle-4", "torch-zip", "torch-legacy", "safetensors-like", "json", "gzip"}


def test_the_payload_would_run(tmp_path: Path) -> None:
    """Show that the tests below can fail."""
    pickle.loads(VARIANTS["pickle-4"](Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[] if name in QUICK_VARIANTS else pytest.mark.slow) for name in VARIANTS],
)
@pytest.mark.parametrize(
    "fitting", [pytest.param(False, marks=pytest.mark.slow), True], ids=["alone", "with-manifest"]
)
def test_a_malicious_file_is_refused(copy: Path, tmp_path: Path, variant: str, fitting: bool) -> None:
    """The file is refused under every name in a checkpoint, by everything that reads one."""
    ran = tmp_path / "ran"
    data = VARIANTS[variant](Payload(ran))
    shutil.rmtree(copy / "best")
    for step in (0, 6):
        shutil.rmtree(tiny.checkpoint(copy, step))
    folder = tiny.checkpoint(copy, 12)
    config = folder / "config.yaml"
    shutil.copy(config, tmp_path / "config.yaml")
    for name in (*FILES, "tokenizer.model"):
        path = copy / name if name == "tokenizer.model" else folder / name
        before = {file: file.read_bytes() for file in (path, folder / "manifest.json")}
        path.write_bytes(data)
        if fitting and name != "manifest.json":
            rewrite_manifest(folder)
        commands: list[list[object]] = [["train", tmp_path / "config.yaml", f"run={copy}", *OPTIONS]]
        alien_state = variant == "json" and name == "state.json" and fitting  # JSON that no translator needs
        if name != "optimizer.safetensors" and not alien_state:
            commands.append(["translate", copy])
            commands.append(["translate", folder])
        for command in commands:
            code, out, err = tiny.mtkit(*command, stdin="a dog .\n")
            assert code == 5, (name, command, out, err)
            assert str(copy) in tiny.one_line(err) or alien_state
            assert not ran.exists(), (name, command)
        for file, content in before.items():
            file.write_bytes(content)
    assert tiny.mtkit("translate", copy, stdin="a dog .\n")[0] == 0


def test_a_malicious_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for variant, make in VARIANTS.items():
        path.write_bytes(make(Payload(tmp_path / "ran")))
        for command in ("train", "check"):
            code, _, err = tiny.mtkit(command, path)
            assert code == 2, variant
            assert "Traceback" not in err
    assert not (tmp_path / "ran").exists()


UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
}
UNSAFE_CALLS = {
    "torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load", "yaml.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip


def test_the_package_reads_no_pickle() -> None:
    package = Path(mtkit.__file__).parent
    exceptions = (
        package / "interop" / "pickles.py",  # see the next test
        package
        / "translation"
        / "workers.py",  # what a process and its own forks send each other through a pipe
    )
    for path in package.rglob("*.py"):
        if path in exceptions:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & UNSAFE_MODULES, path
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert module.split(".")[0] not in UNSAFE_MODULES, path
                assert not {f"{module}.{alias.name}" for alias in node.names} & UNSAFE_CALLS, path
            elif isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in UNSAFE_CALLS, f"{path}:{node.lineno}"
            elif isinstance(node, ast.keyword):
                refused = isinstance(node.value, ast.Constant) and node.value.value is False
                assert node.arg != "weights_only", path
                assert node.arg != "allow_pickle" or refused, path


def test_files_of_torch_save_are_read_without_running_code() -> None:
    """Models of other toolkits are read by `torch.load(weights_only=True)` alone (see test_pickles.py)."""
    text = (Path(mtkit.__file__).parent / "interop" / "pickles.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert loads
    for call in loads:
        (weights_only,) = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
        assert isinstance(weights_only, ast.Constant) and weights_only.value is True
    for call in calls:
        name = ast.unparse(call.func)
        assert name not in {"pickle.load", "pickle.loads", "pickle.Unpickler", "Unpickler", "eval", "exec"}, (
            name
        )
