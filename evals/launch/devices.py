"""A sweep on several devices of this machine: one process per device, which runs one group after another."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.console import Console

from compresskv.errors import UserError
from evals.launch.executor import Executor, InProcess, Sweep
from evals.launch.groups import Group
from evals.launch.processes import GroupRun, command_lines, report
from evals.launch.worker import Worker
from evals.results.store import new_folder, refused


@dataclass(frozen=True)
class Devices:
    """Runs the groups of a sweep in one process per device."""

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
            raise UserError(
                None, f"see {late[0].log}", why=f"{late[0].group.name}: all settings finished, but not what follows"
            )


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
            "hydra.launcher.devices",
            "set model.device=auto, or leave hydra.launcher.devices out",
            value=devices,
            why=f"model.device={fixed} asks for another",
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
    field = "hydra.launcher.devices"
    if not isinstance(devices, list) or not devices or any(type(device) not in (int, str) for device in devices):
        raise UserError(
            field, "give a list of devices as CUDA_VISIBLE_DEVICES names them, such as [0,1], or null", value=devices
        )
    names = [str(device) for device in devices]
    if len(set(names)) < len(names):
        raise UserError(field, "name each device once", value=devices)
    here = visible()
    if unknown := [name for name in names if here and name not in here]:
        raise UserError(field, f"choose from {', '.join(here)}", value=devices, why=f"there is no device {unknown[0]}")
    return names


class DevicePool:
    """Runs groups in one process per device, which takes the next group when it is done with one.

    A process keeps its model: it goes on with groups of that model while there are any. One that is killed is replaced,
    and its group goes on, once.
    """

    def __init__(self, names: Sequence[str], command: Sequence[str], folder: Path, console: Console) -> None:
        self.names, self.command, self.folder, self.console = names, command, folder, console
        self._workers: dict[str, Worker] = {}
        self._models: dict[str, str] = {}
        self._waiting: dict[int, Group] = {}
        self._ended: dict[int, tuple[GroupRun, int]] = {}
        self._stopping = False
        self._lock = threading.Lock()  # of the fields above; no process starts once the others are told to end

    def run(self, groups: Sequence[Group]) -> tuple[list[GroupRun], list[int]]:
        """All groups to their end, with the exit code of each: 0, or that of its last command line that failed.

        Whatever ends this early ends all processes, too.
        """
        self._waiting = dict(enumerate(groups))
        threads = ThreadPoolExecutor(len(self.names))
        try:
            for future in [threads.submit(self._serve, device, len(groups)) for device in self.names]:
                future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            self._stop()
        ended = [self._ended[number] for number in range(len(groups))]
        return [run for run, _ in ended], [code for _, code in ended]

    def _serve(self, device: str, count: int) -> None:
        """Run groups on a device until none waits."""
        # Without a terminal, lines would be cut to 80 columns.
        environment = {"COLUMNS": "160", **os.environ, "CUDA_VISIBLE_DEVICES": device}
        # Ctrl-C comes to this process, which passes it on.
        worker = Worker(environment, stdout=subprocess.DEVNULL, process_group=0)
        while (taken := self._take(device, worker)) is not None:
            number, group = taken
            title = f"[{device} {group.name}]"
            log = self.folder / f"{number}.log"
            self._print(f"{title} group {number + 1} of {count}, log: {log}")
            lines = command_lines(self.command, group, self.folder, number)
            codes = [self._run(line, worker, title, log) for line in lines.values()]
            code = next(filter(None, reversed(codes)), 0)
            self._print(f"{title} {_end(code)}")
            self._ended[number] = GroupRun(group, f"the process on device {device}", log, tuple(lines)), code
        if not self._stopping:
            worker.end()

    def _take(self, device: str, worker: Worker) -> tuple[int, Group] | None:
        """The next group for a device: of the model that it has, else of one that no device has, else the first."""
        with self._lock:
            if self._stopping or not self._waiting:
                return None

            def loads(number: int) -> int:
                model = self._waiting[number].model
                return 0 if model == self._models.get(device) else 1 + (model in self._models.values())

            number = min(self._waiting, key=loads)
            group = self._waiting.pop(number)
            self._workers[device], self._models[device] = worker, group.model
            return number, group

    def _run(self, command: Sequence[str], worker: Worker, title: str, log: Path) -> int:
        """One command line to its end, in a second process if the first is killed.

        What it writes to stderr, such as its progress, is passed on.
        """
        with _opened(log) as file:

            def log_line(line: bytes) -> None:
                with contextlib.suppress(OSError):  # a log is not worth a sample
                    file.write(line)

            def pass_on(line: bytes) -> None:
                log_line(line)
                self._print(f"{title} {line.decode(errors='replace').rstrip()}")

            again = False
            while True:
                log_line(f"$ {shlex.join(command)}\n".encode())
                with self._lock:
                    if self._stopping:
                        return -signal.SIGTERM
                    worker.start()
                code = worker.run(command[1:], log, pass_on)
                if code >= 0 or again or self._stopping:
                    return code
                self._print(f"{title} {_end(code)}: goes on in another process")
                again = True

    def _print(self, text: str) -> None:
        if not self._stopping:
            self.console.print(text)

    def _stop(self) -> None:
        """Tell what still runs to end, and kill it if interrupted again; returns when no process is left."""
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
            processes = [worker.process for worker in self._workers.values()]
        running = [process for process in processes if process and process.poll() is None]
        for process in running:
            signal_of(process)
            if process.stdin:
                process.stdin.close()  # no further command line comes
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
