"""The command line on the built-in models: the whole loop, and messages to users."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from qdgs_jax import cli, experiment_commands, named_config
from qdgs_jax.cli import run_command
from qdgs_jax.config import Config
from qdgs_jax.training.config import TrainConfig

CONFIG = str(Path(__file__).parents[1] / "configs/search/shapes.toml")
FACES = str(Path(__file__).parents[1] / "configs/search/faces_paper.toml")
SMALL = [
    "--search.generations", "8", "--search.emitters", "2", "--search.batch-size", "3",
    "--search.initial-samples", "64", "--run.log-every", "2", "--run.checkpoint-every", "2",
    "--search.constraint", "none", "--search.threshold-min", "0",
]  # fmt: skip


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("qdgs: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run of the shapes config."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run_command(["sample", CONFIG, "--out", str(out), *SMALL]) == 0
    return out


@pytest.mark.slow
def test_sample_and_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluations"] == 64 + 8 * 2 * (1 + 3)
    assert summary["elites"] > 0
    capsys.readouterr()

    out = tmp_path / "dataset"
    assert run_command(["export", str(run), str(out), "--count", "12"]) == 0
    balance = json.loads(capsys.readouterr().out)
    records = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert balance["got"] == len(records)
    for record in records:
        with Image.open(out / record["file_name"]) as image:
            assert image.size == (128, 128)

    options = ["--count", "12", "--no-repeat", "--test-share", "0.25"]
    assert run_command(["export", str(run), str(tmp_path / "split"), *options]) == 0
    balance = json.loads(capsys.readouterr().out)
    assert all(bin["got"] == bin["distinct"] for bin in balance["bins"])
    tables = [tmp_path / "split" / part / "metadata.jsonl" for part in ("train", "test")]
    sizes = [len(table.read_text().splitlines()) for table in tables]
    assert sizes[1] == sum(bin["test"] for bin in balance["bins"]) > 0
    assert sum(sizes) == balance["got"]


def test_baseline_has_the_layout_of_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "random"
    assert run_command(["baseline", CONFIG, str(out), "--count", "20", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out)["got"] == 20
    assert run_command(["baseline", CONFIG, str(tmp_path / "none"), "--count", "0", *SMALL]) == 2
    assert "ask for 1 or more" in told(capsys)
    assert {"metadata.jsonl", "manifest.json", "balance.json", "README.md"} <= {
        path.name for path in out.iterdir()
    }


def generations_of(run: Path) -> list[str]:
    with open(run / "metrics.csv", newline="") as file:
        return [row["generation"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "qdgs_jax", "sample", CONFIG, "--out", str(out), *SMALL]
    with subprocess.Popen(command) as process:
        while not (out / "checkpoints/2").is_dir() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    assert run_command([*command[3:], "--resume"]) == 0
    assert (out / "archive.safetensors").read_bytes() == (run / "archive.safetensors").read_bytes()
    assert generations_of(out) == generations_of(run)


def test_readings_of_faces_have_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["annotate", str(tmp_path)]) == 2
    assert "not facts about people" in (sentence := told(capsys))
    assert sentence.endswith("Continue with --acknowledge-notice.\n")
    assert run_command(["annotate", str(tmp_path / "none"), "--acknowledge-notice"]) == 2
    assert "is no folder of images" in told(capsys)


@pytest.mark.parametrize("command", [["sample"], ["baseline"]])
def test_a_notice_is_shown_until_it_is_acknowledged(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*command, FACES, *(["out"] if command == ["baseline"] else [])]
    assert run_command(arguments) == 2
    assert "Images of faces" in (message := told(capsys))
    assert message.endswith("Continue with --acknowledge-notice.\n")
    assert run_command([*arguments, "--acknowledge-notice"]) == 2
    assert "no generator 'ffhq256.pkl'" in told(capsys)


def test_pretrain_knows_both_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(["pretrain", "gan", "out"])
    assert stopped.value.code == 2
    assert "clip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["sample", "absent.toml"], 2, "Cannot read the config absent.toml"),
        (["sample", CONFIG, "--search.sigma0", "-1"], 2, "'sigma0' input should be greater than 0"),
        (["sample", CONFIG, "--objective.positive", ""], 2, "positive prompt of objective is"),
        (["sample", CONFIG, "--generator.model", "shapes-vea"], 2, "shapes-vae"),
        (["sample", CONFIG, "--encoder.model", "shapes-clop"], 2, "shapes-clip"),
        (["sample", CONFIG, "--out", CONFIG], 2, "is not a folder"),
        (["sample", CONFIG, "--generator.model", "a" * 4000], 2, "There is no generator 'aaa"),
        (["sample", CONFIG, "--search.chunk-size", "1" + "0" * 9], 2, "'chunk_size' input should"),
        (["sample", CONFIG, "--measures.0.range", "0", "inf"], 2, "must have finite ends"),
        (["sample", "code.toml"], 2, "os:getcwd' of measure 'm' is code from outside of this"),
        (["sample", "code.toml", "--allow-code"], 2, "'os:getcwd' of measure 'm' fails (TypeError"),
        (["sample", CONFIG, "--generator.model", "os:getcwd"], 2, "'os:getcwd' is code from out"),
        (
            ["sample", CONFIG, "--generator.model", "os:getcwd", "--allow-code"],
            2,
            "'os:getcwd' returns a str: let it return a qdgs_jax.Generator and its weights",
        ),
        (["export", "absent", "out"], 1, "holds no finished run"),
    ],
)
def test_mistakes_take_one_sentence(
    arguments: list[str],
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("code.toml").write_text(
        'objective = { typicality = 1.0 }\nmeasures = [{ name = "m", function = "os:getcwd" }]'
    )
    assert run_command(arguments) == status
    assert sentence in told(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["CONFIG", "--seed", "3", "--out", "o"],
        ["--seed", "3", "CONFIG", "--out", "o"],
        ["--measures.0.range", "-1", "1", "--resume", "CONFIG", "--seed", "3"],
        ["--encoder.random-crops", "CONFIG", "--out=o", "--seed=3"],
        ["--out", "other.toml", "--seed", "3", "CONFIG"],
    ],
)
def test_a_config_is_found_anywhere_and_whatever_its_suffix(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdgs_jax.runs import sampling

    seen = []

    def sample(config: Config, out: Path, **_: object) -> dict[str, object]:
        seen.append(config)
        return {"verdict": {"sentences": []}}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "sample", sample)
    Path("small.cfg").write_text(Path(CONFIG).read_text())
    given = ["small.cfg" if argument == "CONFIG" else argument for argument in arguments]
    assert run_command(["sample", *given]) == 0
    assert seen[0].objective.positive == "A perfect shape."
    assert seen[0].seed == 3


def test_a_config_of_another_command_names_that(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    experiment = str(Path(CONFIG).parents[1] / "experiments/repair.toml")
    assert run_command(["sample", experiment]) == 2
    assert f"run `qdgs experiment repair {experiment}`" in told(capsys)
    assert run_command(["experiment", "repair", CONFIG]) == 2
    assert f"run `qdgs sample {CONFIG}`" in told(capsys)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x04cposix\nsystem\n."])
def test_unreadable_generators_are_told(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vae.pt"
    path.write_bytes(content)
    arguments = ["sample", CONFIG, "--out", str(tmp_path / "run"), "--generator.model", str(path)]
    assert run_command(arguments) == 1
    assert str(path) in told(capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_unknown_words_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["--measures.0.low", "A xylophonic red shape."]
    assert run_command(["sample", CONFIG, "--out", str(tmp_path / "run"), *SMALL, *prompt]) == 0
    assert "does not know 'xylophonic'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 9 GiB")])
def test_too_little_memory_is_told(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("qdgs_jax.runs.sampling.sample", fail)
    assert run_command(["sample", CONFIG]) == 1
    assert "Memory is exhausted: lower search.chunk_size" in told(capsys)


FAST = """
import os, sys, time
from qdgs_jax import __main__
from qdgs_jax.runs import sampling
def sample(*_, **__):
    {work}
    return dict(elites=1, coverage=1.0, qd_score=1.0, best_objective=1.0, evaluations=1,
                seconds_run=1.0, devices=1, verdict=dict(sentences=[]))
