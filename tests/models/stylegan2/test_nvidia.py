"""Hostile and damaged pickles: nothing is executed, and the error is one sentence."""

import codecs
import pickletools
import resource
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.stylegan2 import StyleGAN2Config, load
from qdgs_jax.models.stylegan2.nvidia import read_generator

REMEDY = "fetch a .pkl that NVIDIA's PyTorch code for StyleGAN2 or 3 has written"
CLASS = "`torch.save(model.state_dict(), FILE)`, and give that file"
MEMORY = 256 << 10  # KiB, for files of less than 5 MB; the bar is 2 GiB
SECONDS = 10.0
WATCHED: list[str] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED is not None and event.startswith(("exec", "compile", "import", "os.", "subprocess")):
        WATCHED.append(f"{event} {str(arguments)[:200]}")


sys.addaudithook(watch)  # for the life of the process; it only listens while a test asks it to


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """What is compiled, imported, executed or started from here on."""
    global WATCHED
    WATCHED = events = []
    yield events
    WATCHED = None


@pytest.fixture
def config() -> StyleGAN2Config:
    """One network is enough here."""
    return StyleGAN2Config(
        latent_size=4, label_size=2, embedding_size=3, style_size=4, mapping_sizes=(4,),
        channels=(3, 2), clamp=256.0,
    )  # fmt: skip


@pytest.fixture
def params(config: Any, drawn: Callable) -> Any:
    return drawn(config)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(REMEDY)
    assert "\n" not in message
    return message


def test_refused_as_a_whole(write: Callable, nvidia: Any, networks: dict[str, Any]) -> None:
    call = nvidia.Call("os", "system", ("exit 1",))
    meta = {"type": "class", "version": 7, "module_src": "", "class_name": "A", "state": {}}
    rebuild = ("torch_utils.persistence", "_reconstruct_persistent_obj")
    older = nvidia.Call("dnnlib.tflib.network", "Network", ())
    for content, reason in [
        (b"\x80", "damaged"),
        (nvidia.pickled(networks)[:-100], "too"),
        (nvidia.pickled(networks) + b"N.", "wrong end"),
        (nvidia.pickled([1, 2]), "no network G_ema"),
        ({"G": networks["G"]}, "no network G_ema"),
        ({"G_ema": {}}, "no network G_ema"),
        ({"G_ema": call}, "os.system"),
        ({"G_ema": nvidia.Call("torch_utils.persistence", "os.system", ("exit 1",))}, "asks for"),
        ({"G_ema": nvidia.Call("numpy", "dtype.__class__", ())}, "asks for"),
        ({"G_ema": nvidia.Call("builtins", "exec", ("exit(1)",))}, "builtins.exec"),
        ((older, older, older), "TensorFlow"),
        ({"G_ema": nvidia.Call(*rebuild, (meta,))}, "another version"),
        ({"G_ema": nvidia.Call(*rebuild, ({**meta, "version": 6, "state": 3},))}, "malformed"),
        ({"G_ema": nvidia.Call(*rebuild, ())}, "damaged"),
        ({"G_ema": nvidia.module("Generator", {})}, "no StyleGAN2"),
        ({"G_ema": nvidia.module("Generator", {}, modules={"synthesis": 3})}, "malformed"),
        (b"\x80\x04" + b"]" * (5 << 19), "opcodes"),
    ]:
        assert reason in refusal(write(content))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": (3,)}, "outside"),
        ({"strides": (2,)}, "outside"),
        ({"strides": (-1,)}, "no count"),
        ({"strides": (1, 1)}, "malformed"),
        ({"offset": 1}, "outside"),
        ({"offset": -1}, "no count"),
        ({"size": (1 << 40,), "strides": (0,)}, "outside"),
        ({"size": (True,)}, "no count"),
        ({"count": 1 << 46}, "claimed size"),
        ({"written": 1 << 46}, "claimed size"),
        ({"count": 1, "written": 1}, "claimed size"),
        ({"count": -1, "written": 0}, "no count"),
        ({"kind": "torch HalfStorage"}, "claimed size"),
        ({"kind": "torch.cuda FloatStorage"}, ""),
        ({"kind": "os system"}, "os.system"),
        ({"kind": "collections OrderedDict"}, "asks for"),
        ({"magic": 1}, "another one of PyTorch"),
        ({"little_endian": False}, "another one of PyTorch"),
        ({"storage": b""}, "damaged"),
        ({"storage": "text"}, "malformed"),
        ({"storage": b"\x80\x02" + b"(" * 2000}, "damaged"),
    ],
)
def test_tensors(write: Callable, nvidia: Any, networks: Any, changes: Any, reason: str) -> None:
    meta = networks["G_ema"].arguments[0]
    buffers = meta["state"]["_modules"]["mapping"].arguments[0]["state"]["_buffers"]
    buffers["w_avg"] = nvidia.tensor([1, 2, 3, 4], **changes)
    if changes.get("size") or changes.get("offset") or changes.get("strides"):
        buffers["w_avg"] = nvidia.tensor([1, 2], **{"size": (2,), "strides": (1,)} | changes)
    if reason:
        assert reason in refusal(write(networks))
    else:
        np.testing.assert_array_equal(load(write(networks))[1]["mean_style"], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("synthesis.b8", {"architecture": "resnet"}, "b4 has architecture skip, not resnet"),
        ("synthesis.b8", {"architecture": "new"}, "damaged"),
        ("synthesis.b8", {"resolution": 16}, "b8 has resolution 16, not 8"),
        ("synthesis.b8.conv0", {"up": 4}, "conv0 has up 4, not 2"),
        ("synthesis.b8.conv1", {"activation": "relu"}, "activation relu, not lrelu"),
        ("synthesis.b8.conv1", {"conv_clamp": None}, "conv_clamp None, not 256"),
        ("synthesis.b8.conv1", {"use_noise": False}, "use_noise False, not True"),
        ("synthesis.b8.torgb", {"weight_gain": 1.0}, "torgb has weight_gain 1.0, not 0.7"),
        ("mapping.fc0", {"bias_gain": 0.1}, "fc0 has weight_gain"),
        ("mapping.embed", {"bias_gain": 0.5}, "embed has bias_gain 0.5, not 1"),
        ("mapping", {"num_ws": 9}, "num_ws 9, not 4"),
        ("mapping", {"w_dim": 5}, "damaged"),
        ("mapping", {"z_dim": 5}, "mapping.fc0.weight is float32 (4, 7) instead of (4, 8)"),
        ("mapping", {"_buffers": {}}, "w_avg is missing"),
        ("mapping", {"_buffers": {"w_avg": 3}}, "malformed"),
    ],
)
def test_networks_of_another_kind(
    write: Callable, networks: Any, part: str, changes: Any, reason: str
) -> None:
    state = networks["G_ema"].arguments[0]["state"]
    for name in part.split("."):
        state = state["_modules"][name].arguments[0]["state"]
    state.update(changes)
    with pytest.raises(CheckpointError) as caught:
        load(write(networks))
    assert reason in str(caught.value)


