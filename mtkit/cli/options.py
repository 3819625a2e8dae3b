"""Arguments and options of several commands, and those of `mtkit translate`, each with its help."""

from __future__ import annotations

from typing import Annotated

import typer

from mtkit.cli import completion
from mtkit.config.choices import MOST_THREADS, PRECISIONS
from mtkit.errors import ConfigError
from mtkit.torchrun import was_restarted
from mtkit.translation.options import ON_ERROR

INPUT, SEARCH, SAMPLING = "Input and output", "Search", "Sampling"
CONSTRAINTS, TEXT, MACHINE = "Constraints", "Text handling", "Machine"
"""Panels of options in `mtkit translate --help`."""


def _check_fresh(fresh: bool) -> bool:
    """Ignore the option when the command was started again, for it has deleted what was there before."""
    return fresh and not was_restarted()


def _check_columns(columns: tuple[str, str] | None) -> tuple[str, str] | None:
    """Refuse an empty name of a column."""
    if columns is not None and "" in columns:
        raise ConfigError("an empty name", where="--columns", hint="name both columns")
    return columns


def _check_ratio(value: float) -> float:
    """Refuse a ratio of the larger to the smaller number that none can have."""
    if 0 < value < 1:
        raise typer.BadParameter("the ratio of the larger to the smaller number is 1 or more; 0 for no limit")
    return value


# --- several commands ---------------------------------------------------------------------------------------------

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file; `-` is stdin.")]
ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, which is read more than once.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Override config keys, e.g. `training.max_steps=100`.",
        autocompletion=completion.overrides,
    ),
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or checkpoint folder.")]
Ensemble = Annotated[
    list[str] | None,
    typer.Option(
        help="Another model with the same vocabulary; probabilities are averaged over all models; may be repeated.",
        rich_help_panel=SEARCH,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:1, …",
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
Engine = Annotated[
    str | None,
    typer.Option(
        help="ctranslate2, for a folder that `mtkit export --to ctranslate2` wrote.",
        autocompletion=completion.one_of("ctranslate2"),
        rich_help_panel=MACHINE,
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Processes that translate on a CPU, with the weights in memory once; auto: one a core, if there is enough "
        "to do.",
        autocompletion=completion.one_of("auto", "1"),
        rich_help_panel=MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_THREADS,
        help="Threads of each worker on a CPU; by default the cores divided by --workers, or 1.",
        rich_help_panel=MACHINE,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Batch size: source tokens x beam size.", rich_help_panel=MACHINE),
]
BeamSize = Annotated[
    int | None, typer.Option(min=1, help="Beam size; 1 is greedy search.", rich_help_panel=SEARCH)
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Alpha of the length penalty; 0 disables it.", rich_help_panel=SEARCH)
]
PenaltyKind = Annotated[
    str | None,
    typer.Option(
        help="Length penalty: `gnmt`, ((5 + length) / 6) ** alpha, or `simple`, length ** alpha.",
        autocompletion=completion.values_of("decoding.penalty_kind"),
        rich_help_panel=SEARCH,
    ),
]
CoveragePenalty = Annotated[
    float | None,
    typer.Option(min=0, help="Beta of the coverage penalty; 0 disables it.", rich_help_panel=SEARCH),
]
Shortlist = Annotated[
    bool | None,
    typer.Option(
        help="Choose among the tokens of the model's shortlist (see `mtkit shortlist`), by default if it has one.",
        rich_help_panel=SEARCH,
    ),
]
Truecase = Annotated[
    bool | None,
    typer.Option(
        help="Translate lines in capitals or title case in their usual case, and restore theirs; on by default.",
        rich_help_panel=SEARCH,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        callback=_check_fresh,
        help="Start over: delete what an earlier run of this command wrote. After a restart by torchrun or SLURM it is "
        "ignored, so that the run goes on.",
    ),
]
MaxRatio = Annotated[
    float,
    typer.Option(
        min=0,
        callback=_check_ratio,
        help="Leave out pairs whose token counts have a larger ratio; 0 for no limit.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# --- translate: input and output ----------------------------------------------------------------------------------

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILES]...", help="Text, .tmx, .xlf (XLIFF) or .xlsx files; stdin by default."),
]
Columns = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="SRC TGT",
        callback=_check_columns,
        help="Language tags of source and target in .tmx and .xlf files, titles of their columns in .xlsx; by default, "
        "the languages of the model.",
        rich_help_panel=INPUT,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Write to a file; `-` is stdout. Of a .tmx, .xlf or .xlsx input, a file with the same ending is a copy "
        "with translations.",
        rich_help_panel=INPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume an interrupted job, which must have been started with --resume too; needs -o.",
        rich_help_panel=INPUT,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        help="Translate one shard of the input files: 2/8 is the second of eight.", rich_help_panel=INPUT
    ),
]
ReadAhead = Annotated[
    int,
    typer.Option(
        min=1,
        max=10**9,
        help="Lines to read before they are sorted by length and translated.",
        rich_help_panel=INPUT,
    ),
]
OnError = Annotated[
    str,
    typer.Option(
        help="For a line that cannot be translated: `stop` the job, `skip` it (empty translation), or `copy` it.",
        autocompletion=completion.one_of(*ON_ERROR),
        rich_help_panel=INPUT,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(help="File with the beginning of each translation.", rich_help_panel=CONSTRAINTS),
]
Constraints = Annotated[
    str | None,
    typer.Option(
        help="File with what each translation must contain, tab-separated; `a|b` means a or b.",
        rich_help_panel=CONSTRAINTS,
    ),
]
Tag = Annotated[
    str | None,
    typer.Option(
        help="Target-language tag before each source line and each segment of a long one, e.g. `<2de>`.",
        rich_help_panel=TEXT,
    ),
]
SplitSentences = Annotated[
    bool | None,
    typer.Option(
        help="Split every line into sentences, or only lines that the model cannot hold; by default, lines longer than "
        "99 % of those that the model was trained on.",
        rich_help_panel=TEXT,
    ),
]
MaxLineTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Treat longer lines as faulty, because they take long; see --on-error.",
        rich_help_panel=TEXT,
    ),
]
Protect = Annotated[
    bool,
    typer.Option(
        "--protect",
        help="Copy markup, placeholders, URLs and unknown characters unchanged; search again if a number is missing.",
        rich_help_panel=TEXT,
    ),
]
NBest = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Print the n best translations as `LINE ||| TEXT ||| SCORE`; widens the beam if necessary. With --groups "
        "or --mbr there may be fewer, as equal translations count once.",
        rich_help_panel=INPUT,
    ),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Print the n most probable next words after each line's --prefix (or first words), each with its best "
        "continuation, as `LINE ||| WORD ||| PROBABILITY ||| TRANSLATION`; an empty word is the end.",
        rich_help_panel=INPUT,
    ),
]
Alignment = Annotated[
    str | None,
    typer.Option(
        help="`pharaoh` appends ` ||| 0-0 1-2`: pairs of source and target words, from 0; a bare ` ||| ` if there are "
        "none.",
        autocompletion=completion.one_of("pharaoh"),
        rich_help_panel=INPUT,
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="Write attention matrices to a file (.npz): layers x target x source for each line.",
        rich_help_panel=INPUT,
    ),
]
Scores = Annotated[
    bool,
    typer.Option("--scores", help="Print score and tab before each translation.", rich_help_panel=INPUT),
]
Confidence = Annotated[
    bool,
    typer.Option(
        "--confidence",
        help="Print the expected share of the line that is right, from 0 to 1, and tab before each translation; needs "
        "`mtkit calibrate` once.",
        rich_help_panel=INPUT,
    ),
]
LinesAsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print a JSON object for each line: text, score, and what --n-best, --alignment or --confidence find.",
        rich_help_panel=INPUT,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no progress to stderr.", rich_help_panel=INPUT)
]

