"""What a person sees while a pipeline runs: a heading before each stage, and what came of it afterwards."""

from shared_data.progress import format_number, format_seconds
from shared_data.runs import RunFolder
from shared_data.stages import STAGES


def print_heading(stage: str, run: RunFolder) -> None:
    """Announce a stage."""
    continued = " (continuing where it was interrupted)" if run.is_interrupted(stage) else ""
    print(f"\n== {run.level} {stage}: {STAGES[stage].summary}{continued}", flush=True)


def print_current(stage: str, run: RunFolder) -> None:
    """Say that a stage need not be done again."""
    print(f"== {run.level} {stage}: nothing changed, kept as it is (--force does it again)", flush=True)


def print_summary(stage: str, metrics: dict[str, float], run: RunFolder) -> None:
    """The numbers of a finished stage and where its results are."""
    for key, value in metrics.items():
        if key != "seconds":
            print(f"   {key.replace('_', ' ')}: {format_number(value)}")
    print(f"   wrote {run.stage(stage)} in {format_seconds(metrics['seconds'])}", flush=True)
