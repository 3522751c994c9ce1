"""Folders of results: which may be written, and the errors of those that may not."""

import errno
import os
from pathlib import Path

import pytest

from qdgs_jax import folders
from qdgs_jax.errors import ConfigError, QDGSError


def test_an_absent_or_empty_folder_is_new(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    for folder in (tmp_path, tmp_path / "absent"):
        assert folders.claim(folder, "plan.json", holds="results") is None
    assert not (tmp_path / "absent").exists()


def test_a_folder_that_has_begun_is_continued_on_demand(tmp_path: Path) -> None:
    (tmp_path / "plan.json.part").touch()
    (tmp_path / "other").touch()
    found = folders.claim(tmp_path, "plan.json", "plan.json.part", holds="results")
    assert found == tmp_path / "plan.json.part"
    with pytest.raises(ConfigError, match="already holds results: pass --resume to continue, or"):
        folders.claim(tmp_path, "plan.json.part", holds="results", resume=False)


def test_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    with pytest.raises(ConfigError, match="holds other files: choose another folder"):
        folders.claim(tmp_path, "plan.json", holds="results")
    with pytest.raises(ConfigError, match="is not a folder: choose another folder"):
        folders.claim(tmp_path / "cat.png", "plan.json", holds="results")


def test_the_first_difference_is_named_values_before_tables(tmp_path: Path) -> None:
    before = {"measures": [{"range": [0, 1]}], "seed": 0}
    folders.require_same_config(tmp_path, before, before)
    with pytest.raises(ConfigError, match=r"another config \(seed was 0, now 7\): resume with"):
        folders.require_same_config(tmp_path, before, {"measures": [{"range": [0, 2]}], "seed": 7})
    with pytest.raises(ConfigError, match=r"\(measures.0.range.1 was 1, now 2\)"):
        folders.require_same_config(tmp_path, before, {"measures": [{"range": [0, 2]}], "seed": 0})
    with pytest.raises(ConfigError, match=r"\(group was None, now 'colour'\)"):
        folders.require_same_config(tmp_path, before, {**before, "group": "colour"})


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep/out"

    def fail() -> None:
        with folders.creating(out, again="train again") as folder:
            (folder / "part").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(QDGSError, match=r"No space is left .*: free some, then train again"):
        fail()
    assert not list((tmp_path / "deep").iterdir())
    with folders.creating(out, again="train again") as folder:
        (folder / "whole").touch()
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["whole"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(ConfigError, match="is there already"), folders.creating(out, again=""):
        pass


def test_an_interruption_has_its_remedy_as_a_note(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt) as stopped,
        folders.interruptions_explained(tmp_path, again="run it again"),
    ):
        raise KeyboardInterrupt
    assert stopped.value.__notes__ == ["run it again"]