sampling.sample = sample
__main__.main()
"""


def started(work: str, **files: Any) -> subprocess.Popen[str]:
    """`qdgs sample` in a process of its own, with `work` in place of the search."""
    code = FAST.format(work=work)
    command = [sys.executable, "-c", code, "sample", CONFIG, "--out", "somewhere"]
    return subprocess.Popen(command, text=True, **files)


def test_sigterm_outside_of_the_loop_takes_one_sentence() -> None:
    with started("print('at work', flush=True); time.sleep(60)", stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.terminate()
        _, told = process.communicate()
    assert told == "qdgs: Interrupted: run the same command again.\n"
    assert process.returncode == 1


def test_a_signal_that_meets_a_finaliser_is_not_lost() -> None:
    finaliser = "__del__=lambda self: (os.kill(os.getpid(), 15), time.sleep(1))"
    with started(f"type('A', (), dict({finaliser}))(); time.sleep(60)", stderr=-1) as process:
        _, told = process.communicate()
    assert told == "qdgs: Interrupted: run the same command again.\n"
    assert process.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_takes_one_sentence(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = f"import os, time; os.kill(os.getpid(), {number:d}); time.sleep(60)"
    (tmp_path / "tyro.py").write_text(slow)  # in place of what takes long to import
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(cli.__file__).parents[1]}"}
    command = [sys.executable, "-m", "qdgs_jax", "sample", CONFIG]
    # A process inherits what is ignored, as SIGINT is in the background of a shell.
    inherited = signal.signal(number, signal.default_int_handler)
    try:
        assert subprocess.run(command, env=environment).returncode == 1
    finally:
        signal.signal(number, inherited)
    assert capfd.readouterr().err == "qdgs: Interrupted: run the same command again.\n"


def test_a_full_standard_output_is_told() -> None:
    with open("/dev/full", "w") as full, started("pass", stdout=full, stderr=-1) as process:
        _, told = process.communicate()
    assert told == (
        "qdgs: All is written, but the result could not be printed (No space left on device): see "
        "somewhere.\n"
    )
    assert process.returncode == 1


def test_a_full_standard_error_changes_nothing_else() -> None:
    work = "import warnings; warnings.warn('careful')"
    with open("/dev/full", "w") as full, started(work, stdout=-1, stderr=full) as process:
        result, _ = process.communicate()
    assert json.loads(result)["run"] == "somewhere"
    assert process.returncode == 0


def test_closed_standard_files_are_not_taken_by_others(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    work = f"f = open({str(path)!r}, 'w'); f.write('mine'); os.write(1, b'a'); os.write(2, b'b')"
    command = [sys.executable, "-c", FAST.format(work=work), "sample", CONFIG]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed).returncode == 0
    assert path.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert run_command(["sample", CONFIG, "--out", str(tmp_path / "locked/run"), *SMALL]) == 1
    assert "is not writable" in told(capsys)


@pytest.mark.slow
def test_archive_columns_are_finite(run: Path) -> None:
    with open(run / "archive.csv", newline="") as file:
        table = np.array(list(csv.reader(file))[1:], float)
    assert np.isfinite(table).all()


def test_every_option_without_a_value_is_known() -> None:
    """A flag that is not listed would take the config file after it as its value."""

    def flags(kind: Any) -> set[str]:
        found = set()
        for name, hint in get_type_hints(kind).items():
            parts = [hint, *get_args(hint)]
            found |= {name.replace("_", "-")} if bool in parts else set()
            for part in parts:
                found |= flags(part) if dataclasses.is_dataclass(part) else set()
        return found

    commands = (
        cli.sample, cli.export, cli.baseline, cli.compile_search, cli.train,
        *experiment_commands.COMMANDS.values(),
    )  # fmt: skip
    kinds = (*commands, Config, TrainConfig, *named_config.EXPERIMENTS.values())
    assert set().union(*map(flags, kinds)) | {"h", "help"} == named_config._FLAGS | {"no-repeat"}


def test_compiled_programs_are_kept_in_the_cache_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "can_keep_programs", lambda: True)
    monkeypatch.setattr(cli.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    limit = "JAX_COMPILATION_CACHE_MAX_SIZE"
    monkeypatch.setenv(limit, "1")  # so that it is restored
    monkeypatch.delenv(limit)
    cli.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert limit not in os.environ
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    cli.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "qdgs_jax" / "programs")
    assert (tmp_path / "qdgs_jax" / "programs").is_dir()
