"""Identities of elites; functions of the colour take the place of the networks."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from qdgs_jax import blazeface, faceres
from qdgs_jax.config import BinConfig
from qdgs_jax.datasets.candidates import SAME_PERSON, distinct
from qdgs_jax.datasets.identities import make_identities
from qdgs_jax.errors import ConfigError, QDGSError

DARK = BinConfig(name="dark", label="dark", where={"x": (-1, -0.6)})  # red below 0.2: no face
RIGHT = BinConfig(name="right", label="right", where={"x": (0, 1)})
TURN = 20  # radians of the embedding from no green to full green


def angle(green):
    return TURN * green


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """A face is where red is 0.3 or more; green is who it is."""

    def find(graph, params, canvases):
        points = jnp.broadcast_to(blazeface.TEMPLATE + 72, (len(canvases), 4, 2))
        return (canvases[:, 182, 182, 0] > 0.3) * 0.9, points

    def embed(graph, params, images):
        turned = angle(images[:, 110, 110, 1]) * params["one"]
        return jnp.stack([jnp.cos(turned), jnp.sin(turned)], axis=-1)

    for number, module in enumerate((blazeface, faceres)):
        loaded = types.SimpleNamespace(sha256=f"{number}" * 64), {"one": jnp.float32(1)}
        monkeypatch.setattr(module, "load", lambda loaded=loaded: loaded)
    monkeypatch.setattr(blazeface, "find", find)
    monkeypatch.setattr(faceres, "embed", embed)


def colour_of(path):
    with Image.open(path) as image:
        assert image.size == (112, 112)
        return np.asarray(image)[110, 110] / 255


def test_an_identity_is_a_folder_of_one_persons_faces(run, tmp_path, records, contents):
    folder, out = run(DARK, RIGHT), tmp_path / "out"
    made = make_identities(folder, out, count=12, seed=3)
    assert [(b["name"], b["asked"], b["made"]) for b in made.bins] == [
        ("dark", 6, 0),
        ("right", 6, 6),
    ]
    assert (made.asked, made.made, made.refused_identities) == (12, 6, 6)
    assert made.refused_without_face == 9 * 12  # 12 dark elites
    assert made.images + made.refused_as_others == 9 * 12
    assert made.refused_as_others > 5
    assert made.written == made.images

    found = records(out)
    assert len(found) == made.images
    length = 0.15 * np.sqrt(2 / 3)  # of uniform latents in [-1, 1]^2
    by_identity, signs = {}, {-1, 1}
    for record in found:
        by_identity.setdefault(record["label_name"], []).append(record)
        red, green, _ = colour_of(out / record["file_name"])
        moved = record["offset_u"] * length / 2  # red alone changes a face and not whose it is
        for sign in (-1, 1):
            expected = np.clip((record["measure_x"] + 1) / 2 + sign * moved, 0, 1)
            if abs(red - expected) > 0.01:
                signs.discard(sign)
        record["green"] = green
    assert len(signs) == 1
    assert sorted(by_identity) == [f"{number:06d}" for number in range(6)]
    sizes = sorted(len(each) for each in by_identity.values())
    assert made.images_of_each == (sizes[0], float(np.median(sizes)), sizes[-1])
    for own in by_identity.values():
        assert (own[0]["offset_u"], own[0]["offset_v"]) == (0, 0)
        assert own[0]["objective"] == max(each["objective"] for each in own)
        assert all(
            np.cos(angle(each["green"]) - angle(own[0]["green"])) > SAME_PERSON - 0.02
            for each in own
        )
    first = np.array([angle(own[0]["green"]) for own in by_identity.values()])
    alike = np.cos(first[:, None] - first[None])[np.triu_indices(6, 1)] > SAME_PERSON
    assert made.alike == pytest.approx(alike.mean(), abs=1e-4)

    report = json.loads((out / "identities.json").read_text())
    assert report == {
        k: v for k, v in json.loads(json.dumps(made.as_dict())).items() if k != "written"
    }
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    columns = [each["name"] for each in header["configs"][0]["features"]]
    with open(out / "metadata.jsonl") as file:
        assert columns == ["image", *list(json.loads(file.readline()))[1:]]
    assert "Asked for 12, made 6, with" in card
    assert "| dark | 6 | 0 |" in card

    before = contents(out)
    (out / found[0]["file_name"]).unlink()
    assert make_identities(folder, out, count=12, seed=3).written == 1
    assert contents(out) == before


def test_what_cannot_be_made_is_told(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(QDGSError, match="No identity has 2 images with a face"):
        make_identities(run(DARK), out, count=3)
    tiny = BinConfig(name="tiny", label="tiny", where={"x": (0.8, 1), "y": (0.7, 1)})
    with pytest.raises(QDGSError, match="2 elites are too few for directions"):
        make_identities(run(tiny), out, count=3)
    with pytest.raises(ConfigError, match="ask for 1 or more"):
        make_identities(run(RIGHT), out, count=0)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        make_identities(run(RIGHT), out, count=3)


def test_people_are_counted_once():
    angles = np.radians([0, 10, 90, 20, 95])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    threshold = np.cos(np.radians(15))
    assert distinct(embeddings, threshold).tolist() == [True, False, True, True, False]
    assert distinct(embeddings[:0]).tolist() == []
