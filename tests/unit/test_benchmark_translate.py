"""The comparison with CTranslate2 compares the same work; tested without CTranslate2 itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_translator import make, sentences

from mtkit.benchmark import translate as benchmark_module
from mtkit.benchmark.peers import check_comparable, ctranslate2_system
from mtkit.benchmark.settings import Candidate, Output, Setting, fastest_setting, layouts
from mtkit.benchmark.translate import benchmark_translate
from mtkit.errors import ConfigError
from mtkit.interop.ctranslate2_engine import load_ctranslate2
from mtkit.model.cuda_graphs import without_graphs
from mtkit.search.buckets import Buckets
from mtkit.translation.options import DEFAULT_OPTIONS
from mtkit.translation.segments import Request


class Recorder:
    """Stands for CTranslate2: records what it is given and answers with one repeated token."""

    def __init__(self, piece: str, times: int) -> None:
        self.hypothesis = [piece] * times

    def unload_model(self) -> None:
        """Do nothing."""

    def translate_batch(self, sources: list[list[str]], **options: Any) -> list[Any]:
        self.sources, self.options = sources, options
        return [SimpleNamespace(hypotheses=[self.hypothesis]) for _ in sources]


def test_it_gets_the_same_segments_of_long_lines() -> None:
    translator = make(max_source_tokens=6, coverage_penalty=0.2, no_repeat_ngram=3, min_pieces=2)
    long_line = "the old man sees a bird and my sister hears children in houses, the man sees a bird."
    lines = ["a bird", "", long_line]
    tgt = translator.tokenizers.tgt
    piece = tgt.piece(int(tgt.encode(["Vogel"])[0][-1]))
    other = Recorder(piece, 3)
    output = ctranslate2_system(other, translator, Setting(2, 1, 512, "tokens")).translate(lines)
    segmented = translator.segmenter.segment_lines([Request(line) for line in lines])
    src = translator.tokenizers.src
    assert other.sources == [
        [src.piece(i) for i in segment.ids] for line in segmented for segment in line.segments
    ]
    assert len(other.sources) > 3 and max(map(len, other.sources)) <= 6
    [one] = tgt.decode([tgt.encode(["Vogel"])[0][-1:].tolist() * 3])
    assert output.hyps == [one, "", " ".join([one] * len(segmented[2].segments))]
    wanted: dict[str, Any] = {"coverage_penalty": 0.2, "no_repeat_ngram_size": 3, "min_decoding_length": 2}
    wanted |= {"max_batch_size": 512, "batch_type": "tokens"}
    assert wanted.items() <= other.options.items()
    assert other.options["max_decoding_length"] == translator.decoding.max_length(
        max(map(len, other.sources))
    )


def test_its_translations_get_the_case_of_the_line() -> None:
    translator = make()
    tgt = translator.tokenizers.tgt
    token = int(tgt.encode(["Vogel"])[0][-1])
    other = ctranslate2_system(Recorder(tgt.piece(token), 1), translator, Setting(1, 1, 8))
    [text] = tgt.decode([[token]])
    assert other.translate(["the old man", "THE OLD MAN"]).hyps == [text, text.upper()] != [text, text]


def test_a_command_that_fails_has_no_first_translation() -> None:
    fails, works = ("", "print(input())")
    assert benchmark_module._seconds_to_first([sys.executable, "-c", fails], ["a"]) is None
    assert benchmark_module._seconds_to_first([sys.executable, "-c", works], ["a"])


def test_translations_over_the_length_limit_are_counted() -> None:
    translator = make(max_length_ratio=1.0, max_length_extra=0)
    lines = ["a bird", " ".join(sentences(3)), "a bird", ""]
    tgt = translator.tokenizers.tgt
    piece = tgt.piece(int(tgt.encode(["Vogel"])[0][-1]))
    longest = len(translator.tokenizers.src.encode(["a bird"])[0])
    for times, expected in ((longest, 0), (longest + 1, 2), (10**4, 3)):
        assert (
            ctranslate2_system(Recorder(piece, times), translator, Setting(1, 1, 8))
            .translate(lines)
            .num_over_limit
            == expected
        )


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"sample": True}, "sample"),
        ({"mbr": "chrf"}, "mbr"),
        ({"groups": 3}, "groups"),
        ({"stop": "certain"}, "stop"),
        ({"penalty_kind": "gnmt"}, "penalty_kind"),
    ],
)
def test_unsupported_search_settings_are_errors(keys: Any, where: str) -> None:
    alike = {"stop": "finished", "penalty_kind": "simple"}
    check_comparable(make(**alike))
    with pytest.raises(ConfigError) as caught:
        check_comparable(make(**(alike | keys)))
    assert caught.value.where == f"decoding.{where}"


def test_it_runs_on_the_same_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[dict[str, Any]] = []
    package = SimpleNamespace(
        get_supported_compute_types=lambda device: {"float16"},
        Translator=lambda folder, **options: loaded.append(options),
    )
    monkeypatch.setattr("mtkit.interop.ctranslate2_engine.import_ctranslate2", lambda: package)
    load_ctranslate2(Path("model"), "float16", torch.device("cuda:1"))
    load_ctranslate2(Path("model"), "float16", torch.device("cpu"))
    assert [(options["device"], options["device_index"]) for options in loaded] == [("cuda", 1), ("cpu", 0)]


def test_memory_is_measured_after_all_lines_were_translated_with_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translator = make(beam_size=1, max_length_ratio=0.1, max_length_extra=1)
    lines = sentences(520, longest=2)
    events: list[Any] = []
    translate = translator.translate

    def recording(given: Any, options: Any = DEFAULT_OPTIONS) -> Any:
        events.append((len(given), options.parallelism.num_workers))
        return translate(given, options)

    translator.translate = recording  # type: ignore[method-assign]
    monkeypatch.setattr(benchmark_module, "peak_memory", lambda device: events.append("memory") or 2**20)
    config: Any = SimpleNamespace(data=SimpleNamespace(tgt="de"))
    report = benchmark_translate("model", lines, None, lambda: (translator, config), rounds=1)
    assert (520, "auto") in events[: events.index("memory")]
    assert report.peak_memory_mb == 1.0


def test_stages_are_timed_without_graphs() -> None:
    translator = make(beam_size=1, max_length_ratio=0.1, max_length_extra=1)
    buckets = translator.ensemble.buckets = Buckets([translator.model], without_graphs)
    seen: list[object] = []
    encode = translator.model.encode

    def recording(*arguments: Any) -> Any:
        seen.append(translator.ensemble.buckets)
        return encode(*arguments)

    translator.model.encode = recording  # type: ignore[method-assign]
    config: Any = SimpleNamespace(data=SimpleNamespace(tgt="de"))
    lines = sentences(3, longest=2)
    report = benchmark_translate("model", lines, None, lambda: (translator, config), rounds=1)
    assert None in seen and translator.ensemble.buckets is buckets
    assert any(line.startswith("time without CUDA graphs: encode") for line in report.lines())


def test_the_fastest_setting_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers first, then batches; every system that was made is closed again."""
    now, alive, tried = [0.0], set[Setting](), list[Setting]()
    monkeypatch.setattr("mtkit.benchmark.settings.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Fake:
        def __init__(self, setting: Setting) -> None:
            self.setting = setting
            alive.add(setting)
            tried.append(setting)

        def translate(self, lines: Any) -> Output:
            setting = self.setting
            is_best = (setting.batch_size, setting.batch_type) == (1024, "tokens")
            now[0] += (
                8 / setting.num_workers + abs((setting.batch_size or 0) - 64) / 64 * (not is_best) - is_best
            )
            return Output(list(lines))

        def close(self) -> None:
            alive.remove(self.setting)

    assert list(layouts(1)) == [(1, 1)]
    assert list(layouts(8)) == [(1, 8), (2, 4), (4, 2), (8, 1)]
    lines = sentences(300)
    best = fastest_setting(Candidate("CTranslate2 int8", Fake), lines, 4)
    assert (best, alive) == (Setting(4, 1, 64), set())
    assert {(setting.num_workers, setting.num_threads) for setting in tried} == {(1, 4), (2, 2), (4, 1)}
    assert str(best) == "4 workers x 1 thread, batches of 64 sentences"
    best = fastest_setting(Candidate("CTranslate2 int8", Fake, (512, 1024)), lines, 1)
    assert str(best) == "1 worker x 1 thread, batches of 1,024 tokens"
    assert str(Setting(2, 1)) == "2 workers x 1 thread"
