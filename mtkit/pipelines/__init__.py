"""Pipelines: several trainings and translations in a row, as one command that can be stopped and called again.

A pipeline is a folder with a record of each stage. A stage is a function with settings, which are JSON, and the files
and folders that it reads and writes:

    stage = Stage(
        "forward-1",
        train,                                # a function of a module of mtkit: (settings, context) -> result
        {"config": training_values(config)},  # all that it needs to know
        effort=Effort("updates", 4600),
        inputs=(Path("train.en"), Path("train.de")),
        outputs=(Path("runs/x.stages/forward-1"),),
    )
    with Pipeline(Path("runs/x.stages"), [stage.effort for stage in stages], say=print) as pipeline:
        for stage in stages:
            result = pipeline.run(stage)   # what the function returned: JSON, also of a stage that is already done

- A stage that is done is not run again. It is done once its function has returned and its record is on the disk.
- Its record has the settings and the SHA-256 of each input (`fingerprint`). If either differs from what the stage was
  begun with, the pipeline is refused with the names of what differs; `fresh=True` starts over.
- A stage that was stopped is run again, and goes on where it was: a training from its checkpoint; any other function
  must see to that itself, or write its outputs whole (`mtkit.files.atomic_file`, `temporary_folder`).
- Later stages may depend on results of earlier ones, as `run` is called for one stage at a time. Only their number and
  efforts are told beforehand, for "stage 3 of 7" and the time left.

Each stage runs in a process of its own, `worker`. So its memory is given back at its end, whatever allocator, kernel
cache or thread pool held it; no seed, thread count or default of one stage reaches the next, so that each computes what
it would compute alone; and one that runs out of memory or crashes in native code is named by a process that is still
there. The price is the import of torch, about two seconds. Ctrl-C, SIGTERM and SIGHUP are passed on to that process,
which saves as `mtkit train` does; should the pipeline be killed, the process notices and saves too, and nobody else can
use the folder until it has ended.
"""

from mtkit.pipelines.fingerprints import fingerprint
from mtkit.pipelines.pipeline import Pipeline
from mtkit.pipelines.stages import Context, Effort, Settings, Stage

__all__ = ["Context", "Effort", "Pipeline", "Settings", "Stage", "fingerprint"]
