"""Files are written whole or not at all, and have checksums."""

import hashlib
from pathlib import Path

import pytest

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_sha256_of_absent_files_and_of_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="check the path"):
            files.sha256(path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.write(path, "old ä")
    assert path.read_bytes() == "old ä".encode()

    class Crash(BaseException):
        pass

    def interrupted() -> None:
        with files.replacing(path) as file:
            file.write(b"new")
            raise Crash

    with pytest.raises(Crash):
        interrupted()
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("x", "old ä")]
