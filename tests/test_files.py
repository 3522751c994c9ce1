"""Files are written whole or not at all, and have checksums."""

import hashlib
import os
import socket
from pathlib import Path

import pytest

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_sha256_of_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "pipe"):
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


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.fstat(number)) or fsync(number))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("renamed") or replace(*paths))
    files.write(tmp_path / "x", "content")
    file, renamed, folder = done
    assert renamed == "renamed"
    assert os.path.samestat(file, (tmp_path / "x").stat())
    assert os.path.samestat(folder, tmp_path.stat())
    done.clear()
    files.write(tmp_path / "y", "content", durable=False)
    assert done == ["renamed"]


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".x.partial").symlink_to(tmp_path / "precious")
    files.write(tmp_path / "x", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "x").read_text() == "new"


def test_only_regular_files_of_the_expected_size_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    with files.open_regular(path, limit=3) as file:
        assert file.read() == b"abc"
    with files.open_regular(str(path)) as file:
        assert os.get_blocking(file.fileno()) is False
    os.mkfifo(tmp_path / "pipe")  # opening one waits for a writer
    for name, limit, reason in (
        ("x", 2, "its 3 bytes are more than the 2"),
        ("pipe", None, "a named pipe, not a regular file"),
        ("/dev/zero", None, "a device"),
        (".", None, "a folder"),
        ("nowhere", None, "No such file"),
        ("a\0b", None, "no path"),
        ("a\ud800b", None, "no path"),
    ):
        with pytest.raises(OSError, match=reason) as caught:
            files.open_regular(tmp_path / name, limit)
        assert caught.value.strerror


def test_a_socket_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(OSError, match="a socket"):
            files.open_regular("s")
