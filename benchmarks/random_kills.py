"""Does a command that is killed at any moment end with the result of one that is not?

Question: after SIGKILL, SIGTERM and SIGINT at random moments, is any folder stuck, is anything
    lost, does any result differ from the uninterrupted one?
Method: `qdgs sample`, `export` and `train` on the built-in models, each once without interruption.
    Then COUNT times a command in turn, killed once or twice: while it starts up, at any moment, or
    a few milliseconds after a file of its folder appears (checkpoints, results, partial files
    among them). The same command, with `--resume` where it has that, then has to end with status 0
    and the same files, but for what they say about seconds. Signals that can be caught have to
    end in one sentence; those that meet Python before its first line are counted apart.
Command: python benchmarks/random_kills.py --count 200 --json benchmarks/results/random_kills.json
Result: 200 of 200 equal after 254 signals, of which 16 met a process that had ended. In the first
    136 trials some ended in a traceback: exceptions in the imports of native code, or swallowed by
    a finaliser. That was mended (`qdgs_jax/__main__.py`); in the 64 trials since, one did, which
    met Python before the first line. Other work ran on the machine.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "configs/search/shapes.toml"
QDGS = (sys.executable, "-m", "qdgs_jax")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("start-up", "any moment", "a file")
FILES = {
    "sample": (
        "config.toml", "provenance.json", "metrics.csv", "checkpoints", "checkpoints/4",
        "checkpoints/4.orbax-checkpoint-tmp", "checkpoints/12", "archive.safetensors",
        "archive.csv", ".summary.json.partial", "summary.json", "heatmap.png", "elites.png",
    ),
    "export": (
        "manifest.json.part", "square", "triangle", "balance.json", ".metadata.jsonl.partial",
        "metadata.jsonl", ".manifest.json.partial", "manifest.json",
    ),
    "train": (
        "plan.json", "results", "results/seed-0.json", "results/seed-1.json", "results.json",
        "table.md",
    ),
}  # fmt: skip
"""What appears in a command's folder, one after the other."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and how long it takes without interruption."""

    name: str
    arguments: tuple[str, ...]
    resume: tuple[str, ...]
    seconds: float = 0.0

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        """Starts it, writing in `out`."""
        arguments = [argument.replace("OUT", str(out)) for argument in self.arguments]
        return subprocess.Popen(
            [*QDGS, self.name, *arguments, *more], stdout=-1, stderr=-1, text=True
        )


def commands(root: Path) -> list[Command]:
    """The three commands; the latter two read what the former made in `root`."""
    sizes = {
        "search.generations": 12, "search.emitters": 2, "search.batch-size": 3,
        "search.initial-samples": 64, "run.log-every": 2, "run.checkpoint-every": 2,
    }  # fmt: skip
    search = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    training = ("--seeds", "2", "--training.epochs", "4", "--classifier.channels", "4")
    images = ("--train", str(root / "export"), "--test", str(root / "export"), "--group", "bin")
    return [
        Command("sample", (str(CONFIG), "--out", "OUT", *search), ("--resume",)),
        Command("export", (str(root / "sample"), "OUT", "--count", "300"), ()),
        Command("train", (*images, "--out", "OUT", *training), ("--resume",)),
    ]


