"""The flags that every training program has: its run folder, its resumable checkpoints, its loader."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, run_settings


@dataclass
class RunFlags:
    """Run folder and processes"""

    output: str | None = flag(None, "Run folder: settings, log, checkpoints, result and report.")
    seed: int = flag(9595, "Seed of every random draw; the same on all ranks.")
    resume: bool = flag(
        False, "Continue the run in --output from its newest whole checkpoint; starts it when there is none."
    )
    allow_changed_data: bool = flag(False, "Resume although the data changed since the run was started.")
    overwrite: bool = flag(
        False, "Replace a run of the same program in --output; only what it wrote is removed, once the new run starts."
    )
    keep_last: int = flag(2, "Resumable checkpoints kept in the run folder.", at_least=1)
    checkpoint_steps: int = flag(
        1000, "Updates between resumable checkpoints (one more at each epoch end and on a signal).", at_least=1
    )
    report_step: int = flag(200, "Micro-batches between two rows of the log.", at_least=1)
    dry_run: bool = flag(
        False, "Build everything, train two updates, print memory and the expected duration, save nothing."
    )
    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers")
    tqdm: bool = flag(False, "Progress bar on a terminal.")

    run = run_settings
