"""The whole analysis of a test set: scores of its parts, kinds of errors, single sentences, overlap with training.

What is counted, and how, is in `mtkit.evaluation.analysis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtkit.errors import DataError
from mtkit.evaluation import analysis
from mtkit.evaluation.analysis import Group, Link, SentenceDifference, Share, Streams, WordGroup
from mtkit.evaluation.metrics import Score, score, score_sentences
from mtkit.evaluation.overlap import Overlap
from mtkit.translation.numbers import has_number, required_numbers

_SENTENCE_METRIC = "chrf"


@dataclass(frozen=True)
class SystemBreakdown:
    """Analysis of one system.

    Attributes:
        name: name of the system.
        by_length: score of each group of sentences of similar length.
        by_label: score of each group of sentences with the same label.
        words: agreement with the references by frequency in training; empty if training is not known.
        length_ratio: words of the translations over those of the references.
        errors: shares by the name of the error; those that need what is not there are left out.
        unseen_score: score of the sentences that are not in training with a reference of theirs; None if all or none
            are, or training is not known.
        sentences: chrF of each sentence.
        ahead: sentences on which it is most ahead of the first system.
        behind: sentences on which it is most behind the first system.
    """

    name: str
    by_length: list[float]
    by_label: list[float]
    words: list[WordGroup]
    length_ratio: Share
    errors: dict[str, Share]
    unseen_score: float | None
    sentences: list[float]
    ahead: list[SentenceDifference]
    behind: list[SentenceDifference]


@dataclass(frozen=True)
class Breakdown:
    """Analysis of a test set.

    Attributes:
        metric: name and signature of the score of groups.
        sentence_metric: name and signature of the score of sentences.
        lengths: groups of sentences by length in words.
        labels: groups of sentences by label; empty if there are no labels.
        overlap: overlap with training; None if training is not known.
        systems: analysis of each system.
    """

    metric: str
    sentence_metric: str
    lengths: list[Group]
    labels: list[Group]
    overlap: Overlap | None
    systems: list[SystemBreakdown]

    def as_dict(self, num_sentences: int) -> dict[str, Any]:
        """Return the analysis for JSON.

        Args:
            num_sentences: the most sentences in the lists of best and worst. Sentences are numbered from 1.
        """
        return {
            "metric": self.metric,
            "sentence_metric": self.sentence_metric,
            "overlap": None if self.overlap is None else _overlap_as_dict(self.overlap),
            "systems": [self._system_as_dict(system, num_sentences) for system in self.systems],
        }

    def _system_as_dict(self, system: SystemBreakdown, num_sentences: int) -> dict[str, Any]:
        ranked = analysis.rank_sentences(system.sentences)

        def group_scores(groups: list[Group], scores: list[float]) -> list[dict[str, Any]]:
            return [
                {"group": group.label, "sentences": len(group.sentences), "score": value}
                for group, value in zip(groups, scores, strict=True)
            ]

        def listed(indices: list[int]) -> list[dict[str, Any]]:
            return [{"sentence": index + 1, "score": system.sentences[index]} for index in indices]

        def differences(found: list[SentenceDifference]) -> list[dict[str, Any]]:
            return [{"sentence": each.sentence + 1, "difference": each.value} for each in found]

        return {
            "name": system.name,
            "by_length": group_scores(self.lengths, system.by_length),
            "by_label": group_scores(self.labels, system.by_label),
            "by_frequency": [
                {
                    "group": group.label,
                    "in_references": group.num_ref,
                    "in_translations": group.num_hyp,
                    "matched": group.num_matched,
                    "f1": group.f1,
                }
                for group in system.words
            ],
            "length_ratio": system.length_ratio.as_dict(),
            "errors": {name: share.as_dict() for name, share in system.errors.items()},
            "score_outside_training": system.unseen_score,
            "best": listed(ranked[:num_sentences]),
            "worst": listed(ranked[::-1][:num_sentences]),
            "ahead": differences(system.ahead),
            "behind": differences(system.behind),
        }


def break_down(
    systems: Mapping[str, Sequence[str]],
    refs: Streams,
    *,
    srcs: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    alignments: Mapping[str, Sequence[Sequence[Link]]] | None = None,
    overlap: Overlap | None = None,
    metric: str = "chrf++",
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt: str | None = None,
    num_sentences: int = 5,
) -> Breakdown:
    """Analyze what systems made of a test set.

    Args:
        systems: translations of each system by its name, the baseline's first.
        refs: references.
        srcs: source sentences, if they are known.
        labels: a label of each sentence, such as its domain.
        alignments: links between the words of source and translation, for systems that have them.
        overlap: overlap with training, if training is known.
        metric: metric of the groups; see `mtkit.evaluation.metrics.score`, as for the next three.
        tokenize: tokenizer for BLEU.
        lowercase: whether to ignore case.
        tgt: code of the target language.
        num_sentences: the most sentences on which a system is ahead of the first, or behind.

    Raises:
        ConfigError: If the metric is unknown.
        DataError: If streams differ in length.
    """
    for what, lines in [("sources", srcs), ("labels", labels)]:
        if lines is not None and len(lines) != len(refs[0]):
            raise DataError(f"{len(refs[0])} references but {len(lines)} {what}")
    lengths = analysis.group_by_length(analysis.first_references(refs))
    label_groups = [] if labels is None else analysis.group_by_label(labels)

    def score_of(hyps: Sequence[str], sentences: Sequence[int]) -> Score:
        [found] = score(
            [hyps[index] for index in sentences],
            [[stream[index] for index in sentences] for stream in refs],
            [metric],
            tokenize=tokenize,
            lowercase=lowercase,
            tgt=tgt,
        )
        return found

    seen = set(overlap.pairs.sentences) if overlap is not None else set[int]()
    unseen = [index for index in range(len(refs[0])) if index not in seen]
    found: list[SystemBreakdown] = []
    for name, hyps in systems.items():
        [by_sentence] = score_sentences(hyps, refs, [_SENTENCE_METRIC], tgt=tgt)
        baseline = found[0].sentences if found else by_sentence.values
        ahead, behind = analysis.largest_differences(baseline, by_sentence.values, num_sentences)
        found.append(
            SystemBreakdown(
                name=name,
                by_length=[score_of(hyps, group.sentences).value for group in lengths],
                by_label=[score_of(hyps, group.sentences).value for group in label_groups],
                words=[] if overlap is None else analysis.words_by_frequency(hyps, refs, overlap.counts),
                length_ratio=analysis.length_ratio(hyps, refs),
                errors=_errors(srcs, hyps, refs, (alignments or {}).get(name)),
                unseen_score=score_of(hyps, unseen).value if seen and unseen else None,
                sentences=by_sentence.values,
                ahead=ahead,
                behind=behind,
            )
        )
    whole = score_of(next(iter(systems.values())), range(len(refs[0])))
    return Breakdown(
        f"{whole.name}|{whole.signature}",
        f"{by_sentence.name}|{by_sentence.signature}",
        lengths,
        label_groups,
        overlap,
        found,
    )


def _errors(
    srcs: Sequence[str] | None,
    hyps: Sequence[str],
    refs: Streams,
    alignment: Sequence[Sequence[Link]] | None,
) -> dict[str, Share]:
    """Return the share of each kind of error."""
    errors = {"repeated bigrams": analysis.repetitions(hyps, refs)}
    if srcs is None:
        return errors
    errors["copied source words"] = analysis.copied_words(srcs, hyps, refs)
    errors["copied lines"] = analysis.copied_lines(srcs, hyps, refs)
    if alignment is not None:
        errors["unaligned source words"] = analysis.unaligned_words(srcs, alignment)
    for name, find, has in [
        ("lost numbers", required_numbers, has_number),
        ("lost names", analysis.find_names, analysis.has_word),
        ("lost web addresses", analysis.find_urls, analysis.has_text),
    ]:
        errors[name] = analysis.lost_items(srcs, hyps, refs, find, has)
    return errors


def _overlap_as_dict(overlap: Overlap) -> dict[str, Any]:
    return {
        "training_pairs": overlap.num_pairs,
        "sources": overlap.sources.as_dict(),
        "targets": overlap.targets.as_dict(),
        "pairs": overlap.pairs.as_dict(),
        "ngram_words": overlap.ngram_words,
        "source_ngrams": overlap.source_ngrams.as_dict(),
        "target_ngrams": overlap.target_ngrams.as_dict(),
    }