def main() -> None:
    """Kills, resumes, compares, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    # In a shell's background SIGINT is ignored, also by children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        known = [undisturbed(command, root) for command in commands(root)]
        trials = []
        for number in range(options.count):
            command = known[number % len(known)]
            trials.append(disturbed(command, root, root / f"trial-{number}", chance))
            print(number, trials[-1], flush=True)
        table = summarise(trials)
        print(json.dumps(table, indent=1))
        if options.json:
            result = {"command": f"random_kills.py --count {options.count}", **table}
            options.json.write_text(json.dumps({**result, "trials": trials}, indent=1) + "\n")
    sys.exit(any(trial["outcome"] != "equal" for trial in trials))


def undisturbed(command: Command, root: Path) -> Command:
    """Runs a command twice, the second time for its duration with all programs compiled."""
    for out in (root / command.name, root / f"{command.name}-again"):
        began = time.monotonic()
        with command.start(out) as process:
            _, told = process.communicate()
        if process.returncode:
            raise RuntimeError(f"qdgs {command.name} fails: {told}")
        seconds = time.monotonic() - began
    found = different(root / command.name, root / f"{command.name}-again")
    if found:
        raise RuntimeError(f"qdgs {command.name} differs from itself in {found}")
    return dataclasses.replace(command, seconds=seconds)


def disturbed(command: Command, root: Path, out: Path, chance: random.Random) -> dict[str, Any]:
    """Kills a command once or twice and resumes it to its end."""
    kills = []
    for _ in range(1 if chance.random() < 0.7 else 2):
        more = command.resume if kills else ()
        kills.append(kill(command, out, chance, *more))
    with command.start(out, *command.resume) as process:
        try:
            _, told = process.communicate(timeout=60 + 20 * command.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            told = "it does not end"
    trial: dict[str, Any] = {"command": command.name, "kills": kills}
    if process.returncode:
        return {**trial, "outcome": "stuck", "told": told}
    found = different(root / command.name, out)
    if not found:
        shutil.rmtree(out)
    return {**trial, "outcome": "different" if found else "equal", "told": found}


def kill(command: Command, out: Path, chance: random.Random, *more: str) -> dict[str, str]:
    """Starts a command and sends it a signal; says when, and what became of it."""
    number, moment = chance.choice(SIGNALS), chance.choice(MOMENTS)
    file = chance.choice(FILES[command.name]) if moment == "a file" else ""
    if file and (out / file).exists():  # since the kill before
        file, moment = "", "any moment"
    share = chance.uniform(0, 0.3 if moment == "start-up" else 1.0)
    began = time.monotonic()
    with command.start(out, *more) as process:
        if file:
            while not (out / file).exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
        else:
            time.sleep(share * command.seconds)
        at = time.monotonic() - began
        process.send_signal(number)
        _, told = process.communicate()
    if process.returncode == 0:
        end = "had ended"
    elif "Traceback" in told:
        end = "traceback"
    else:
        end = "sentence" if told.startswith("qdgs: ") else "silent"
    return {"signal": number.name, "moment": file or moment, "at": f"{at:.1f} s", "end": end}


def different(one: Path, other: Path) -> list[str]:
    """Names of files that differ in two folders, but for what they say about seconds."""
    names = {path.relative_to(at) for at in (one, other) for path in at.rglob("*")}
    return sorted(
        str(name)
        for name in names
        if "checkpoints" not in name.parts and content(one / name) != content(other / name)
    )


def content(path: Path) -> Any:
    """What a file says, without seconds; None for a folder, and for what is absent, its name."""
    if path.is_dir():
        return None
    if not path.exists():
        return str(path)
    if path.name == "metrics.csv":
        return [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return without_seconds(json.loads(path.read_text()))
    return path.read_bytes()


def without_seconds(value: Any) -> Any:
    """A JSON value without the entries that clocks wrote."""
    if isinstance(value, dict):
        return {key: without_seconds(each) for key, each in value.items() if "second" not in key}
    return value


def summarise(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each outcome came of each command, and how processes ended."""
    kills = [(trial["command"], kill) for trial in trials for kill in trial["kills"]]
    return {
        "outcomes": _count(f"{trial['command']}: {trial['outcome']}" for trial in trials),
        "kills": _count(f"{name}: {kill['signal']}, {kill['end']}" for name, kill in kills),
        "moments": _count(f"{name}: {kill['moment']}" for name, kill in kills),
    }


def _count(texts: Any) -> dict[str, int]:
    return dict(sorted(collections.Counter(texts).items()))


if __name__ == "__main__":
    main()
