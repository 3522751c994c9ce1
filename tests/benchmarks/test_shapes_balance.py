"""The figures of the shapes benchmark are counted correctly."""

import json

import numpy as np
import pytest
import shapes_balance
from PIL import Image


def test_a_dataset_is_judged_from_disk(tmp_path):
    """Two red squares, one of them exported as a triangle; a blue one; a blank page."""
    rows = []
    for number, (label, bin, colour) in enumerate(
        [
            ("square", "red square", (216, 27, 96)),
            ("triangle", "red triangle", (216, 27, 96)),
            ("square", "red square", (30, 136, 229)),
            ("square", "blue square", (255, 255, 255)),
        ]
    ):
        pixels = np.full((128, 128, 3), 255, np.uint8)
        pixels[40:90, 40:90] = colour
        (tmp_path / label).mkdir(exist_ok=True)
        file_name = f"{label}/{number}.png"
        Image.fromarray(pixels).save(tmp_path / file_name)
        rows.append({"file_name": file_name, "label_name": label, "bin": bin})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert shapes_balance.judge_dataset(tmp_path) == {
        "red square": 0.5,
        "red triangle": 0.0,
        "blue square": 0.25,
        "blue triangle": 0.0,
        "clean": 0.75,
        "smallest group": 0.0,
        "label agrees, of clean": pytest.approx(2 / 3),
        "bin agrees, of clean": pytest.approx(1 / 3),
        "bin agrees, of all": 0.25,
    }


def test_the_table_shows_mean_and_spread(capsys):
    rows = [
        {"search": {"clean": 0.8, "cells": 900}, "random": {"clean": 0.1, "clean cells": 3}},
        {"search": {"clean": 0.6, "cells": 1100}, "random": {"clean": 0.1, "clean cells": 3}},
    ]
    shapes_balance.print_table(rows)
    printed = capsys.readouterr().out
    assert "| clean | 70.0% ± 10.0% | 10.0% ± 0.0% |" in printed
    assert "| cells | 1,000 ± 100 |  |" in printed
    assert "| clean cells |  | 3 ± 0 |" in printed
