"""metrics.csv: what can be read of it is read, whatever happened to it."""

from pathlib import Path

import pytest

from qdgs_jax.runs import metrics


def row(generation: int) -> metrics.Row:
    figures = {name: generation / 2 for name in metrics.COLUMNS}
    whole = {
        "evaluations": 8 * generation,
        "restarts": 0,
        "non_finite": 1,
        "atypical": 2,
        "below_floor": 3,
    }
    return {**figures, **whole, "generation": generation, "best_objective": float("-inf")}


ROWS = [row(generation) for generation in (2, 4, 6)]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    with metrics.appending(tmp_path, ROWS[:1]) as write:
        write(ROWS[1])
        write(ROWS[2])
    return (tmp_path / "metrics.csv").read_bytes()


@pytest.mark.usefixtures("content")
def test_rows_are_read_back(tmp_path: Path) -> None:
    assert metrics.read(tmp_path) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_is_damaged_is_left_out(tmp_path: Path, content: bytes) -> None:
    lines = content.splitlines(keepends=True)
    assert len(lines) == 4
    damaged = {
        b"": [],
        b"\xff\xfe\0" * 1000: [],
        b"".join(lines[1:]): [],
        content[:-20]: ROWS[:2],
        lines[0] + lines[1] + b"\0" * 500 + b"\n" + lines[3]: [ROWS[0], ROWS[2]],
        lines[0] + lines[1] + lines[3] + lines[2]: [ROWS[0], ROWS[2]],
        lines[0] + lines[1].replace(b"1.0", b"nan") + lines[2]: ROWS[1:2],
        content + b'"' + b"x" * 200_000 + b"\n": ROWS,
        content + b"\n9,9\n": ROWS,
    }
    for text, rows in damaged.items():
        (tmp_path / "metrics.csv").write_bytes(text)
        assert metrics.read(tmp_path) == rows
    (tmp_path / "metrics.csv").unlink()
    assert metrics.read(tmp_path) == []
