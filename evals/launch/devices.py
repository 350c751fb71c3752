"""A sweep on several devices of this machine: a process for each group, one process per device at a time."""

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import torch
from rich.console import Console

from compresskv.errors import UserError
from evals.launch.executor import Executor, InProcess, Sweep
from evals.launch.groups import Group
from evals.launch.processes import GroupRun, command_lines, report
from evals.results.store import new_folder, refused


@dataclass(frozen=True)
class Devices:
    """Runs each group of a sweep in a process of its own, one process per device at a time."""

    names: Sequence[str]

    def run(self, sweep: Sweep) -> None:
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        folder = new_folder(sweep.jobs[0].results.absolute() / "devices")
        console.print(f"spread over devices {', '.join(self.names)}; logs in {folder}")
        if not visible():
            console.print("no GPU is visible: these processes share the CPU")
        # A process sees one device. Without the null, an experiment that names several would have it start more.
        pool = DevicePool(self.names, [*sweep.command, "hydra.launcher.devices=null"], folder, console)
        runs, codes = pool.run(sweep.groups)
        report(runs, [_end(code) for code in codes], console, sweep.outcome)
        if late := [run for run, code in zip(runs, codes, strict=True) if code]:
            raise UserError(f"{late[0].group.name}: all settings finished, but not what follows: see {late[0].log}")


def executor(devices: Any, sweep: Sweep) -> Executor:
    """What runs `sweep` on `devices`, as `hydra.launcher.devices` has them; null: all visible ones, where that helps.

    Raises `UserError` for a bad value.
    """
    fixed = next((job.model.device for job in sweep.jobs if job.model.device != "auto"), None)
    if devices is None:
        names = visible()
        alone = any(job.eval.alone for job in sweep.jobs)
        if len(names) < 2 or fixed or alone or len(sweep.groups) < 2:
            return InProcess()
        return Devices(names)
    names = named(devices)
    if fixed:
        raise UserError(
            f"hydra.launcher.devices={devices}: model.device={fixed} asks for another: set model.device=auto, or leave "
            "hydra.launcher.devices out"
        )
    return Devices(names)


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

    def __init__(self, names: Sequence[str], command: Sequence[str], folder: Path, console: Console) -> None:
        self.command, self.folder, self.console = command, folder, console
        self._threads = ThreadPoolExecutor(len(names))
        self._free: SimpleQueue[str] = SimpleQueue()
        for name in names:
            self._free.put(name)
        self._processes: list[subprocess.Popen] = []
        self._stopping = False
        self._lock = threading.Lock()  # no process starts once the others are told to end

    def run(self, groups: Sequence[Group]) -> tuple[list[GroupRun], list[int]]:
        """All groups to their end, with the exit code of each: 0, or that of its last command line that failed.

        Whatever ends this early ends all processes, too.
        """
        try:
            futures = [self._threads.submit(self._run, groups, number) for number in range(len(groups))]
            ended = [future.result() for future in futures]
        finally:
            self._stop()
        return [run for run, _ in ended], [code for _, code in ended]

    def _run(self, groups: Sequence[Group], number: int) -> tuple[GroupRun, int]:
        group = groups[number]
        lines = command_lines(self.command, group, self.folder, number)
        log = self.folder / f"{number}.log"
        device = self._free.get()
        title = f"[{device} {group.name}]"
        try:
            self._print(f"{title} group {number + 1} of {len(groups)}, log: {log}")
            with _opened(log) as file:
                codes = [self._process(line, device, title, file) for line in lines.values()]
        finally:
            self._free.put(device)
        code = next(filter(None, reversed(codes)), 0)
        self._print(f"{title} {_end(code)}")
        return GroupRun(group, f"the process on device {device}", log, tuple(lines)), code

    def _process(self, command: Sequence[str], device: str, title: str, log: BinaryIO) -> int:
        """One command line to its end; what it writes to stderr, such as its progress, is passed on."""
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
                self._print(f"{title} {line.decode(errors='replace').rstrip()}")
        return process.returncode

    def _print(self, text: str) -> None:
        if not self._stopping:
            self.console.print(text)

    def _stop(self) -> None:
        """Tell what still runs to end, and kill it if interrupted again; returns when no process is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        try:
            if running := self._send(subprocess.Popen.terminate):
                self.console.print("waiting for the processes to end; Ctrl-C kills them")
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
