"""A sweep on several devices of this machine: a process for each group, one process a device at a time."""

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import torch
from rich.console import Console

from compresskv.errors import UserError
from evals.efficiency import EfficiencyConfig
from evals.group_runs import GroupRun, command_lines, report
from evals.groups import Group, groups
from evals.job import job_from
from evals.results.store import new_folder, refused


def launch(
    devices: Any,
    command: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    overrides: Sequence[Sequence[str]],
    outcome_file: Path | None = None,
) -> bool:
    """Run a sweep on `devices`, as `hydra.launcher.devices` has them; False where it is to run in this process.

    Raises `UserError` for a bad value, and in the end for what failed.
    """
    names = visible() if devices is None else named(devices)
    if devices is None and len(names) < 2:
        return False
    jobs = [job_from(config) for config in configs]
    found = groups(jobs, overrides)
    fixed = next((job.model.device for job in jobs if job.model.device != "auto"), None)
    timed = any(isinstance(job.eval, EfficiencyConfig) for job in jobs)  # what is timed must be alone
    if devices is None and (fixed or timed or len(found) < 2):
        return False
    if fixed:
        raise UserError(
            f"hydra.launcher.devices={devices}: model.device={fixed} asks for another: set model.device=auto, or leave "
            "hydra.launcher.devices out"
        )
    for ends in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ends) is signal.SIG_DFL:
            signal.signal(ends, signal.default_int_handler)  # ends like Ctrl-C
    say = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    folder = new_folder(jobs[0].results.absolute() / "devices")
    say.print(f"spread over devices {', '.join(names)}; logs in {folder}")
    if not visible():
        say.print("no GPU is visible: these processes share the CPU")
    # A process sees one device. Without the null, an experiment that names several would have it start more.
    runs, codes = DevicePool(names, [*command, "hydra.launcher.devices=null"], folder, say).run(found)
    report(runs, [_end(code) for code in codes], say, outcome_file)
    if late := [run for run, code in zip(runs, codes, strict=True) if code]:
        raise UserError(f"{late[0].group.name}: all settings finished, but not what follows: see {late[0].log}")
    return True


def visible() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; makes no CUDA context."""
    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if listed is None else listed.split(",")
    return [name.strip() for name in names][:count]


def named(devices: Any) -> list[str]:
    """The user's choice of devices. Raises `UserError` if it is none."""
    choice = f"hydra.launcher.devices={devices}"
    if not isinstance(devices, list) or not devices or any(type(device) not in (int, str) for device in devices):
        raise UserError(f"{choice}: give a list of devices as CUDA_VISIBLE_DEVICES names them, such as [0,1], or null")
    names = [str(device) for device in devices]
    if len(set(names)) < len(names):
        raise UserError(f"{choice}: name each device once")
    here = visible()
    if unknown := [name for name in names if here and name not in here]:
        raise UserError(f"{choice}: there is no device {unknown[0]}: choose from {', '.join(here)}")
    return names


class DevicePool:
    """Runs groups as processes, each on the next device that is free."""

    def __init__(self, names: Sequence[str], command: Sequence[str], folder: Path, say: Console) -> None:
        self.command, self.folder, self.say = command, folder, say
        self._threads = ThreadPoolExecutor(len(names))
        self._free: SimpleQueue[str] = SimpleQueue()
        for name in names:
            self._free.put(name)
        self._processes: list[subprocess.Popen] = []
        self._stopping = False
        self._lock = threading.Lock()  # no process starts once the others are told to end

    def run(self, found: Sequence[Group]) -> tuple[list[GroupRun], list[int]]:
        """All groups to their end, with the exit code of each: 0, or that of its last command line that failed.

        Whatever ends this early ends all processes, too.
        """
        try:
            futures = [self._threads.submit(self._run, found, number) for number in range(len(found))]
            ended = [future.result() for future in futures]
        finally:
            self._stop()
        return [run for run, _ in ended], [code for _, code in ended]

    def _run(self, found: Sequence[Group], number: int) -> tuple[GroupRun, int]:
        group = found[number]
        lines = command_lines(self.command, group, self.folder, number)
        log = self.folder / f"{number}.log"
        device = self._free.get()
        title = f"[{device} {group.name}]"
        try:
            self._tell(f"{title} group {number + 1} of {len(found)}, log: {log}")
            with _opened(log) as file:
                codes = [self._process(line, device, title, file) for line in lines.values()]
        finally:
            self._free.put(device)
        code = next(filter(None, reversed(codes)), 0)
        self._tell(f"{title} {_end(code)}")
        return GroupRun(group, f"the process on device {device}", log, tuple(lines)), code

    def _process(self, command: Sequence[str], device: str, title: str, log: BinaryIO) -> int:
        """One command line to its end; what it says on stderr, such as its progress, is passed on."""
        log.write(f"$ {shlex.join(command)}\n".encode())
        # Without a terminal, lines would be cut to 80 columns.
        environment = {"COLUMNS": "160", **os.environ, "CUDA_VISIBLE_DEVICES": device, "PYTHONUNBUFFERED": "1"}
        with self._lock:
            if self._stopping:
                return -signal.SIGTERM
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C comes to this process, which passes it on
            )
            self._processes.append(process)
        with process:
            for line in process.stderr or ():
                log.write(line)
                self._tell(f"{title} {line.decode(errors='replace').rstrip()}")
        return process.returncode

    def _tell(self, text: str) -> None:
        if not self._stopping:
            self.say.print(text)

    def _stop(self) -> None:
        """Tell what still runs to end, and kill it if interrupted again; returns when no process is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        try:
            if running := self._send(subprocess.Popen.terminate):
                self.say.print("waiting for the processes to end; Ctrl-C kills them")
            for process in running:
                process.wait()
        except KeyboardInterrupt:
            for process in self._send(subprocess.Popen.kill):
                process.wait()

    def _send(self, signal_of: Callable[[subprocess.Popen], None]) -> list[subprocess.Popen]:
        """Signal all processes that still run, and let no other start; returns them."""
        with self._lock:
            self._stopping = True
            running = [process for process in self._processes if process.poll() is None]
        for process in running:
            signal_of(process)
        return running


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("ab", buffering=0)
    except OSError as error:
        raise refused(log.parent, error) from error


def _end(code: int) -> str:
    """How a process ended, by its exit code as `Popen` gives it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else "done"
