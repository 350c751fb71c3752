"""Run a sweep on several devices of this machine, with one process per device that runs groups one by one."""

import contextlib
import os
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
from evals.files import new_folder, refused
from evals.job import Job
from evals.launch import worker
from evals.launch.groups import Group, groups
from evals.launch.report import GroupRun, report
from evals.launch.worker import Answer, Worker

Run = Callable[[Sequence[Job]], None]
"""A function that runs a sweep and reports it. It raises `UserError` at the end if settings failed."""


@dataclass(frozen=True)
class Devices:
    """Runs the groups of a sweep in one process per device."""

    names: Sequence[str]

    def __call__(self, jobs: Sequence[Job]) -> None:
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        folder = new_folder(jobs[0].results.absolute() / "devices")
        console.print(f"spread over devices {', '.join(self.names)}; logs in {folder}")
        if not visible():
            console.print("no GPU is visible: the processes share the CPU")
        pool = DevicePool(self.names, folder, console)
        runs, codes = pool.run(groups(jobs))
        report(runs, console)
        if late := [run for run, code in zip(runs, codes, strict=True) if code]:
            raise UserError(
                None, f"see {late[0].log}", why=f"{late[0].group.name}: all settings finished, but the process failed"
            )


def runner(devices: Any, jobs: Sequence[Job]) -> Run:
    """Return the function that runs `jobs` on `hydra.launcher.devices`; None: on all visible devices if that helps."""
    fixed = next((job.model.device for job in jobs if job.model.device != "auto"), None)
    if devices is None:
        names = visible()
        alone = any(job.eval.alone for job in jobs)
        if len(names) < 2 or fixed or alone or len(groups(jobs)) < 2:
            from evals.running.sweep import run

            return run
        return Devices(names)
    names = named(devices)
    if fixed:
        raise UserError(
            "hydra.launcher.devices",
            "set model.device=auto, or leave hydra.launcher.devices out",
            value=devices,
            why=f"model.device={fixed} names another device",
        )
    return Devices(names)


def visible() -> list[str]:
    """Return the CUDA devices that this process may use, as named in CUDA_VISIBLE_DEVICES. Creates no CUDA context."""
    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if listed is None else listed.split(",")
    return [name.strip() for name in names][:count]


def named(devices: Any) -> list[str]:
    """Return the names of the chosen devices. Raises `UserError` unless `devices` is a list of known devices."""
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
        raise UserError(field, f"choose from {', '.join(here)}", value=devices, why=f"device {unknown[0]} not found")
    return names


class DevicePool:
    """Runs groups in one process per device; a process takes the next group when it has finished one.

    A process keeps its model loaded and takes groups of that model first. If a process is killed, another process
    resumes the group, once per group.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, console: Console, command: Sequence[str] | None = None
    ) -> None:
        self.names, self.folder, self.console, self.command = names, folder, console, command or worker.COMMAND
        self._workers: dict[str, Worker] = {}
        self._models: dict[str, str] = {}
        self._waiting: dict[int, Group] = {}
        self._ended: dict[int, tuple[GroupRun, int]] = {}
        self._stopping = False
        self._lock = threading.Lock()  # guards the fields above; no process starts after `_stop`

    def run(self, groups: Sequence[Group]) -> tuple[list[GroupRun], list[int]]:
        """Run all groups and return them with their exit codes. An exception or a signal ends all processes."""
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
        """Run groups on a device until no group is waiting."""
        # Without a terminal, lines would be cut to 80 columns.
        environment = {"COLUMNS": "160", **os.environ, "CUDA_VISIBLE_DEVICES": device}
        # The worker has a separate process group: only this process receives Ctrl-C, and passes it on.
        worker = Worker(environment, self.command, process_group=0)
        while (taken := self._take(device, worker)) is not None:
            number, group = taken
            title = f"[{device} {group.name}]"
            log = self.folder / f"{number}.log"
            self._print(f"{title} group {number + 1} of {count}, log: {log}")
            answer = self._run(group, worker, title, log)
            end = _end(answer.code)
            self._print(f"{title} {end}")
            run = GroupRun(group, f"the process on device {device}", log, end, answer.entries)
            self._ended[number] = run, answer.code
        if not self._stopping:
            worker.end()

    def _take(self, device: str, worker: Worker) -> tuple[int, Group] | None:
        """Take the next group: of the device's own model, else of a model that no device has, else the first."""
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

    def _run(self, group: Group, worker: Worker, title: str, log: Path) -> Answer:
        """Run one group, in a second process if the first is killed. Prints all that the process writes to stderr."""
        with _opened(log) as file:

            def log_line(line: bytes) -> None:
                with contextlib.suppress(OSError):  # samples must not be lost if the log is not writable
                    file.write(line)

            def pass_on(line: bytes) -> None:
                log_line(line)
                self._print(f"{title} {line.decode(errors='replace').rstrip()}")

            again = False
            while True:
                log_line(f"{title} {len(group.jobs)} settings\n".encode())
                with self._lock:
                    if self._stopping:
                        return Answer(-signal.SIGTERM)
                    worker.start()
                answer = worker.run(group.configs, log, pass_on)
                if answer.code >= 0 or again or self._stopping:
                    return answer
                self._print(f"{title} {_end(answer.code)}: resumes in another process")
                again = True

    def _print(self, text: str) -> None:
        if not self._stopping:
            self.console.print(text)

    def _stop(self) -> None:
        """Terminate all running processes and wait for them to end; kill them if interrupted again."""
        try:
            if running := self._send(subprocess.Popen.terminate):
                self.console.print("waiting for the processes to end; Ctrl-C kills them")
            for process in running:
                process.wait()
        except KeyboardInterrupt:
            for process in self._send(subprocess.Popen.kill):
                process.wait()

    def _send(self, signal_of: Callable[[subprocess.Popen], None]) -> list[subprocess.Popen]:
        """Signal all running processes, start no new process, and return the signalled processes."""
        with self._lock:
            self._stopping = True
            processes = [worker.process for worker in self._workers.values()]
        running = [process for process in processes if process and process.poll() is None]
        for process in running:
            signal_of(process)
            if process.stdin:
                process.stdin.close()  # there are no further groups
        return running


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("ab", buffering=0)
    except OSError as error:
        raise refused(log.parent, error) from error


def _end(code: int) -> str:
    """Describe how a process ended, by its exit code as in `Popen.returncode`."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else "done"
