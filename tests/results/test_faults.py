"""Failing disks, files changed by others and missing locks lose no results and give correct messages."""

import errno
import fcntl
import io
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compresskv.errors import UserError
from evals.results import lock
from evals.results.finish import finish
from evals.results.record import Record
from evals.results.store import SampleStore, write_bytes, write_json
from tests.support.command import ROOT, run
from tests.support.refusals import assert_about, refused
from tests.support.trees import about, line


@pytest.fixture
def store(tmp_path):
    """An open store with the samples "1" and "2"."""
    opened = SampleStore(tmp_path / "runs" / "a")
    for id in ("1", "2"):
        opened.append(line(id))
    yield opened
    opened.close()


def samples(folder: Path) -> list[str]:
    """The ids that a new run finds."""
    opened = SampleStore(folder)
    opened.close()
    return list(opened.lines)


def failing(code: int):
    """A system call that fails with `code`."""

    def call(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return call


def half_a_line(code: int):
    """A `write` that takes 20 bytes and then fails with `code`."""
    real, first = os.write, iter([True])
    return lambda descriptor, content: real(descriptor, content[:20]) if next(first, False) else failing(code)()


def refuse_writing(monkeypatch, folder: Path, code: int) -> None:
    """Every write below `folder` fails with `code`, as on a full or read-only file system."""
    real_open, real_io_open, real_mkdir = os.open, io.open, os.mkdir

    def check(path: object, writing: bool) -> None:
        if writing and isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(folder):
            raise OSError(code, os.strerror(code), str(path))

    def open_descriptor(path, flags, *arguments, **options):
        check(path, bool(flags & (os.O_WRONLY | os.O_RDWR)))
        return real_open(path, flags, *arguments, **options)

    def open_file(path, mode="r", *arguments, **options):
        check(path, not set(mode).isdisjoint("wxa+"))
        return real_io_open(path, mode, *arguments, **options)

    def make(path, *arguments, **options):
        check(path, not os.path.exists(path))
        return real_mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_descriptor)
    monkeypatch.setattr(io, "open", open_file)
    monkeypatch.setattr(os, "mkdir", make)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_line_that_the_disk_refuses_leaves_the_file_as_it_was(store, monkeypatch, code, call):
    before = store.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, half_a_line(code) if call == "write" else failing(code))
        with refused("paths.results"):
            store.append(line("3"))
    assert store.path.read_bytes() == before
    store.append(line("3"))
    store.close()
    assert samples(store.folder) == ["1", "2", "3"]


def test_where_half_a_line_cannot_be_taken_back_nothing_more_is_written(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half_a_line(errno.EIO))
        patched.setattr(os, "ftruncate", failing(errno.EIO))
        with refused("paths.results"):
            store.append(line("3"))
    with refused(None):
        store.append(line("3"))
    store.close()
    assert samples(store.folder) == ["1", "2"]


TOUCHED = {
    "removed": lambda path: path.unlink(),
    "its folder removed": lambda path: shutil.rmtree(path.parent),
    "its folder renamed": lambda path: path.parent.rename(path.parent.with_name("b")),
    "replaced by a copy": lambda path: (shutil.copy(path, path.with_name("c")), os.replace(path.with_name("c"), path)),
    "emptied": lambda path: os.truncate(path, 0),
    "cut in a line": lambda path: os.truncate(path, path.stat().st_size - 5),
    "cut behind a line": lambda path: os.truncate(path, len(path.read_bytes().splitlines(keepends=True)[0])),
    "written to": lambda path: path.open("a").write("{}\n"),
}


@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED)
def test_files_that_are_touched_under_a_run_are_noticed(store, touch):
    touch(store.path)
    for use in (lambda: store.append(line("3")), lambda: finish(store, ["1", "2"], about(), store.folder.parent)):
        with refused(None):
            use()
    assert not (store.folder / "summary.json").exists()


