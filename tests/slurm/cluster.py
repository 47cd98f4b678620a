"""A Slurm of two nodes on this machine, with accounting, in a folder of its own and with a link to it in /etc/slurm.

The GPUs are names for terminals: nothing computes on them, but scheduling, signals and accounting are real.

    with Cluster(folder):
        subprocess.run(["sinfo"])
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mungekey", "mariadbd", "mariadb-install-db", "mariadb-admin")
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=5
MinJobAge=300
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[2]}-{ports[3]}] \\
    CPUs=64 RealMemory=600000 Gres=gpu:h100:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=1000
"""
ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[4]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
SYSTEM = Path("/etc/slurm/slurm.conf")
"""Job steps of the plugin for Snakemake look nowhere else."""
GPUS = "NodeName=n[1-2] Name=gpu Type=h100 Count=8 File=/dev/tty[0-7]\n"


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if SYSTEM.exists() and not SYSTEM.is_symlink():
        return f"this machine has a Slurm of its own: {SYSTEM}"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (make slurm)" if absent else ""


class Cluster:
    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons = ExitStack()

    def __enter__(self) -> Cluster:
        with ExitStack() as started:
            self.daemons = started
            self._start()
            self.daemons = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self.daemons:
            self.call("scancel", "--user=root")
            self._wait(lambda: not self.call("squeue", "--noheader"), "the last jobs")

    def call(self, *command: str) -> str:
        """Output of a command of Slurm."""
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def daemon(self, *command: str) -> None:
        with open(self.folder / "daemons.log", "a") as log:
            process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *command),  # none outlives this process
                env={**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.callback(process.wait)
        self.daemons.callback(process.terminate)

    def _start(self) -> None:
        for name in ("state", "database"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        values = {"folder": self.folder, "host": socket.gethostname().split(".")[0], "ports": free_ports()}
        for name, text in {"slurm": SETTINGS, "slurmdbd": ACCOUNTING, "gres": GPUS}.items():
            (self.folder / f"{name}.conf").write_text(text.format(**values))
            (self.folder / f"{name}.conf").chmod(0o600 if name == "slurmdbd" else 0o644)
        SYSTEM.unlink(missing_ok=True)
        SYSTEM.symlink_to(self.folder / "slurm.conf")
        self.daemons.callback(SYSTEM.unlink)
        key, munge = f"{self.folder}/munge.key", f"{self.folder}/munge"
        self.call("mungekey", "--create", f"--keyfile={key}")
        places = [f"--{place}-file={munge}.{place}" for place in ("pid", "log", "seed")]
        self.daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}.socket", *places)
        self._database(values["ports"][4])
        self.daemon("slurmdbd", "-D")
        self._wait(lambda: "test" in self.call("sacctmgr", "-i", "add", "cluster", "test"), "slurmdbd")
        self.daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self.daemon("slurmd", "-D", "-N", node)
        self.call("sacctmgr", "-i", "add", "account", "lab", "Cluster=test")
        self.call("sacctmgr", "-i", "add", "user", "root", "Account=lab")
        self._wait(lambda: self.call("sinfo", "-h", "-o", "%t %D").strip() == "idle 2", "the nodes")

    def _database(self, port: int) -> None:
        data, stored = self.folder / "database", ("--no-defaults", "--user=root")
        self.call("mariadb-install-db", *stored, f"--datadir={data}", "--auth-root-authentication-method=normal")
        begin = data / "begin.sql"
        users = [f"slurm@'{host}'" for host in ("127.0.0.1", "localhost")]
        statements = ["create database slurm_acct_db;"]
        for user in users:
            statements += [f"create user {user} identified by 'slurm';", f"grant all on slurm_acct_db.* to {user};"]
        begin.write_text("\n".join(statements))
        place = (f"--datadir={data}", f"--socket={data}/socket", f"--port={port}", "--bind-address=127.0.0.1")
        limits = ("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900")
        self.daemon("mariadbd", *stored, *place, *limits, f"--init-file={begin}")
        self._wait(
            lambda: "alive" in self.call("mariadb-admin", "--no-defaults", f"--socket={data}/socket", "ping"), "MariaDB"
        )

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if ready():
                    return
            except subprocess.CalledProcessError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"Slurm: {what}: not ready after 60 s:\n{(self.folder / 'daemons.log').read_text()}")


def free_ports() -> list[int]:
    """The first four of a run that ends with the fifth, free at this moment."""
    servers = []
    for first in range(16817, 30000, 10):
        try:
            servers = [socket.create_server(("127.0.0.1", first + offset)) for offset in range(5)]
        except OSError:
            continue
        break
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


if __name__ == "__main__":
    with Cluster(Path(sys.argv[1])) as cluster:
        print(cluster.call("sinfo"), flush=True)
        sys.stdin.read()