def test_filters_must_agree(write: Callable, nvidia: Any, networks: Any) -> None:
    state = networks["G_ema"].arguments[0]["state"]
    block = state["_modules"]["synthesis"].arguments[0]["state"]["_modules"]["b8"]
    buffers = block.arguments[0]["state"]["_buffers"]
    for kernel, reason in ((np.ones((3, 3)) / 9, "not 4 x 4"), (np.ones((4, 4)) / 16, "not one")):
        buffers["resample_filter"] = nvidia.tensor(kernel)
        assert reason in refusal(write(networks))


def test_byte_order_of_numbers(write: Callable, nvidia: Any, networks: Any) -> None:
    networks["G_ema"].arguments[0]["state"]["z"] = nvidia.number(1.0, order=">")
    assert "byte order" in refusal(write(networks))


def test_network_within_itself(write: Callable, nvidia: Any, networks: Any) -> None:
    modules = networks["G_ema"].arguments[0]["state"]["_modules"]
    modules["x"] = nvidia.Raw(b"h\x00")  # the first thing put into the memo: these modules
    content = nvidia.pickled(networks)
    place = content.rindex(nvidia.opcodes("_modules") + b"}(" + nvidia.opcodes("synthesis"))
    place += len(nvidia.opcodes("_modules")) + 1
    content = content[:place] + b"q\x00" + content[place:]
    assert "malformed" in refusal(write(content))


def test_a_pickled_module_is_named(write: Callable) -> None:
    with pytest.raises(CheckpointError, match=r"class 'models\.Net'.* save the weights alone"):
        load(write(b"\x80\x02cmodels\nNet\n)\x81."))


