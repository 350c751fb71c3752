"""Run a real single-node SLURM on loopback in a temporary folder, without root, systemd or /etc."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

SBIN = "/usr/sbin:/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
{binding}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts again once its old credential has expired; 120 seconds unless told otherwise.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
# Without it, what can never run stays pending instead of being refused.
EnforcePartLimits=ALL
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 NodeHostname={host} CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing() -> list[str]:
    """Return the programs that a cluster needs and that are not installed."""
    return [name for name in (*DAEMONS, *COMMANDS) if not _which(name)]


class Cluster:
    """A running cluster. `stop` ends its daemons, and nothing else, by their process ids."""

    def __init__(self, folder: Path):
        self.folder = folder
        hidden = ("SLURM", "SBATCH", "SRUN", "SUBMITIT")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.env["SLURM_CONF"] = str(folder / "slurm.conf")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(_config(self.folder))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        files |= {"seed-file": "munge.seed"}
        # Without --force, munged refuses a socket in a folder that other users cannot enter.
        self._daemon("munged", "--force", *(f"--{name}={self.folder / file}" for name, file in files.items()))
        self._daemon("slurmctld", "-f", self.env["SLURM_CONF"])
        self._daemon("slurmd", "-f", self.env["SLURM_CONF"])
        until = time.monotonic() + 30
        while set(self.run("sinfo", "--noheader", "--format=%t", check=False).split()) != {"idle"}:
            if time.monotonic() > until:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"the cluster did not come up:\n{logs}")
            time.sleep(0.2)

    def _daemon(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [_which(name), *arguments], env=self.env, check=True, timeout=30, stdout=subprocess.DEVNULL, cwd=self.folder
        )

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return its output."""
        return subprocess.run(
            command, env=self.env, check=check, timeout=30, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout

    def jobs(self, *states: str) -> dict[str, str]:
        """Return the state of every job by id (`<array>_<task>`). `states`: include only jobs in these states."""
        wanted = ",".join(states) or "all"
        rows = self.run("squeue", "--noheader", "--array", f"--states={wanted}", "--format=%i %T").splitlines()
        return dict(row.split() for row in rows)

    def clear(self) -> None:
        """Cancel all jobs and wait until they have ended."""
        active = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
        until = time.monotonic() + 30
        while (left := self.jobs(*active)) and time.monotonic() < until:
            self.run("scancel", "--signal=KILL", *left, check=False)
            self.run("scancel", *left, check=False)
            time.sleep(0.3)

    def stop(self) -> None:
        if (self.folder / "slurmctld.pid").exists():
            with suppress(subprocess.SubprocessError, ValueError):
                self.clear()
        for name in reversed(DAEMONS):
            pid = self._pid(name)
            if pid:
                os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + 10
            while self._pid(name) and time.monotonic() < until:
                time.sleep(0.05)
            if pid := self._pid(name):
                os.kill(pid, signal.SIGKILL)

    def _pid(self, name: str) -> int | None:
        """Return the process id of a daemon; None if it is not running."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            status = Path(f"/proc/{pid}/status").read_text()
        except (OSError, ValueError):
            return None
        return pid if f"Name:\t{name}\n" in status and "State:\tZ" not in status else None


def _config(folder: Path) -> str:
    name = socket.gethostname()
    try:
        loopback = socket.gethostbyname(name) == "127.0.0.1"
    except OSError:
        loopback = False
    ports = _free_ports(2)
    return CONFIG.format(
        folder=folder,
        host=name.split(".")[0],
        user=getpass.getuser(),
        controller_port=ports[0],
        node_port=ports[1],
        # Makes the daemons listen on the address of the host's name. With any other address, srun would wait forever.
        binding="CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if loopback else "",
    )


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")
