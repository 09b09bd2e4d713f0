"""A Slurm cluster of one node, this machine, with Debian's slurm-wlm and munge; needs root."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} PriorityTier=10 State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd")
PATIENCE = 60  # seconds until the node is idle


def lacking() -> str:
    """Why there can be no cluster; empty if there can."""
    if missing := [name for name in (*DAEMONS, "sbatch", "srun") if not _found(name)]:
        return f"no {missing[0]}: on Debian, apt-get install slurm-wlm munge"
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return "the name of this machine has no address"
    return "" if os.geteuid() == 0 else "the cluster's daemons are started as root"


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the daemons; gives the environment in which Slurm's commands find them, and ends them."""
    munge, environment = folder / "munge", os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0)), other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, ports=ports, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    files = {"key": "key-file", "socket": "socket", "munged.pid": "pid-file", "log": "log-file", "seed": "seed-file"}
    flags = [f"--{flag}={munge / file}" for file, flag in files.items()]
    try:
        subprocess.run([_found("munged"), "--force", *flags], check=True, capture_output=True)
        for name in DAEMONS[1:]:
            subprocess.run([_found(name), "-f", folder / "slurm.conf"], check=True, env=environment)
        end = time.monotonic() + PATIENCE
        while said(environment, "sinfo", "-h", "-o", "%T").strip() != "idle":
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield environment
    finally:
        said(environment, "scancel", "--user=root")
        for file in (folder / "slurmd.pid", folder / "slurmctld.pid", munge / "munged.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), 15)


def said(environment: dict[str, str], *words: str) -> str:
    """What a command writes on standard output."""
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout


def job(environment: dict[str, str], number: str) -> dict[str, str]:
    """What Slurm knows about a job or an element: `JobState`, `Restarts` and others."""
    return dict(re.findall(r"(\w+)=(\S*)", said(environment, "scontrol", "show", "job", number)))