def own_module(nvidia: Any, **state: bytes) -> bytes:
    """A pickle whose G_ema has this state, of opcodes; memo 1 is the state, memo 2 the module."""
    meta = {"type": "class", "version": 6, "class_name": "A", "state": nvidia.Raw(b"}q\x01")}
    rebuilt = nvidia.Call("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,))
    items = b"".join(nvidia.opcodes(key) + value for key, value in state.items())
    parts = {"a": nvidia.opcodes(rebuilt) + b"q\x02", "b": b"h\x01(" + items + b"u"}
    content = b"".join(nvidia.opcodes(key) + code + b"s" for key, code in parts.items())
    return b"\x80\x04}" + content + nvidia.opcodes("G_ema") + b"h\x02s."


@pytest.mark.parametrize(
    ("key", "reason"),
    [("k" * 100_000, "too long"), ("", "empty"), ("\n", "no plain text"), ("k", "too long")],
)
def test_a_module_within_itself(write: Callable, nvidia: Any, key: str, reason: str) -> None:
    modules = b"}" + nvidia.opcodes(key) + b"h\x02s"  # names of 100 kB, 200 kB, ...: 3 GiB
    path = write(own_module(nvidia, _modules=modules))
    tracemalloc.start()
    assert reason in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_parts_that_are_none_are_counted(write: Callable, nvidia: Any) -> None:
    modules = b"}(" + b"".join(nvidia.opcodes(f"{i}") + b"N" for i in range(2000)) + b"u"
    assert "too many parts" in refusal(write(own_module(nvidia, _modules=modules)))


TOWER = b")" + b"q\x63h\x63\x86" * 60
"""A tuple of two tuples of two tuples ...: shown or compared, it takes 2^60 steps."""


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("mapping", "z_dim"),
        ("mapping", "c_dim"),
        ("mapping", "w_dim"),
        ("mapping", "num_ws"),
        ("mapping.fc0", "bias_gain"),
        ("synthesis.b8", "architecture"),
        ("synthesis.b4", "is_last"),
        ("synthesis.b4.conv1", "conv_clamp"),
        ("synthesis.b4.conv1", "use_noise"),
        ("synthesis.b8.torgb", "weight_gain"),
    ],
)
def test_towers_of_tuples(write: Callable, nvidia: Any, networks: Any, part: str, key: str) -> None:
    state = networks["G_ema"].arguments[0]["state"]
    for name in part.split("."):
        state = state["_modules"][name].arguments[0]["state"]
    state[key] = nvidia.Raw(TOWER)
    assert f"its {part} has a {key} that is no number" in refusal(write(networks))


def test_tensors_that_share_a_storage_are_counted(
    write: Callable, nvidia: Any, networks: Any
) -> None:
    buffers = networks["G_ema"].arguments[0]["state"]["_modules"]["mapping"].arguments[0]["state"]
    one = nvidia.opcodes(nvidia.tensor(np.zeros(20_000))) + b"q\x63"
    shared = {f"x{i}": nvidia.Raw(one if i == 0 else b"h\x63") for i in range(9)}
    buffers["_buffers"] = {**buffers["_buffers"], **shared}
    assert "too large ones" in refusal(write(networks))


EXTREMES = (-1, 0, 1, 3, 255, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 64, -(1 << 62), 1 << 4000)
CALLS = ("os system", "posix system", "builtins exec", "builtins eval", "builtins __import__",
         "torch_utils.persistence os.system", "subprocess check_output", "numpy f2py.os.system",
         "torch.storage _load_from_bytes.__globals__", "runpy _run_code")  # fmt: skip


