"""What surrounds a run: proxies, processors, the temporary folder, the disk, the report."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from curation.base import files, processors, scratch
from curation.base.errors import CocuError, OutputError
from curation.base.terminal import run_command
from pipelines import runners
from pipelines.curate import main

ROOT = Path(__file__).parent.parent
FAULTS = bool(os.environ.get("FAULTS"))


# --- proxies ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "intern.example"}, "intern.example,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "intern.example,127.0.0.1"}, "intern.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "localhost,127.0.0.1,::1"}, "localhost,127.0.0.1,::1"),
    ],
)
def test_this_machine_is_excepted_from_proxies(monkeypatch, before, after):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "NO_GRPC_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    runners.reach_this_machine_directly()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after
    assert "no_grpc_proxy" not in os.environ
    monkeypatch.setenv("no_grpc_proxy", "other.example")
    runners.reach_this_machine_directly()
    assert dict(os.environ)["no_grpc_proxy"] == "other.example,localhost,127.0.0.1,::1"


def test_a_run_with_worker_processes_behind_a_proxy_that_is_not_there(world, tmp_path):
    proxy = "http://127.0.0.1:9"
    environment = os.environ | {"http_proxy": proxy, "https_proxy": proxy, "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in environment.items() if name.lower() != "no_proxy"}
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(world), "--output", str(tmp_path / "out")]
    run = subprocess.run(
        [*command, "--workers", "1"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr


# --- processors ---

V1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"


def v1(mount: str, quota: str, period: str = "100000") -> dict[str, str]:
    folder = f"/sys/fs/cgroup/{mount}"
    return {f"{folder}/cpu.cfs_quota_us": quota + "\n", f"{folder}/cpu.cfs_period_us": period + "\n"}


@pytest.mark.parametrize(
    ("affinity", "membership", "contents", "expected"),
    [
        (8, "", {}, 8),
        (1, "", {}, 1),
        (8, "0::/\n", {"/sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (8, "0::/\n", {"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (8, "0::/\n", {"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        (8, "0::/\n", {"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (2, "0::/\n", {"/sys/fs/cgroup/cpu.max": "400000 100000\n"}, 2),
        (8, "0::/a/b\n", {"/sys/fs/cgroup/a/b/cpu.max": "300000 100000"}, 3),
        (8, "0::/a/b\n", {"/sys/fs/cgroup/a/cpu.max": "300000 100000", "/sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 3),
        (8, "0::/a\n", {"/sys/fs/cgroup/a/cpu.max": "600000 100000", "/sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (8, "0::/../../x\n", {"/sys/fs/cgroup/x/cpu.max": "200000 100000"}, 2),
        (8, "0::/a\n", {"/sys/fs/cgroup/a/cpu.max": "garbage"}, 8),
        (8, "0::/a\n", {"/sys/fs/cgroup/a/cpu.max": "0 0"}, 8),
        (8, "garbage\n:\n", {}, 8),
        (8, V1, v1("cpu/docker/abc", "200000"), 2),
        (8, V1, v1("cpu,cpuacct/docker/abc", "250000"), 3),
        (8, V1, v1("cpu", "300000"), 3),
        (8, V1, v1("cpu/docker/abc", "-1"), 8),
        (8, V1, v1("memory/docker/abc", "100000"), 8),
        (16, V1 + "0::/u\n", v1("cpu", "900000") | {"/sys/fs/cgroup/u/cpu.max": "500000 100000"}, 5),
    ],
)
def test_affinity_and_quota_limit_the_processors(affinity, membership, contents, expected):
    assert processors.limited(affinity, membership, lambda path: contents.get(path, "")) == expected


def test_the_affinity_of_this_process_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert processors.usable_processors() == 1


def test_the_number_of_workers_is_that_of_the_processors(monkeypatch, world, tmp_path):
    asked = []

    @contextmanager
    def engine(request):
        asked.append(request.workers)
        raise OutputError("enough")
        yield

    monkeypatch.setattr(runners, "usable_processors", lambda: 2)
    monkeypatch.setitem(runners.RUNNERS, "DirectRunner", runners.Runner(engine, ""))
    for more in ([], ["--workers", "1"], ["--workers", "64"]):
        main(["--data", str(world), "--output", str(tmp_path / "out"), *more])
    assert asked == [2, 1, 3]  # of three shards


# --- the temporary folder ---


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_a_scratch_folder_is_gone_after_its_block(temporary):
    with pytest.raises(ValueError, match="mine"), scratch.scratch() as folder:
        assert Path(folder).parent == temporary
        assert Path(folder).stat().st_mode & 0o077 == 0
        raise ValueError("mine")
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_stays(temporary):
    code = "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]; from curation.base.scratch import scratch\n"
    code += "with scratch() as folder: open(folder + '/large', 'w').close(); print(folder, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(temporary)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    killed, living = (process.stdout.readline().strip() for process in processes)
    processes[0].kill()
    processes[0].wait()
    (temporary / "cocu-of-somebody-else").mkdir()
    scratch.remove_abandoned()
    assert sorted(temporary.iterdir()) == sorted(
        [Path(living), Path(living + ".lock"), temporary / "cocu-of-somebody-else"]
    )
    assert not Path(killed).exists()
    processes[1].kill()
    processes[1].wait()
    scratch.remove_abandoned()
    assert [path.name for path in temporary.iterdir()] == ["cocu-of-somebody-else"]


def test_folders_of_other_users_and_locks_alone_are_no_trouble(temporary, monkeypatch):
    ours = f"cocu-{os.getuid()}-"
    (temporary / f"{ours}a.lock").touch()
    FileLock(str(temporary / f"{ours}b.lock")).acquire()
    (temporary / f"{ours}c").symlink_to("/")
    scratch.remove_abandoned()
    assert Path("/").is_dir()
    assert not (temporary / f"{ours}a.lock").exists()
    status = os.lstat(temporary)
    monkeypatch.setattr(os, "lstat", lambda path: os.stat_result([*status[:4], status.st_uid + 1, *status[5:]]))
    (temporary / f"{ours}d").mkdir()
    scratch.remove_abandoned()
    assert (temporary / f"{ours}d").exists()


def test_a_temporary_folder_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing" / "deeper"))
    (tmp_path / "missing").write_text("a file")
    with pytest.raises(OutputError, match="make room there, or set TMPDIR"), scratch.scratch():
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_the_temporary_folder_is_clean_after_a_signal(world, temporary, tmp_path, number):
    """After TERM, and INT to all processes, as a terminal sends it, at once; after KILL when the next run has ended."""
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    arguments = ["--data", str(world), "--output", str(tmp_path / "out")]
    options = {"env": environment, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    run = subprocess.Popen(
        [sys.executable, "-m", "pipelines.curate", *arguments, "--workers", "2"],
        **options,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / ".progress").exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        time.sleep(2)  # so that workers are at work, or about to be
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    errors = run.communicate(timeout=60)[1]
    if number != signal.SIGKILL:
        assert run.returncode == 130
        assert errors == "interrupted; run the same command again to resume\n"
    else:
        assert list(temporary.iterdir())
        assert main([*arguments, "--runner", "inprocess"]) == 0
    deadline = time.monotonic() + 20  # workers end by themselves
    while left := list(temporary.rglob("*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize("consequence", [ValueError, CocuError, KeyboardInterrupt])
def test_what_follows_from_an_interruption_is_no_error(capfd, consequence):
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        finally:
            raise consequence("a library that was interrupted")

    assert run_command(work, "interrupted; again") == 130
    assert capfd.readouterr().err == "interrupted; again\n"
    with pytest.raises(ValueError, match="a mistake of ours"):
        run_command(partial(int, "a mistake of ours"))


@pytest.mark.parametrize("module", ["curation.base.terminal", "curation.run.run"])
def test_an_interruption_amid_imports_is_one_line(tmp_path, module):
    """Those of the command itself, and those before it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "cocu", "show", str(tmp_path)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "interrupted\n")


