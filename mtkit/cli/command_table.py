"""Commands in the order of `mtkit --help`, each with the example at the end of its own help.

A command is imported when it is called, so that it does not wait for the modules of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: what is typed.
        example: example at the end of its help; several are separated by "`, or `".
        module: module in `mtkit.cli`; by default its name.
        function: function there; by default its name.
        loads_torch: whether it always needs PyTorch and is often run for a line or two: PyTorch's libraries are then
            loaded beside other imports.
    """

    name: str
    example: str
    module: str = ""
    function: str = ""
    loads_torch: bool = False

    def load(self) -> Callable[..., object]:
        """Import the function."""
        module = import_module(f"mtkit.cli.{self.module or self.name}")
        function: Callable[..., object] = getattr(module, self.function or self.name)
        return function

    @property
    def epilog(self) -> str:
        """The end of its help."""
        return f"Example: `{self.example}`"


@dataclass(frozen=True)
class Group:
    """Commands that share their first word.

    Attributes:
        name: that word.
        help: what they do.
        example: example at the end of the help.
        commands: the commands.
    """

    name: str
    help: str
    example: str
    commands: Sequence[Command]


COMMANDS = (
    Command("train", "mtkit train configs/quickstart.yaml training.max_steps=400"),
    Command("translate", "echo 'A dog runs.' | mtkit translate runs/my-run", loads_torch=True),
    Command("score", "mtkit score runs/my-run source.txt translation.txt", loads_torch=True),
    Command("evaluate", "mtkit evaluate hyps.txt --ref refs.txt`, or `mtkit evaluate --model runs/my-run"),
    Command("explain", "mtkit explain runs/my-run 'A dog runs.'"),
    Command("calibrate", "mtkit calibrate runs/my-run"),
    Command("report", "mtkit report runs/my-run`, or `mtkit report runs/a runs/b -o compare.html"),
    Command("runs", "mtkit runs --sort best"),
    Command("diagnose", "mtkit diagnose runs/my-run"),
    Command("check", "mtkit check config.yaml", module="train"),
    Command(
        "sweep", "mtkit sweep my.yaml training.learning_rate=0.001,0.002,0.004 model.dropout=0.1,0.2,0.3"
    ),
    Command("init", "mtkit init data/train.en.gz data/train.de.gz -o my.yaml"),
    Command("average", "mtkit average runs/my-run --last 5 -o runs/my-run-average", module="train"),
    Command(
        "import",
        "mtkit import Helsinki-NLP/opus-mt-en-fr -o models/en-fr",
        module="import_model",
        function="import_model",
    ),
    Command("finetune", "mtkit finetune models/en-fr --data client.tmx -o runs/client"),
    Command("backtranslate", "mtkit backtranslate runs/de-en mono.de --tag '<bt>' -o bt.tsv"),
    Command("diversify", "mtkit diversify config.yaml --models 3 -o runs/diverse"),
    Command("merge", "mtkit merge runs/client -o models/client", module="train"),
    Command("export", "mtkit export runs/my-run --to ctranslate2 --type int8 -o my-run-int8"),
    Command("distill", "mtkit distill runs/teacher --student configs/student.yaml -o runs/student"),
    Command("shortlist", "mtkit shortlist runs/my-run"),
)

GROUPS = (
    Group(
        "config",
        "Print the schema of configs, or a config with the value of every key.",
        "mtkit config schema",
        (
            Command("schema", "mtkit config schema > mtkit.schema.json", module="config"),
            Command("show", "mtkit config show config.yaml training.max_steps=100", module="config"),
        ),
    ),
    Group(
        "benchmark",
        "Measure the speed of mtkit on this machine.",
        "mtkit benchmark train configs/small.yaml",
        (
            Command(
                "data",
                "mtkit benchmark data config.yaml --pairs 10000000",
                module="benchmark",
                function="benchmark_data",
            ),
            Command(
                "train",
                "mtkit benchmark train configs/base.yaml --synthetic --against torch",
                module="benchmark",
                function="benchmark_train",
            ),
            Command(
                "translate",
                "mtkit benchmark translate runs/my-run test.en --against ctranslate2",
                module="benchmark",
                function="benchmark_translate",
            ),
        ),
    ),
)