class Mutations:
    """Endless hostile variants of one file."""

    def __init__(self, content: bytes, nvidia: Any, command: str, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nvidia, self.content, self.command = nvidia, content, command
        operations = [(op.name, value, place) for op, value, place in pickletools.genops(content)]
        ends = [place for *_, place in operations[1:]] + [len(content)]
        self.operations = [(*item, end) for item, end in zip(operations, ends, strict=True)]

    def pick(self, *names: str) -> tuple[Any, int, int]:
        """An operation's argument, start and end."""
        chosen = [item[1:] for item in self.operations if not names or item[0].startswith(names)]
        return chosen[self.random.integers(len(chosen))]

    def insert(self, code: bytes, start: int, end: int) -> bytes:
        return self.content[:start] + code + self.content[end:]

    def spoil(self, data: bytes) -> bytes:
        """Some bytes changed, removed or added."""
        spoilt = bytearray(data)
        for _ in range(self.random.integers(1, 4)):
            place = int(self.random.integers(len(spoilt) + 1))
            length = int(self.random.integers(1, 9))
            match self.random.integers(4):
                case 0:
                    spoilt[place : place + 1] = self.random.bytes(1)
                case 1:
                    spoilt[place : place + length] = self.random.bytes(length)
                case 2:
                    del spoilt[place : place + length]
                case 3:
                    spoilt[place:place] = spoilt[place // 2 : place // 2 + length]
        return bytes(spoilt)

    def call(self) -> bytes:
        module, name = CALLS[self.random.integers(len(CALLS))].split()
        return self.nvidia.opcodes(self.nvidia.Call(module, name, (self.command,)))

    def next(self) -> bytes:
        match self.random.integers(7):
            case 0:  # an operation damaged
                _, start, end = self.pick()
                return self.insert(
                    self.spoil(self.content[start : min(end, start + 64)]), start, end
                )
            case 1:  # a hostile call before an operation, or in its place
                _, start, end = self.pick()
                return self.insert(self.call(), start, self.random.choice([start, end]))
            case 2:  # another number
                _, start, end = self.pick("BININT")
                number = EXTREMES[self.random.integers(len(EXTREMES))]
                return self.insert(self.nvidia.opcodes(number), start, end)
            case 3:  # another name
                _, start, end = self.pick("SHORT_BINUNICODE", "BINUNICODE")
                module, name = CALLS[self.random.integers(len(CALLS))].split()
                return self.insert(
                    self.nvidia.opcodes(str(self.random.choice([module, name]))), start, end
                )
            case 4:  # a storage damaged
                stream, start, end = self.pick("BINBYTES", "SHORT_BINBYTES")
                spoilt = self.spoil(stream[:300]) + stream[300:]
                return self.insert(self.nvidia.opcodes(spoilt), start, end)
            case 5:  # a storage that calls
                stream, start, end = self.pick("BINBYTES", "SHORT_BINBYTES")
                place = int(self.random.integers(300))
                hostile = stream[:place] + self.call() + stream[place:]
                return self.insert(self.nvidia.opcodes(hostile), start, end)
            case _:  # cut, with or without an end
                _, start, _ = self.pick()
                return self.content[:start] + bytes(self.random.choice([b"", b"."]))


def attack(
    mutations: Mutations, count: int, write: Callable, tmp_path: Path, watched: list[str]
) -> int:
    """Reads variants; how many of them were refused."""
    refused = 0
    read_generator(write(mutations.content))  # what is imported late is imported now,
    codecs.lookup("raw_unicode_escape")  # and what reads the text of protocol 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        content = mutations.next()
        watched.clear()
        start = time.process_time()
        message = ""
        try:
            read_generator(write(content))
        except CheckpointError as error:
            message = str(error)
            refused += 1
        events = list(watched)
        assert not message or (message.endswith((REMEDY, CLASS)) and message.isprintable())
        assert not events, f"mutation {i} caused {events}"
        assert time.process_time() - start < SECONDS
    assert not (tmp_path / "executed").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
    return refused


def test_200_mutations(
    write: Callable, nvidia: Any, networks: Any, tmp_path: Path, watched: list[str]
) -> None:
    command = f"touch {tmp_path / 'executed'}"
    mutations = Mutations(nvidia.pickled(networks), nvidia, command, seed=0)
    assert 150 < attack(mutations, 200, write, tmp_path, watched) < 200


@pytest.mark.parametrize("name", ["sg2_ada_clamp_32", "sg2_cond_32"])  # protocols 4 and 3
def test_mutations_of_the_reference(
    reference: Path, write: Callable, nvidia: Any, tmp_path: Path, watched: list[str], name: str
) -> None:
    content = (reference / f"stylegan2/{name}.pkl").read_bytes()
    mutations = Mutations(content, nvidia, f"touch {tmp_path / 'executed'}", seed=1)
    assert 30 < attack(mutations, 60, write, tmp_path, watched) < 60


def test_the_alarm_works(watched: list[str]) -> None:
    exec("1")
    assert any(event.startswith("exec") for event in watched)


def test_storages_of_a_flood_are_limited(write: Callable, nvidia: Any) -> None:
    # Each costs its opcodes' time: distinct ones are counted, one used again is read once.
    load_bytes = nvidia.opcodes("torch.storage") + nvidia.opcodes("_load_from_bytes") + b"\x93"
    one = nvidia.stream(struct.pack("<f", 0.5))
    again = b"\x80\x04](" + load_bytes + b"q\x00" + nvidia.opcodes((one,)) + b"q\x01R"
    start = time.process_time()
    assert "no network" in refusal(write(again + b"h\x00h\x01R" * 100_000 + b"e."))
    distinct = (nvidia.stream(struct.pack("<I", i)) for i in range((1 << 13) + 1))
    calls = b"".join(b"h\x00" + nvidia.opcodes((x,)) + b"R" for x in distinct)
    assert "more than 8192 storages" in refusal(write(again + calls + b"e."))
    assert time.process_time() - start < 20
