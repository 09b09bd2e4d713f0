"""Runs tasks as jobs of Slurm: an array with an element per task, then one job that draws.

All nodes see the results folder. An element that is stopped ahead of its time limit saves, and puts itself back into
the queue; so does Slurm with one whose node failed, or that was preempted. It continues from its last checkpoint.
"""

import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from cifar_lab.jobs.task import AGAIN, ATTEMPTS, FEWER, Task, follows, startable
from cifar_lab.program import fail
from cifar_lab.project import command
from cifar_lab.settings import counted, training_root

MAX_ARRAY_SIZE = 1001  # Slurm's default, where it cannot be asked

# `srun` is ended before a command that was told to stop has said its last words: the step writes its log itself.
SCRIPT = r"""#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output={log}
{directives}
commands=(
{commands}
)
python={python} log={log}
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}  # Slurm 22.05 and newer: srun does not inherit it
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}}
again() {{
  scontrol requeue "$SLURM_JOB_ID"
  exit "$1"
}}
failed=0
for ((i = ${{SLURM_ARRAY_TASK_ID:-0}}; i < ${{#commands[@]}}; i += {stride})); do
  echo "${{commands[i]}}"
  eval "srun --open-mode=append --output=\"\$log\" \"\$python\" ${{commands[i]#python }}"
  status=$?
  case $status in
    0) ;;
    {again}) again $status ;;
    {fewer}) failed=$status; ((${{SLURM_RESTART_COUNT:-0}} + 1 < {attempts})) && again $status ;;
    *) failed=$status ;;
  esac
done
exit $failed
"""


def run(tasks: Sequence[Task], options: Namespace) -> int:
    """Submits tasks, and prints what it has submitted; or prints the scripts that it would submit. Returns 0.

    options: those of `cifar_lab.reproduce`. Ends the program if Slurm is not there or refuses, with nothing submitted.
    """
    folder = Path(training_root(options.results), options.preset, "logs").absolute()
    now = dict.fromkeys(task.command for task in startable(tasks))
    later = [task.command for task in tasks if task.command not in now]
    later.append(command("plot_results.py", Path(options.results), "--preset", options.preset))
    elements = min(len(now), _max_array_size())
    array = _script(options.preset, list(now), folder / "slurm-%A_%a.log", options, elements)
    draw = _script(f"{options.preset}-figures", later, folder / "slurm-%j.log", options)
    scripts = [array, draw] if now else [draw]
    if options.dry_run:
        print(*scripts, sep="\n", end="")
        return 0
    if not shutil.which("sbatch"):
        fail("--on slurm: there is no sbatch here: run this where jobs are submitted, or see --dry-run")
    for script in scripts:
        _sbatch(script, "--test-only")
    folder.mkdir(parents=True, exist_ok=True)
    if now:
        job = _sbatch(array)
        print(f"job {job} runs {counted(len(now), 'command')}: {folder}/slurm-{job}_*.log")
        try:
            after = _sbatch(draw, f"--dependency=afterany:{job}")
        except SystemExit:
            subprocess.run(["scancel", job], check=False)
            raise
    else:
        after = _sbatch(draw)
    print(f"job {after} draws{' when they have ended' if now else ''}: {folder}/slurm-{after}.log")
    return 0


def _script(name: str, commands: Sequence[str], log: Path, options: Namespace, elements: int = 0) -> str:
    """A batch script. Of an array with fewer elements than commands each runs several, one after the other."""
    array = f"--array=0-{elements - 1}" + (f"%{options.jobs}" if options.jobs else "") if elements else ""
    statuses = {what: [str(status) for status in range(1, 256) if follows(status) == what] for what in (AGAIN, FEWER)}
    return SCRIPT.format(
        name=name, log=shlex.quote(str(log)), python=shlex.quote(sys.executable), attempts=ATTEMPTS,
        directives="\n".join(f"#SBATCH {text}" for text in (array, options.slurm) if text),
        commands="\n".join(map(shlex.quote, commands)), stride=elements or 1,
        again="|".join(statuses[AGAIN]), fewer="|".join(statuses[FEWER]),
    )  # fmt: skip


def _max_array_size() -> int:
    """How many elements the cluster allows an array."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    except OSError:
        shown = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return int(found[1]) if found else MAX_ARRAY_SIZE


def _sbatch(script: str, *options: str) -> str:
    """Submits a script and returns the number of its job."""
    words = ["sbatch", "--parsable", *options]
    ended = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
    if ended.returncode:
        fail(next(iter(ended.stderr.strip().splitlines()), "sbatch failed"))
    return ended.stdout.partition(";")[0].strip()