# --- translate: search --------------------------------------------------------------------------------------------

Stop = Annotated[
    str | None,
    typer.Option(
        help="When the search for a sentence ends: `finished`, once as many hypotheses have finished as the beam is "
        "wide; `unbeaten`, once the best of them also beats every live one; `all_unbeaten`, once all of them do; "
        "`certain`, once no live one can win.",
        autocompletion=completion.values_of("decoding.stop"),
        rich_help_panel=SEARCH,
    ),
]
MaxLengthRatio = Annotated[
    float | None,
    typer.Option(
        help="Maximum length of a translation: ratio x source tokens + decoding.max_length_extra (20).",
        rich_help_panel=CONSTRAINTS,
    ),
]
MinPieces = Annotated[
    int | None,
    typer.Option(min=0, help="Minimum length of a translation, in tokens.", rich_help_panel=CONSTRAINTS),
]
NoRepeatNgram = Annotated[
    int | None,
    typer.Option(
        min=0, help="Do not repeat n-grams of this many tokens; 0 disables it.", rich_help_panel=CONSTRAINTS
    ),
]
AvoidLoops = Annotated[
    bool | None,
    typer.Option(
        help="Where a translation repeats a phrase without end, search again without repetition; on by default.",
        rich_help_panel=CONSTRAINTS,
    ),
]
Suppress = Annotated[
    list[str] | None,
    typer.Option(
        help="Text whose tokens are never generated, in place of the config's; may be repeated; '' for none.",
        rich_help_panel=CONSTRAINTS,
    ),
]
Groups = Annotated[
    int | None, typer.Option(min=1, help="Groups of diverse beam search.", rich_help_panel=SEARCH)
]
Diversity = Annotated[
    float | None,
    typer.Option(min=0, help="Penalty on a token that an earlier group chose.", rich_help_panel=SEARCH),
]

# --- translate: sampling and minimum Bayes risk -------------------------------------------------------------------

Sample = Annotated[
    bool | None,
    typer.Option(
        "--sample/--no-sample", help="Sample instead of searching with a beam.", rich_help_panel=SAMPLING
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Sampling temperature; below 1 sharpens.", rich_help_panel=SAMPLING),
]
TopK = Annotated[
    int | None,
    typer.Option(min=0, help="Sample from the k most probable tokens.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Nucleus sampling: from the most probable tokens that together reach probability p.",
        rich_help_panel=SAMPLING,
    ),
]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Do not sample tokens below this probability.", rich_help_panel=SAMPLING),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Random seed of samples.", rich_help_panel=SAMPLING)
]
Mbr = Annotated[
    str | None,
    typer.Option(
        help="Minimum Bayes risk decoding with bleu, chrf, chrf++ or ter as utility; `none` disables it.",
        autocompletion=completion.values_of("decoding.mbr", "none"),
        rich_help_panel=SAMPLING,
    ),
]
MbrCandidates = Annotated[
    int | None,
    typer.Option(
        min=2, help="Candidates for --mbr: samples, or hypotheses of a beam.", rich_help_panel=SAMPLING
    ),
]
