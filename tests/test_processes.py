"""One command as two processes of two devices, on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from qdgs_jax import processes
from qdgs_jax.cli import run_command
from qdgs_jax.errors import ConfigError, LostProcessError, QDGSError

CONFIG = """
[objective]
positive = "A perfect shape."
negative = "Splatters of colors."
[[measures]]
name = "colour"
low = "A red shape."
high = "A blue shape."
range = [-0.5, 0.5]
cells = 20
[[measures]]
name = "brightness"
function = "brightness"
range = [0, 1]
cells = 20
[search]
generations = 12
emitters = 8
batch_size = 5
initial_samples = 32
chunk_size = 4
threshold_min = -100.0
constraint = "none"
[run]
log_every = 2
checkpoint_every = 4
"""


class Command:
    """`qdgs` as a number of processes with some devices each, all on this machine."""

    def __init__(self, count: int, devices: int, *arguments: str | Path) -> None:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        flags = f"--xla_force_host_platform_device_count={devices}"
        joined = ["--distributed", "--coordinator", f"localhost:{port}", "--processes", str(count)]
        self.started = [
            subprocess.Popen(
                [sys.executable, "-m", "qdgs_jax", *map(str, arguments)]
                + ([*joined, "--process", str(process)] if count > 1 else []),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "XLA_FLAGS": flags},
            )
            for process in range(count)
        ]

    def finish(self, *wanted: int) -> list[str]:
        """What each process wrote to standard error, or if it succeeded to standard output."""
        texts = [process.communicate(timeout=600) for process in self.started]
        codes = [process.returncode for process in self.started]
        assert codes == list(wanted), texts
        return [
            out if code == 0 else error for (out, error), code in zip(texts, codes, strict=True)
        ]

    def signal(self, process: int, number: signal.Signals, *, when: Path, lines: int) -> None:
        """Sends a signal once a file has so many lines."""
        end = time.monotonic() + 300
        while not when.exists() or len(when.read_text().splitlines()) < lines:
            assert all(each.poll() is None for each in self.started), self.finish(0, 0)
            assert time.monotonic() < end
            time.sleep(0.05)
        self.started[process].send_signal(number)


def qdgs(count: int, devices: int, *arguments: str | Path) -> str:
    """What process 0 prints; the others print no result."""
    first, *others = Command(count, devices, *arguments).finish(*[0] * count)
    assert not any("{" in text for text in others)
    return first.splitlines()[-1]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    """A run of two processes, never interrupted."""
    out = config.parent / "run"
    summary = json.loads(qdgs(2, 2, "sample", config, "--out", out))
    assert summary["devices"] == 4
    assert summary["coverage"] > 0
    return out


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_to_one_process_resumes_elsewhere(
    config: Path, tmp_path: Path, run: Path
) -> None:
    out, endless = tmp_path / "run", ["--search.generations", "100000"]
    command = Command(2, 2, "sample", config, "--out", out, *endless)
    command.signal(1, signal.SIGTERM, when=out / "metrics.csv", lines=3)
    texts = command.finish(1, 1)
    stopped = int(texts[0].split("Stopped at generation ")[1].split()[0])
    assert all(f"Stopped at generation {stopped} of 100000" in text for text in texts)
    assert (out / "checkpoints" / str(stopped)).is_dir()

    for devices, more in ((4, 4), (1, 8)):
        generations = ["--search.generations", str(stopped + more)]
        summary = json.loads(
            qdgs(1, devices, "sample", config, "--out", out, "--resume", *generations)
        )
        assert summary["devices"] == devices
        rows = (out / "metrics.csv").read_text().splitlines()[1:]
        numbers = [int(row.split(",")[0]) for row in rows]
        assert numbers == list(range(2, stopped + more + 1, 2))
    # The first generations were those of a run that nothing stopped.
    uninterrupted = (run / "metrics.csv").read_text().splitlines()[1:]
    for one, other in zip(rows[: stopped // 2], uninterrupted, strict=False):
        assert one.rpartition(",")[0] == other.rpartition(",")[0]


@pytest.mark.slow
def test_a_lost_process_ends_the_other_with_a_sentence_and_the_run_resumes(
    config: Path, tmp_path: Path, run: Path
) -> None:
    out, lost = tmp_path / "run", 1
    command = Command(2, 2, "sample", config, "--out", out, "--search.generations", "100000")
    command.signal(lost, signal.SIGKILL, when=out / "metrics.csv", lines=4)
    codes = [1, 1]
    codes[lost] = -signal.SIGKILL
    text = command.finish(*codes)[1 - lost]
    assert "Another process of this command has ended" in text
    assert "run the same command with --resume" in text
    assert "Traceback" not in text

    for checkpoint in sorted((out / "checkpoints").iterdir(), key=lambda path: len(path.name))[1:]:
        if checkpoint.name.isdigit() and int(checkpoint.name) > 12:
            pytest.skip("the search was faster than the signal")
    summary = json.loads(qdgs(2, 2, "sample", config, "--out", out, "--resume"))
    assert (
        summary["archive_sha256"]
        == json.loads((run / "summary.json").read_text())["archive_sha256"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "baseline"])
def test_any_number_of_processes_and_devices_writes_the_same_bytes(
    config: Path, tmp_path: Path, run: Path, command: str
) -> None:
    source = run if command == "export" else config
    # With more devices than cores, XLA has more threads on a CPU, which sum in another order.
    for name, topology in {"two": (2, 2), "one": (1, 1), "many": (1, 2)}.items():
        result = json.loads(qdgs(*topology, command, source, tmp_path / name, "--count", "45"))
        assert result["written"] == 45
    written = {
        name: {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in sorted((tmp_path / name).rglob("*"))
            if path.is_file()
        }
        for name in ("one", "two", "many")
    }
    assert len(written["one"]) > 45
    assert written["one"] == written["two"]
    assert written["one"] == written["many"]


@pytest.mark.slow
def test_an_error_of_process_0_reaches_all(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("mine")
    texts = Command(2, 1, "sample", config, "--out", tmp_path).finish(2, 2)
    assert all("holds files that are no run's" in text for text in texts)


@pytest.mark.slow
def test_processes_with_different_configs_are_refused(config: Path, tmp_path: Path) -> None:
    command = Command(2, 1, "sample", config, "--out", tmp_path / "run")
    other = command.started[1]
    arguments = [str(each) for each in other.args]  # type: ignore[union-attr]
    other.kill()
    other.communicate()
    command.started[1] = subprocess.Popen(
        [*arguments, "--seed", "5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    texts = command.finish(2, 2)
    assert all("Process 1 has another config than process 0" in text for text in texts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--coordinator", "here:1"], "need --distributed too"),
        (["--distributed", "--processes", "2"], "needs all of --coordinator"),
        (
            ["--distributed", "--coordinator", "h:1", "--processes", "2", "--process", "2"],
            "--process 2 is none of 0 to 1",
        ),
        (
            ["--distributed", "--coordinator", "h", "--processes", "1", "--process", "0"],
            "has no port",
        ),
        (["--devices", "0"], "devices here, not 0"),
        (["--devices", "9"], "devices here, not 9"),
    ],
)
def test_impossible_processes_and_devices_are_refused(
    config: Path, tmp_path: Path, options: list[str], sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run_command(["sample", str(config), "--out", str(tmp_path / "run"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_alone_exchanges_nothing() -> None:
    assert processes.gather({"a": (1,)}) == [{"a": (1,)}]
    assert processes.first(lambda: 3) == 3
    assert processes.is_mine(7)
    processes.require_same(config={"a": 1})
    values = np.ones(3)
    assert processes.summed(values) is values
    with pytest.raises(OSError, match="mine"), processes.errors_shared():
        raise OSError("mine")


@pytest.mark.parametrize("kind", [ConfigError, QDGSError])
def test_an_error_of_another_process_is_raised_by_all(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda value: [value, ("no space", kind.__name__)])
    with pytest.raises(kind, match="no space"), processes.errors_shared():
        pass
    monkeypatch.setattr(processes, "gather", lambda value: [value, None])
    with processes.errors_shared():
        pass


def test_only_failed_exchanges_count_as_lost_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> None:
        with processes.losses_explained(again="start again"):
            raise jax.errors.JaxRuntimeError(text)

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail("UNAVAILABLE: there is one process alone")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(LostProcessError, match=r"Connection closed.*: start again"):
        fail("UNKNOWN: Gloo AllGather failed: Connection closed by peer\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError):
        fail("RESOURCE_EXHAUSTED: Out of memory")
