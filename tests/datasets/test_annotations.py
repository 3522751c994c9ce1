"""Annotating a folder of images; toy networks take the place of those of `make assets`."""

import json

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from qdgs_jax import blazeface, faceres
from qdgs_jax.config import BinConfig
from qdgs_jax.datasets import annotations, readings
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets.annotations import annotate
from qdgs_jax.errors import ConfigError, QDGSError

RED, GREEN, BLUE = range(3)
AREA = (blazeface.INNER / blazeface.SIDE) ** 2  # of a square image on its canvas


@pytest.fixture(autouse=True)
def networks(tmp_path_factory, monkeypatch, write_network):
    """Networks that find a face where red is 1, in the middle, and read the mean colour."""
    folder = tmp_path_factory.mktemp("networks")
    logits, boxes = np.zeros((3, 896)), np.zeros((3, 896, 16))
    logits[RED] = 5 / AREA
    boxes[RED, 0, 4:12] = (blazeface.TEMPLATE + (256 - 112) / 2 - 8).ravel() / AREA  # not anchor
    outputs = {
        "Identity": (logits[:, :512], [1, 512, 1]),
        "Identity_1": (logits[:, 512:], [1, 384, 1]),
        "Identity_2": (boxes[:, :512].reshape(3, -1), [1, 512, 16]),
        "Identity_3": (boxes[:, 512:].reshape(3, -1), [1, 384, 16]),
    }
    write_network(folder / "blazeface.json", (1, 256, 256, 3), outputs)
    ages, male = np.zeros((3, 100)), np.zeros((3, 1))
    ages[GREEN, 19], ages[GREEN, 79], male[GREEN] = 0.02, 0.021, 0.01
    outputs = {
        "global_pooling/Mean": (np.eye(3, 1024), [-1, 1024]),
        "age_pred/BiasAdd": (ages, [-1, 100]),
        "gender_pred/BiasAdd": (male, [-1, 1]),
    }
    path = write_network(folder / "faceres.json", (2, 224, 224, 3), outputs)
    expression = np.array([[0, 0, 0, 0.9, 0, 0, -1]])  # happy where it is light
    write_network(folder / "emotion.json", (2, 64, 64, 1), {"Identity": (expression, [-1, 7])})
    monkeypatch.setattr(faceres, "PATH", path)
    monkeypatch.setattr(readings, "BATCH", 2)