def test_term_ends_a_command_as_interrupted(capfd):
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert run_command(work) == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "interrupted" in capfd.readouterr().err


# --- the disk is full ---

SIZES = range(16, 320, 8) if FAULTS else (24, 90, 230)  # KiB


@contextmanager
def small_disk(folder: Path, kibibytes: int):
    """A file system of this size at ``folder``. Skips the test where none may be mounted."""
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def check_one_clean_line(code: int, captured, where: str) -> None:
    text = captured.err.strip()
    if code == 0:
        return
    assert re.fullmatch(rf"error: {where}[^\n]*: cannot be written \(No space left on device\); [^\n]*", text), text
    assert "Traceback" not in captured.out


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_fills_up_is_one_clean_line_and_the_run_resumes(world, tmp_path, size, capfd):
    with small_disk(tmp_path / "disk", size) as disk:
        arguments = ["--data", str(world), "--output", str(disk / "out"), "--runner", "inprocess"]
        code = main(arguments)
        check_one_clean_line(code, capfd.readouterr(), str(disk))
        assert not [path for path in disk.rglob("*") if path.name.startswith(files.TEMPORARY)]
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert main(arguments) == 0
        assert (disk / "out" / "report.html").exists()


def test_a_full_temporary_folder_is_one_clean_line(world, tmp_path, capfd, monkeypatch):
    with small_disk(tmp_path / "disk", 4) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        (disk / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(b"x")
        code = main(["--data", str(world), "--output", str(tmp_path / "out"), "--runner", "inprocess"])
        check_one_clean_line(code, capfd.readouterr(), str(disk))


def test_a_mapped_file_takes_its_space_before_it_is_written(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        path = disk / "a.npy"
        with pytest.raises(OutputError, match=r"a\.npy: cannot be written \(No space left on device\); make room"):
            files.mapped_array(str(path), np.uint8, (1 << 20,))
        assert not path.exists()
        array = files.mapped_array(str(path), np.int32, (2, 3))
        array[:] = 7
        array.flush()
        assert np.load(path).tolist() == [[7, 7, 7]] * 2


def test_a_library_that_reports_a_full_disk_in_its_own_words_is_understood(tmp_path):
    message = "Error in virtual size_t faiss::FileIOWriter: write error in x: 8 != 16 (No space left on device)"
    with (
        pytest.raises(OutputError, match=r"a\.faiss: cannot be written \(No space left on device\); make room"),
        files.atomic_path(str(tmp_path / "a.faiss")),
    ):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="other"), files.atomic_path(str(tmp_path / "a.faiss")):
        raise RuntimeError("other")


# --- the report ---


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OutputError("x: full"), KeyError("key"), MemoryError(), ValueError()],
)
def test_a_report_that_cannot_be_written_is_no_failure(world, tmp_path, monkeypatch, capfd, error):
    from curation.tools import report

    def fail(run):
        raise error

    monkeypatch.setattr(report, "write", fail)
    arguments = ["--data", str(world), "--output", str(tmp_path / "out"), "--runner", "inprocess"]
    for _ in range(2):  # also when the run is finished already
        assert main(arguments) == 0
        captured = capfd.readouterr()
        assert "no report: " in captured.out
        assert "try again with cocu report" in captured.out
        assert "Traceback" not in captured.out + captured.err
