"""What a command shows on a terminal and elsewhere."""

import io
import logging
import sys
from typing import Any

import pytest

from qdgs_jax import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(generation: int, seconds: float) -> dict[str, float]:
    evaluations = 100.0 * generation
    return {"generation": generation, "evaluations": evaluations, "seconds": seconds,
            "qd_score": 1.0, "coverage": 0.5}  # fmt: skip


LOG = logging.getLogger("qdgs_jax.somewhere")


@pytest.mark.parametrize(
    ("first", "clock"),
    [(row(10, 5), "10/40 [00:05<00:15,"), (row(30, 15), "30/40 [00:15<00:05,")],
    ids=["fresh", "resumed"],
)
def test_words_until_the_clock_of_the_search_starts(
    monkeypatch: pytest.MonkeyPatch, first: dict[str, float], clock: str
) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    with terminal.progress(40, lambda: 1) as report:
        LOG.info("compiling")
        assert shown.getvalue().endswith("compiling ...")
        terminal.say("Careful.")
        assert "qdgs: Careful.\n" in shown.getvalue().replace("\r", "")
        assert report
        report(first)
        assert clock in shown.getvalue()
        assert "200 eval/s, QD score 1, coverage 50.0%" in shown.getvalue()
        LOG.info("not shown")
        report(row(40, 20))
        LOG.info("writing results")
        assert shown.getvalue().endswith("writing results ...")
    LOG.info("nor afterwards")
    assert "not shown" not in shown.getvalue()
    assert "nor after" not in shown.getvalue()
    assert not logging.getLogger("qdgs_jax").handlers


def test_silence_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress(40, lambda: 1) as report:
        LOG.info("compiling")
    assert report is None
    assert capsys.readouterr().err == ""


def test_results_are_texts_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "{a}", "range": [0.0, 1.5], "there": True},
        {"name": "b", "range": None, "there": False},
    ]
    terminal.tell({"rows": rows[1:]}, terminal.literal(terminal.table(rows)))
    assert capsys.readouterr().out == '{"rows": [{"name": "b", "range": null, "there": false}]}\n'
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    terminal.tell({"rows": rows}, terminal.literal(terminal.table(rows)))
    assert out.getvalue() == "name  range     there\n{a}   0 to 1.5  yes\nb     -         no\n"