def save(path, colour, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_any_folder_gets_columns_and_a_card(tmp_path, records, contents):
    save(tmp_path / "a/light.png", (255, 200, 170))
    save(tmp_path / "a/blue.png", (0, 0, 60))
    (tmp_path / "b.png").write_bytes(b"no image")
    lines = [
        {"file_name": "b.png", "age": None, "read_old": 1},
        {"file_name": "a/light.png", "age": 31, "words": "\u2028 ü"},
        {"file_name": "a/blue.png", "age": 1.5},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (tmp_path / "README.md").write_text("# Mine\n\nText.\n")
    annotated = annotate(tmp_path)
    assert str(annotated) == (
        "A face was found in 1 of 3 images, none in 1, such as a/blue.png; 1 cannot be read, such "
        "as b.png."
    )
    bad, light, blue = records(tmp_path)
    assert bad == {"file_name": "b.png", "age": None} | dict.fromkeys(readings.COLUMNS)
    assert light.items() >= lines[1].items()
    assert list(light) == [*lines[1], *readings.COLUMNS]

    colour = np.array([255, 200, 170], np.float32) / 255
    green = 255 * colour[GREEN] - faceres.MEANS[GREEN]
    logits = np.zeros(100)
    logits[19], logits[79] = 0.02 * green, 0.021 * green
    ages, years = np.asarray(jax.nn.softmax(logits)), np.arange(1, 101)
    male = 1 / (1 + np.exp(-0.01 * green))
    grey = colour @ [0.299, 0.587, 0.114]
    deviation = np.sqrt(ages @ (years - ages @ years) ** 2)
    assert light["read_face_found"] is True
    assert light["read_age"] == pytest.approx(ages @ years, rel=1e-3)
    assert light["read_age_deviation"] == pytest.approx(deviation, rel=1e-3)
    assert light["read_presentation"] == "male"
    assert light["read_presentation_probability"] == pytest.approx(male, abs=1e-3)
    assert light["read_expression"] == "happy"
    assert light["read_expression_probability"] == pytest.approx(0.9 * (2 * grey - 1), abs=1e-3)
    assert light["read_skin_tone"] == pytest.approx(57.06, abs=0.5)  # by scikit-image
    assert light["read_skin_tone_class"] == "very light"
    assert light["read_sharpness"] == 0
    assert blue["read_face_found"] is False
    assert blue["read_face_probability"] < 0.05
    assert blue["read_age"] is None
    assert blue["read_sharpness"] == 0

    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# Mine\n\nText.\n\n<!-- qdgs annotate -->\n")
    assert "not facts about people" in card
    sha256 = faceres.load()[0].sha256
    assert f"expected age in years, 1 to 100, by the network faceres (SHA-256 `{sha256}`)" in card
    assert str(annotated) in card

    before = contents(tmp_path)
    (tmp_path / "README.md").write_text(card + "More.\n")
    assert annotate(tmp_path) == annotated
    assert contents(tmp_path) == before | {"README.md": before["README.md"] + b"More.\n"}


def test_batches_keep_the_order_and_a_grey_face_has_no_skin_tone(tmp_path, records):
    for number, colour in enumerate(["white", "black", "white", "red", "black"]):
        save(tmp_path / f"{number}.png", colour, (9 - number, 9 - number))
    pixels = np.zeros((6, 6, 3), np.uint8)
    pixels[2:4, 2:4] = 255
    Image.fromarray(pixels).save(tmp_path / "5.png")
    annotate(tmp_path)
    found = records(tmp_path)
    assert [each["file_name"] for each in found] == [f"{number}.png" for number in range(6)]
    assert [each["read_face_found"] for each in found] == [True, False, True, True, False, False]
    assert [each["read_skin_tone"] is None for each in found[:4]] == [True, True, True, False]
    # By hand: the Laplacian of a white square of 2 x 2 is -2 in it and 1 at its 8 neighbours.
    edges = 255 * np.array([-2] * 4 + [1] * 8 + [0] * 24)
    assert found[5]["read_sharpness"] == pytest.approx(edges.var(), rel=1e-4)
    assert "label_name" not in found[0]


def test_a_dataset_stays_whole(run, tmp_path, contents):
    folder, out = run(BinConfig(name="all", label="a", where={"x": (0.5, 1)})), tmp_path / "out"
    balance = dataset.export(folder, out, count=10, test_share=0.3)
    before = contents(out)
    annotated = annotate(out)
    after = contents(out)
    tables = {"train/metadata.jsonl", "test/metadata.jsonl"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == tables | {"README.md", "manifest.json"}
    assert annotated.images == balance.got
    header = yaml.safe_load(after["README.md"].decode().split("---\n")[1])
    columns = [each["name"] for each in header["configs"][0]["features"]]
    first = json.loads(after["test/metadata.jsonl"].partition(b"\n")[0])
    assert columns == ["image", *list(first)[1:]]

    again = dataset.export(folder, out, count=10, test_share=0.3)  # finds all files intact
    assert not again.written
    annotate(out)
    assert contents(out) == after


def test_what_goes_wrong_leaves_the_folder_as_it_was(tmp_path, monkeypatch, contents):
    save(tmp_path / "a.png", "white")
    before = contents(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(annotations, "read_images", interrupted)
    with pytest.raises(KeyboardInterrupt) as error:
        annotate(tmp_path)
    assert error.value.__notes__ == [annotations.AGAIN]
    assert contents(tmp_path) == before

    unread = dict.fromkeys(readings.COLUMNS)
    monkeypatch.setattr(annotations, "read_images", lambda *_: iter([unread]))
    with pytest.raises(QDGSError, match=r"No image of .* can be read, such as a\.png"):
        annotate(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("manifest.json.part", "unfinished dataset"),
        ("metadata.csv", r"is not read: write it as lines of JSON, metadata\.jsonl"),
        ("nothing.txt", "holds no images"),
    ],
)
def test_folders_that_are_refused(tmp_path, name, sentence):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=sentence):
        annotate(tmp_path)
    with pytest.raises(ConfigError, match="is no folder of images"):
        annotate(tmp_path / "other")
