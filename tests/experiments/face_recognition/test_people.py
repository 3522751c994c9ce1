"""Who is trained and tested on."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qdgs_jax import generators
from qdgs_jax.datasets.candidates import Candidates
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.experiments.face_recognition import people
from qdgs_jax.experiments.face_recognition import studio as studios
from qdgs_jax.experiments.face_recognition.people import People
from qdgs_jax.experiments.face_recognition.studio import Studio


def test_a_test_has_equally_many_people_of_each_class(studio: Studio) -> None:
    found = people.to_test(studio, count=3, images=4, seed=5)
    tones, counts = np.unique(found.tone_of, return_counts=True)
    assert tones.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(set(counts)) == 1
    assert 2 <= counts[0] <= 3
    assert found.images.shape == (4 * found.size, 16, 16, 3)
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, np.arange(found.size).repeat(4))
    assert sum(found.about["random_latents"].values()) == pytest.approx(1)

    random = people.of_random(studio, count=6, images=4, seed=5)
    faces = [{image.tobytes() for image in each.images} for each in (found, random)]
    assert not faces[0] & faces[1]


def test_a_class_that_is_never_drawn_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        studios, "skin_tone", lambda images: jnp.where(images[:, -1, 0, 0] > 0.5, 50.0, -50.0)
    )
    monkeypatch.setattr(people, "MOST", 256)
    generator, params = generators.load("stripes")
    found = people.to_test(Studio(generator, params, 16, 16), count=2, images=4, seed=5)
    assert found.tone_of.tolist() == [0, 0, 4, 4]
    assert found.about.keys() == {"dark", "light", "random_latents"}


def test_classes_of_one_person_are_left_out() -> None:
    tone = np.array([0, 0, 0, 2, 4, 4, 0])
    assert people.equal_classes(tone, 9).tolist() == [0, 1, 4, 5]
    assert people.equal_classes(np.array([1, 1, 1]), 2).tolist() == [0, 1]
    with pytest.raises(QDGSError, match="No class of skin tone has two"):
        people.equal_classes(np.array([1, 2, 3]), 2)


def test_identities_take_turns_among_bins() -> None:
    of = np.array([10, 11, 12, 13, 14, 15])
    assert people.in_turns(of, np.array([0, 0, 0, 2, 2, 5])).tolist() == [10, 13, 15, 11, 14, 12]
    assert people.in_turns(of[:0], np.zeros(0, int)).tolist() == []


def test_an_identity_shows_its_first_image_and_others_of_its_own() -> None:
    identity = np.repeat([0, 1, 2], [5, 6, 4])
    kept = Candidates(identity, np.arange(15), np.zeros(15, int))
    rows = people.draw_images(kept, np.array([2, 0]), 4, seed=1)
    assert rows[:4].tolist() == [11, 12, 13, 14]
    assert rows[4] == 0
    assert len(set(rows[4:])) == 4
    assert set(rows[4:]) < set(range(5))


def test_identities_are_distinct_people_of_many_images(studio: Studio) -> None:
    studio = Studio(studio.generator, studio.look.params["generator"], 16, 32)
    found = people.of_random(studio, count=16, images=9, seed=0)
    about = found.about
    assert about["tried"] == 29
    assert about["doubles"] > 0
    assert found.size == min(16, 29 - about["too_few_images"] - about["doubles"])
    firsts = found.images[::9].reshape(found.size, 16, -1).mean(axis=2)[:, :-1] / 255 - 0.5
    firsts /= np.linalg.norm(firsts, axis=1, keepdims=True)
    cosines = (firsts @ firsts.T)[np.triu_indices(found.size, 1)]
    assert cosines.max() < 0.57
    with pytest.raises(QDGSError, match="None of 29 identities has 40 images of one face"):
        people.of_random(studio, count=16, images=40, seed=0)


def test_real_people_are_divided_into_disjoint_halves(studio: Studio, tmp_path: Path) -> None:
    for person in range(5):
        (tmp_path / f"s{person}").mkdir()
        for number in range(3):
            grey = 255 if (person, number) == (2, 1) else 40 * person + number
            Image.new("L", (9, 12), grey).save(tmp_path / f"s{person}/{number}.png")
    found = people.read_real(studio, tmp_path)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert found.about == {"people": 5, "without_face": 1}
    assert (found.images == found.images[..., :1]).all()  # grey in three channels
    assert found.images[:, 8, 8, 0].tolist()[:4] == [0, 1, 2, 40]
    for share, sizes in ((0.5, (2, 3)), (0.99, (3, 2)), (0.01, (2, 3))):
        some, others = people.split(found, share, seed=7)
        assert (some.size, others.size) == sizes
        pixels = [{image.tobytes() for image in part.images} for part in (some, others)]
        assert not pixels[0] & pixels[1]
        assert len(some.labels) + len(others.labels) == 14
    assert not np.array_equal(people.split(found, 0.5, 0)[0].images, some.images)
    (tmp_path / "few/a").mkdir(parents=True)
    Image.new("L", (9, 12), 9).save(tmp_path / "few/a/0.png")
    with pytest.raises(ConfigError, match="faces of 1 people: four are needed"):
        people.read_real(studio, tmp_path / "few")


def test_people_are_numbered_anew() -> None:
    labels = np.array([0, 0, 1, 2, 2])
    given = People(np.arange(5)[:, None], labels, labels + 3, {})
    taken = given.take(np.array([2, 0]))
    assert taken.images[:, 0].tolist() == [3, 4, 0, 1]
    assert taken.labels.tolist() == [0, 0, 1, 1]
    assert taken.tone_of.tolist() == [5, 3]
