"""Arguments and options that more than one command has, and the many of `mtkit translate`, each with its help."""

from __future__ import annotations

from typing import Annotated

import typer

from mtkit.cli import completion
from mtkit.config.choices import PRECISIONS
from mtkit.translation.options import ON_ERROR

INPUT, SEARCH, SAMPLING = "Input and output", "Search", "Sampling"
CONSTRAINTS, TEXT, MACHINE = "Constraints", "Text handling", "Machine"
"""Groups of options in `mtkit translate --help`."""

# --- of several commands ------------------------------------------------------------------------------------------

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file; `-` is stdin.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Replace keys, for example `training.max_steps=100`.",
        autocompletion=completion.overrides,
    ),
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")]
Ensemble = Annotated[
    list[str] | None,
    typer.Option(
        help="A further model with the same vocabulary, whose vote counts too; repeat for several.",
        rich_help_panel=SEARCH,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:1 …",
        autocompletion=completion.one_of("auto", "cpu", "cuda"),
        rich_help_panel=MACHINE,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, fp32, bf16, fp16 or int8.",
        autocompletion=completion.one_of(*PRECISIONS),
        rich_help_panel=MACHINE,
    ),
]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Source pieces x beam in a batch.", rich_help_panel=MACHINE)
]
BeamSize = Annotated[
    int | None, typer.Option(min=1, help="Hypotheses kept at each step; 1 is greedy.", rich_help_panel=SEARCH)
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="alpha of the length penalty; 0 is off.", rich_help_panel=SEARCH)
]
PenaltyKind = Annotated[
    str | None,
    typer.Option(
        help="gnmt: ((5 + length) / 6) ** alpha; simple: length ** alpha.",
        autocompletion=completion.values_of("decoding.penalty_kind"),
        rich_help_panel=SEARCH,
    ),
]
CoveragePenalty = Annotated[
    float | None, typer.Option(min=0, help="beta of the coverage penalty; 0 is off.", rich_help_panel=SEARCH)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# --- translate: what is read and written --------------------------------------------------------------------------

Files = Annotated[list[str] | None, typer.Argument(metavar="[FILES]...", help="Text files; default stdin.")]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help="File instead of stdout; `-` is stdout.", rich_help_panel=INPUT),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where the output of a stopped job ends, if it was begun with --resume too (needs -o).",
        rich_help_panel=INPUT,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        help="Translate one part of the files' lines: 2/8 is the second of eight.", rich_help_panel=INPUT
    ),
]
ReadAhead = Annotated[
    int | None,
    typer.Option(min=1, help="Lines read before they are translated together; 4096.", rich_help_panel=INPUT),
]
OnError = Annotated[
    str,
    typer.Option(
        help="A line that cannot be translated ends the job (`stop`), has an empty translation (`skip`), or stays "
        "as it is (`copy`).",
        autocompletion=completion.one_of(*ON_ERROR),
        rich_help_panel=INPUT,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(help="File with the beginning of each line's translation.", rich_help_panel=CONSTRAINTS),
]
Constraints = Annotated[
    str | None,
    typer.Option(
        help="File with what must appear, tab-separated for each line; `a|b` is one or the other.",
        rich_help_panel=CONSTRAINTS,
    ),
]
Tag = Annotated[
    str | None,
    typer.Option(
        help="Target-language tag before each source line and each part of a long one, a piece such as `<2de>`.",
        rich_help_panel=TEXT,
    ),
]
SplitSentences = Annotated[
    bool | None,
    typer.Option(
        help="Translate every line sentence by sentence, or none; by default those longer than 99 % of the lines that "
        "the model was trained on.",
        rich_help_panel=TEXT,
    ),
]
MaxLineTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="A longer line is not translated (see --on-error): it would take long.",
        rich_help_panel=TEXT,
    ),
]
Protect = Annotated[
    bool,
    typer.Option(
        "--protect",
        help="Put mark-up tags, URLs and unknown words back as they are; ask again for numbers that are missing.",
        rich_help_panel=TEXT,
    ),
]
NBest = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Give so many translations, as `LINE ||| TEXT ||| SCORE`; widens the beam. With --groups at most so "
        "many, for hypotheses of groups may agree.",
        rich_help_panel=INPUT,
    ),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Give so many next words behind each line's --prefix (or first words), each with the best translation "
        "that goes on so, as `LINE ||| WORD ||| PROBABILITY ||| TRANSLATION`; no word is the end.",
        rich_help_panel=INPUT,
    ),
]
Alignment = Annotated[
    str | None,
    typer.Option(
        help="`pharaoh` adds ` ||| 0-0 1-2`: which source word, from 0, became which word; where none did, "
        "` ||| ` alone.",
        autocompletion=completion.one_of("pharaoh"),
        rich_help_panel=INPUT,
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="File (.npz) of the attention of each line: layers x target x source.", rich_help_panel=INPUT
    ),
]
Scores = Annotated[
    bool, typer.Option("--scores", help="Print score and tab before each translation.", rich_help_panel=INPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=INPUT)]