def test_an_edit_that_keeps_the_size_is_noticed_before_the_summary(store):
    content = store.path.read_bytes()
    with store.path.open("r+b") as file:
        file.write(content.replace(b'"truncated": false', b'"truncated": true '))
    assert store.path.read_bytes() != content
    with refused(None):
        finish(store, ["1", "2"], about(), store.folder.parent)
    assert not (store.folder / "summary.json").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it(tmp_path, monkeypatch, call, code):
    path = tmp_path / "summary.json"
    write_json(path, {"score": 1})
    before = path.read_bytes()
    monkeypatch.setattr(os, call, failing(code))
    with refused("paths.results"):
        write_json(path, {"score": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["summary.json"]


def test_results_that_are_read_only_are_read(store, tmp_path, monkeypatch):
    made = finish(store, ["1", "2"], about(), tmp_path / "runs").summary
    store.close()
    refuse_writing(monkeypatch, tmp_path, errno.EROFS)
    again = SampleStore(store.folder)
    assert (again.writable, list(again.lines)) == (False, ["1", "2"])
    assert finish(again, ["1", "2"], about(), tmp_path / "runs").summary == made
    with refused("paths.results"):
        again.append(line("3"))
    again.close()
    with refused("paths.results"):
        SampleStore(tmp_path / "runs" / "new")


def test_a_sweep_over_finished_results_that_are_read_only_shows_them(checkpoint, tmp_path, monkeypatch):
    sweep = [
        "-m", "method=full,snapkv", "budget=64", "eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=4",
        f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", f"paths.results={tmp_path / 'out'}",
    ]  # fmt: skip
    first = run(*sweep)
    assert first.returncode == 0, first.stderr
    refuse_writing(monkeypatch, tmp_path / "out", errno.EROFS)
    again = run(*sweep, figures=True)
    assert again.returncode == 0, again.stderr
    assert [row for row in first.stdout.splitlines() if "│ SnapKV 64" in row][-1] in again.stdout
    assert "2 samples, 2 of them from before" in again.stdout
    assert "no figure: " in again.stdout
    assert "Traceback" not in again.stderr


def test_a_setting_takes_one_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    opened = [SampleStore(tmp_path / str(number)) for number in range(20)]
    assert len(os.listdir("/proc/self/fd")) - before == len(opened)
    for store in opened:
        store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_settings_than_files_may_be_open_at_first(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 40, hard))
    try:
        opened = [SampleStore(tmp_path / str(number)) for number in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for store in opened:
        store.close()


def test_too_many_open_files(tmp_path, monkeypatch):
    raised, real = [], os.open
    refusals = iter([errno.EMFILE])

    def once(path, flags, *arguments, **options):
        if flags & os.O_CREAT and next(refusals, None):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr("resource.setrlimit", lambda _, limits: raised.append(limits))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", once)
        SampleStore(tmp_path / "a").close()
    assert [soft == hard for soft, hard in raised] == [True]
    (tmp_path / "b").mkdir()
    refuse_writing(monkeypatch, tmp_path / "b", errno.EMFILE)
    with refused("paths.results"):
        SampleStore(tmp_path / "b")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_where_there_are_no_locks_a_file_takes_their_place(tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(fcntl, "flock", failing(code))
    lock._tell_once.cache_clear()
    first = SampleStore(tmp_path)
    first.append(line("1"))
    with refused("paths.results"):
        SampleStore(tmp_path)
    assert Record(tmp_path, tmp_path).running
    assert capsys.readouterr().err.count("has no locks") == 1
    first.close()
    assert os.listdir(tmp_path) == ["samples.jsonl"]
    assert samples(tmp_path) == ["1"]


@pytest.mark.parametrize(
    ("owner", "free"),
    [(f"{2**22 + 1}\n{socket.gethostname()}\n", True), ("1\nelsewhere\n", False), ("", False), ("nonsense", False)],
    ids=["a process that is gone", "of another machine", "empty", "no process"],
)
def test_without_locks_only_a_process_that_is_known_to_be_gone_is_succeeded(tmp_path, monkeypatch, owner, free):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    (tmp_path / ".owner").write_text(owner)
    if free:
        SampleStore(tmp_path).close()
        return
    with refused("paths.results"):
        SampleStore(tmp_path)
    assert (tmp_path / ".owner").read_text() == owner


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_only_a_lock_that_is_held_means_another_process(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", failing(code))
    with refused("paths.results"):
        SampleStore(tmp_path)


def test_one_of_five_equal_sweeps_proceeds_and_the_others_say_who_does(tmp_path):
    together = threading.Barrier(5)

    def start(_: int) -> SampleStore | UserError:
        together.wait()
        try:
            return SampleStore(tmp_path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(5) as pool:
        ends = list(pool.map(start, range(5)))
    (one,) = [end for end in ends if isinstance(end, SampleStore)]
    refusals = [end for end in ends if isinstance(end, UserError)]
    assert len(refusals) == 4
    for refusal in refusals:
        assert_about(refusal, "paths.results", value=tmp_path)
    one.append(line("1"))
    one.close()
    assert samples(tmp_path) == ["1"]


def test_a_reader_does_not_make_a_starting_writer_fail(store):
    store.close()
    reader = os.open(store.path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.1, lambda: os.close(reader)).start()
    assert samples(store.folder) == ["1", "2"]


def test_a_line_that_is_being_written_is_no_fault(store):
    with store.path.open("ab") as file:
        file.write(b'{"id": "3", "sc')
    record = Record(store.folder, store.folder.parent)
    assert record.running
    assert (list(record.samples), record.problems) == (["1", "2"], [])


def test_what_a_killed_process_was_writing_is_removed_by_the_next_write(tmp_path):
    code = """
import os, sys
from pathlib import Path
from evals.results import store
store.os.replace = lambda *names: os._exit(9)
store.write_bytes(Path(sys.argv[1]), b"half")
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "table.md")], cwd=ROOT)
    assert killed.returncode == 9
    (left,) = tmp_path.glob(".*.tmp")
    mine = tmp_path / left.name.replace(left.name.split("-")[1], str(os.getpid()))
    for path in (mine, tmp_path / ".of-somebody.tmp"):
        path.write_bytes(b"")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 10,) * 2)
    write_bytes(tmp_path / "table.md", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", mine.name, ".of-somebody.tmp"}
