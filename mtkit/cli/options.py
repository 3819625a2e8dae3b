"""Arguments and options that more than one command has, and the many of `mtkit translate`, each with its help."""

from __future__ import annotations

from typing import Annotated

import typer

# --- of several commands ------------------------------------------------------------------------------------------

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file; `-` is stdin.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replace keys, for example `training.max_steps=100`."),
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")]
Ensemble = Annotated[
    list[str] | None,
    typer.Option(help="A further model with the same vocabulary, whose vote counts too; repeat for several."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Source pieces x beam in a batch.")]
BeamSize = Annotated[int | None, typer.Option(min=1, help="Hypotheses kept at each step; 1 is greedy.")]
LengthPenalty = Annotated[float | None, typer.Option(help="alpha of the length penalty; 0 is off.")]
PenaltyKind = Annotated[
    str | None, typer.Option(help="gnmt: ((5 + length) / 6) ** alpha; simple: length ** alpha.")
]
CoveragePenalty = Annotated[float | None, typer.Option(min=0, help="beta of the coverage penalty; 0 is off.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# --- translate: what is read and written --------------------------------------------------------------------------

Files = Annotated[list[str] | None, typer.Argument(metavar="[FILES]...", help="Text files; default stdin.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="File instead of stdout.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where the output of a stopped job ends (needs -o).")
]
Shard = Annotated[
    str | None, typer.Option(help="Translate one part of the files' lines: 2/8 is the second of eight.")
]
ReadAhead = Annotated[
    int | None, typer.Option(min=1, help="Lines read before they are translated together; 4096.")
]
Prefix = Annotated[str | None, typer.Option(help="File with the beginning of each line's translation.")]
Constraints = Annotated[
    str | None,
    typer.Option(help="File with what must appear, tab-separated for each line; `a|b` is one or the other."),
]
Tag = Annotated[
    str | None, typer.Option(help="Target-language tag before each source line, a piece such as `<2de>`.")
]
SplitSentences = Annotated[
    bool, typer.Option("--split-sentences", help="Lines are paragraphs: translate sentence by sentence.")
]
Protect = Annotated[
    bool,
    typer.Option(
        "--protect",
        help="Put mark-up tags, URLs and unknown words back as they are; ask again for numbers that are missing.",
    ),
]
NBest = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Give so many translations, as `LINE ||| TEXT ||| SCORE`; widens the beam. With --groups at most so "
        "many, for hypotheses of groups may agree.",
    ),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Give so many next words behind each line's --prefix (or first words), each with the best translation "
        "that goes on so, as `LINE ||| WORD ||| PROBABILITY ||| TRANSLATION`; no word is the end.",
    ),
]
Alignment = Annotated[
    str | None,
    typer.Option(
        help="`pharaoh` adds ` ||| 0-0 1-2`: which source word, from 0, became which word; where none did, "
        "` ||| ` alone."
    ),
]
Attention = Annotated[
    str | None, typer.Option(help="File (.npz) of the attention of each line: layers x target x source.")
]
Scores = Annotated[bool, typer.Option("--scores", help="Print score and tab before each translation.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

# --- translate: the search ----------------------------------------------------------------------------------------

Stop = Annotated[
    str | None,
    typer.Option(
        help="End a sentence when a beam of hypotheses has `finished`; when also the best of them is "
        "`unbeaten` by live ones; or when it is `certain` that none can win."
    ),
]
MaxLengthRatio = Annotated[
    float | None, typer.Option(help="Longest translation: ratio x source pieces + 20.")
]
MinPieces = Annotated[int | None, typer.Option(min=0, help="Shortest translation, in pieces.")]
NoRepeatNgram = Annotated[
    int | None, typer.Option(min=0, help="No sequence of so many pieces comes twice; 0 is off.")
]
Suppress = Annotated[
    list[str] | None,
    typer.Option(
        help="A text whose pieces never appear, instead of the config's; repeat for several; '' for none."
    ),
]
Groups = Annotated[int | None, typer.Option(min=1, help="Groups of diverse beam search.")]
Diversity = Annotated[float | None, typer.Option(min=0, help="Cost of a piece that an earlier group chose.")]

# --- translate: samples and minimum Bayes risk --------------------------------------------------------------------

Sample = Annotated[
    bool | None,
    typer.Option("--sample/--no-sample", help="Draw translations from the model instead of searching."),
]
Temperature = Annotated[float | None, typer.Option(help="Of samples: below 1 sharper.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Samples take the best so many pieces.")]
TopP = Annotated[float | None, typer.Option(help="Samples take pieces of this probability in all.")]
Epsilon = Annotated[float | None, typer.Option(help="Samples take no piece less probable.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of samples.")]
Mbr = Annotated[
    str | None,
    typer.Option(
        help="Minimum Bayes risk with bleu, chrf, chrf++ or ter as utility; `none` switches it off."
    ),
]
MbrCandidates = Annotated[
    int | None, typer.Option(min=2, help="Samples, or hypotheses, among which --mbr chooses.")
]