# --- translate: the search ----------------------------------------------------------------------------------------

Stop = Annotated[
    str | None,
    typer.Option(
        help="End a sentence when a beam of hypotheses has `finished`; when also the best of them is "
        "`unbeaten` by live ones; or when it is `certain` that none can win.",
        autocompletion=completion.values_of("decoding.stop"),
        rich_help_panel=SEARCH,
    ),
]
MaxLengthRatio = Annotated[
    float | None,
    typer.Option(help="Longest translation: ratio x source pieces + 20.", rich_help_panel=CONSTRAINTS),
]
MinPieces = Annotated[
    int | None, typer.Option(min=0, help="Shortest translation, in pieces.", rich_help_panel=CONSTRAINTS)
]
NoRepeatNgram = Annotated[
    int | None,
    typer.Option(
        min=0, help="No sequence of so many pieces comes twice; 0 is off.", rich_help_panel=CONSTRAINTS
    ),
]
Suppress = Annotated[
    list[str] | None,
    typer.Option(
        help="A text whose pieces never appear, instead of the config's; repeat for several; '' for none.",
        rich_help_panel=CONSTRAINTS,
    ),
]
Groups = Annotated[
    int | None, typer.Option(min=1, help="Groups of diverse beam search.", rich_help_panel=SEARCH)
]
Diversity = Annotated[
    float | None,
    typer.Option(min=0, help="Cost of a piece that an earlier group chose.", rich_help_panel=SEARCH),
]

# --- translate: samples and minimum Bayes risk --------------------------------------------------------------------

Sample = Annotated[
    bool | None,
    typer.Option(
        "--sample/--no-sample",
        help="Draw translations from the model instead of searching.",
        rich_help_panel=SAMPLING,
    ),
]
Temperature = Annotated[
    float | None, typer.Option(help="Of samples: below 1 sharper.", rich_help_panel=SAMPLING)
]
TopK = Annotated[
    int | None, typer.Option(min=0, help="Samples take the best so many pieces.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float | None,
    typer.Option(help="Samples take pieces of this probability in all.", rich_help_panel=SAMPLING),
]
Epsilon = Annotated[
    float | None, typer.Option(help="Samples take no piece less probable.", rich_help_panel=SAMPLING)
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of samples.", rich_help_panel=SAMPLING)]
Mbr = Annotated[
    str | None,
    typer.Option(
        help="Minimum Bayes risk with bleu, chrf, chrf++ or ter as utility; `none` switches it off.",
        autocompletion=completion.values_of("decoding.mbr", "none"),
        rich_help_panel=SAMPLING,
    ),
]
MbrCandidates = Annotated[
    int | None,
    typer.Option(min=2, help="Samples, or hypotheses, among which --mbr chooses.", rich_help_panel=SAMPLING),
]
