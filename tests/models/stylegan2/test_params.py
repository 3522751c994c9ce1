"""Weights are read back from either format; errors name weights that do not fit."""

import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from qdgs_jax.cli import run_command
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import stylegan2
from qdgs_jax.models.stylegan2.nvidia import read_generator
from qdgs_jax.models.stylegan2.params import table


def same(actual: Any, desired: Any) -> None:
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), actual, desired)


def test_pickle_gives_config_and_weights(
    config: Any, params: Any, networks: Any, write: Callable
) -> None:
    loaded_config, loaded = stylegan2.load(write(networks))
    if not config.label_size:  # then no weight has or needs it
        config = stylegan2.StyleGAN2Config(
            **{**vars(config), "embedding_size": loaded_config.embedding_size}
        )
    assert loaded_config == config
    same(loaded, params)


def test_folder_round_trip(tmp_path: Path, config: Any, params: Any) -> None:
    stylegan2.save(tmp_path / "new", config, params)
    for path in (tmp_path / "new", tmp_path / "new/model.safetensors"):
        loaded_config, loaded = stylegan2.load(path)
        assert loaded_config == config
        same(loaded, params)
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"config.json", "model.safetensors"}


def test_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: Any,
    params: Any,
    networks: Any,
    write: Callable,
) -> None:
    new = tmp_path / "new"
    assert run_command(["convert", "stylegan2", str(write(networks)), str(new)]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(new)}
    loaded_config, loaded = stylegan2.load(new)
    assert loaded_config.channels == config.channels
    same(loaded, params)
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"\x80\x04N.")
    for source, target, reason in (
        (bad, new, "no network G_ema"),
        (tmp_path / "absent", new, "cannot be read"),
        (write(networks), bad, "choose another folder"),
    ):
        assert run_command(["convert", "stylegan2", str(source), str(target)]) == 1
        message = capsys.readouterr().err
        assert message.startswith("qdgs: ")
        assert message.count("\n") == 1
        assert reason in message


def test_table_fills_every_leaf_once(config: Any) -> None:
    tree = jax.eval_shape(partial(stylegan2.init, config), jax.random.key(0))
    leaves = traverse_util.flatten_dict(tree, sep="/")
    rows = list(table(config))
    assert {row.target: row.leaf for row in rows} == {k: x.shape for k, x in leaves.items()}
    assert len({row.source for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["sg2_ffhq256_tiny", "sg2_ada_clamp_32", "sg2_cond_32"])
def test_reference_tensors_are_intact(reference: Path, name: str, tmp_path: Path) -> None:
    config, tensors = read_generator(reference / f"stylegan2/{name}.pkl")
    described = json.loads((reference / f"stylegan2/{name}_tensors.json").read_text())
    described = {k: v for k, v in described.items() if not k.endswith("resample_filter")}
    assert tensors.keys() == described.keys()
    for key, tensor in tensors.items():
        assert list(tensor.shape) == described[key]["shape"]
        content = np.ascontiguousarray(tensor, "<f4").tobytes()
        assert sha256(content).hexdigest() == described[key]["sha256"]
    stylegan2.save(tmp_path, *stylegan2.load(reference / f"stylegan2/{name}.pkl"))
    written = load_file(tmp_path / "model.safetensors")
    same(written, tensors)
    assert stylegan2.load(tmp_path)[0] == config


def test_every_misfit_is_named(tmp_path: Path, config: Any, params: Any) -> None:
    stylegan2.save(tmp_path, config, params)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["mapping.fc0.bias"] = tensors["mapping.fc0.bias"][:-1]
    tensors["synthesis.b8.conv0.bias"] = tensors["synthesis.b8.conv0.bias"].astype(np.int32)
    tensors["mapping.extra"] = tensors.pop("synthesis.b4.const")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        stylegan2.load(tmp_path)
    for part in (
        "fc0.bias is float32", "conv0.bias is int32", "b4.const is missing", "extra is unknown",
    ):  # fmt: skip
        assert part in str(error.value)


def test_foreign_files_and_folders(tmp_path: Path) -> None:
    for name in ("", "absent.pkl"):
        with pytest.raises(CheckpointError, match="No such file or directory: check the path"):
            stylegan2.load(tmp_path / name)
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    for content, reason in (
        ("", "not JSON"),
        ("[]", "no JSON object"),
        ("{}", "no config of a StyleGAN2"),
        ('{"model_type": "clip"}', "its model_type is not stylegan2"),
        ('{"model_type": "stylegan2", "x": 1}', "no config of a StyleGAN2"),
        ('{"model_type": "stylegan2", "latent_size": "a"}', "no counts"),
        ('{"model_type": "stylegan2", "channels": [%s8]}' % ("8," * 999), "12 blocks"),
        ('{"model_type": "stylegan2", "channels": [99999999999]}', "no counts"),
        ('{"model_type": "stylegan2", "mapping_rate": NaN}', "no numbers"),
        ('{"model_type": "stylegan2", "filter_taps": [1e999, 0, 0, 0]}', "no numbers"),
        ('{"model_type": "stylegan2", "architecture": [[1]]}', "architecture"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"config\.json .*{reason}.*: (give|fetch)"):
            stylegan2.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "stylegan2"}')
    with pytest.raises(CheckpointError, match="and 105 more"):
        stylegan2.load(tmp_path)
