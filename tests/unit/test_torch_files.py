"""Archives of torch.save: Lightning's are read, and nothing that wants to run ever does."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import types
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ConditioningConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats.tensor_files import open_tensors

from . import ldm_files
from .ldm_files import UNCONDITIONAL, VQ, Parts


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state()


def refused(path: Path) -> str:
    """The one sentence with which `path` is refused."""
    with pytest.raises(SpectralError) as caught:
        checkpoint.load(path)
    said = str(caught.value)
    assert path.name in said and "\n" not in said and said.endswith(".") and len(said) < 600, said
    return said


@pytest.fixture
def lightning() -> Iterator[type]:
    """A class under Lightning's name, which exists only while a file is written."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    for name in names:
        sys.modules[name] = types.ModuleType(name)

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.best = "epoch=3.ckpt"

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = names[-1], "ModelCheckpoint"
    sys.modules[names[-1]].ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    yield ModelCheckpoint
    for name in names:
        del sys.modules[name]


def test_what_lightning_keeps_beside_the_weights_is_passed_over(
    lightning: type, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Its callbacks as keys, as Lightning 1.4 wrote them, and as objects; optimisers with their moments."""
    content = {
        "epoch": 216,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": collections.OrderedDict(state),
        "callbacks": {
            lightning: {"monitor": "val/loss", "best_model_score": torch.tensor(0.14)},
            "object": lightning(),
            "scores": [np.float64(0.3), np.float32(0.1)],
        },
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 5, "_step_count": 6, "base_lrs": [1.0]}],
    }
    torch.save(content, tmp_path / "last.ckpt")
    opened = checkpoint.load(tmp_path / "last.ckpt")
    assert opened.unet is not None
    assert torch.equal(opened.unet.state_dict()["out.2.weight"], state["model.diffusion_model.out.2.weight"])
    assert "pytorch_lightning" not in open_tensors(tmp_path / "last.ckpt")[0]


def test_parameters_and_slices_of_larger_storages_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    whole = torch.randn(10, 4)
    content = {**state, "betas": whole[2:5, 1], "logvar": torch.nn.Parameter(whole[0])}
    torch.save(content, tmp_path / "views.ckpt")
    tensors, _ = open_tensors(tmp_path / "views.ckpt")
    assert torch.equal(tensors["betas"], whole[2:5, 1]) and torch.equal(tensors["logvar"], whole[0])
    assert not tensors["logvar"].requires_grad


class Calls:
    """An object whose pickle calls `function(*arguments)` when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def touch(marker: Path) -> dict[str, Calls]:
    """By the name that the pickle has for it: many ways to leave the marker file on reading, or to take all memory."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "io.open": Calls(open, str(marker), "w"),
        "builtins.getattr": Calls(getattr, "os", "system"),
        "pathlib.Path": Calls(Path, str(marker)),
        "builtins.__import__": Calls(__import__, "os"),
        "torch.serialization.load": Calls(torch.load, str(marker)),
        "torch.serialization.save": Calls(torch.save, {}, str(marker)),
        "torch.FloatStorage": Calls(torch.FloatStorage, 10**12),
        "builtins.bytearray": Calls(bytearray, 10**12),
        "collections.Counter": Calls(collections.Counter, "a"),
    }


@pytest.mark.parametrize("kind", touch(Path("marker")))
@pytest.mark.parametrize("place", ["beside", "inside", "alone", "as-a-key"])
def test_nothing_in_a_pickle_is_ever_called(kind: str, place: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    marker = tmp_path / "touched"
    evil = touch(marker)[kind]
    content: Any = {
        "beside": {"state_dict": state, "callbacks": [evil]},
        "inside": {"state_dict": {**state, "model.diffusion_model.out.0.weight": evil}},
        "alone": evil,
        "as-a-key": {"state_dict": state, evil: 1},
    }[place]
    torch.save(content, tmp_path / "evil.ckpt")
    said = refused(tmp_path / "evil.ckpt")
    assert not marker.exists()
    assert kind in said
    assert said.startswith(("evil.ckpt is refused: it names ", "evil.ckpt is refused: it calls "))


def test_lightnings_names_open_no_door(lightning: type, state: dict[str, Tensor], tmp_path: Path) -> None:
    """A callback's class is an empty one, which keeps nothing of what it is called or built with."""
    marker = tmp_path / "touched"
    evil = Calls(lightning, Calls(os.system, f"touch {marker}"))
    torch.save({"state_dict": state, "callbacks": evil}, tmp_path / "nested.ckpt")
    assert "posix.system" in refused(tmp_path / "nested.ckpt")
    pickled = archive_pickle(tmp_path / "nested.ckpt")
    for name in (
        b"pytorch_lightning.callbacks.os\nsystem",
        b"pytorch_lightning.trainer\nTrainer",
        b"main\nImageLogger",
    ):
        path = with_pickle(
            tmp_path, pickled.replace(b"pytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint", name)
        )
        assert name.split(b"\n")[-1].decode() in refused(path) or "posix.system" in refused(path)
    assert not marker.exists()


def archive_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def with_pickle(folder: Path, pickled: bytes, *, compress: bool = False, name: str = "made.ckpt") -> Path:
    """An archive with a pickle and no tensors."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / name, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    return folder / name


P = pickle
#: Opcodes of a dictionary whose key is a tuple of tuples, 2^60 of them when hashed.
TUPLE_BOMB = b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
#: A tuple that holds itself twice, thirty times over: its text would have a gigabyte.
DOUBLED = b")" + b"q\x00h\x00\x86" * 30
#: Dictionaries of whole numbers whose hashes are all the same.
COLLIDING = (
    b"\x80\x02}("
    + b"".join(b"\x8a\x0c" + ((2**61 - 1) * (index + 1)).to_bytes(12, "little") + b"N" for index in range(20_000))
    + b"u."
)
STUBS = b"\x80\x02]" + b"".join(b"cpytorch_lightning.callbacks\nX%d\na" % index for index in range(5000)) + b"."


def encode(text: bytes, encoding: bytes) -> bytes:
    """A pickle that has a text encoded."""
    words = [b"X" + len(word).to_bytes(4, "little") + word for word in (text, encoding)]
    return b"\x80\x02c_codecs\nencode\n" + b"".join(words) + b"\x86R."


PICKLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "damaged"),
    "no-end": (b"\x80\x02}", "damaged"),
    "no-dict": (b"\x80\x02K\x05.", "int in place of a state dict"),
    "no-tensors": (b"\x80\x02}.", "no tensors"),
    "noise": (bytes(range(256)) * 4, "refused|damaged"),
    "endless-key": (TUPLE_BOMB, "keys that are no names"),
    "long": (b"\x80\x02" + b"N0" * 2**21 + b"N.", "operation|bytes"),
    "stack-underflow": (b"\x80\x02" + b"0" * 10 + b".", "refused|damaged"),
    "mark-underflow": (b"\x80\x02t.", "damaged"),
    "memo-of-nothing": (b"\x80\x02h\x07.", "damaged"),
    "deep": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "in place of a state dict"),
    "protocol-4-name": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x02ls\x85R.", "os.system"),
    "instance": (b"\x80\x02(ios\nsystem\n.", "os.system"),
    "storage-of-nothing": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
        "missing",
    ),
    "extension": (b"\x80\x02\x82\x01.", "refused|damaged"),
    "endless-name": (b"\x80\x02" + DOUBLED + DOUBLED + b"\x93.", "names something in a way"),
    "endless-record": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + DOUBLED + b"X\x03\x00\x00\x00cpuK\x01tQ.",
        "no known place",
    ),
    "colliding-numbers": (COLLIDING, "keys that are no names"),
    "many-callbacks": (STUBS, "more of Lightning's callbacks"),
    "many-calls": (
        b"\x80\x02]cpytorch_lightning.callbacks\nX\nq\x000" + b"h\x00)Ra" * 3000 + b".",
        "refused|damaged",
    ),
    "slow-encoding": (encode(b"a" * 100_000, b"punycode"), "encodes a text"),
    "long-encoding": (encode(b"a" * 100_000, b"latin1"), "encodes a text"),
    "persistent-text": (b"\x80\x02Pfile\n.", "refused|damaged"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_broken_and_hostile_pickles(kind: str, tmp_path: Path) -> None:
    content, says = PICKLES[kind]
    said = refused(with_pickle(tmp_path, content))
    assert any(word in said for word in says.split("|")), said


def rezipped(path: Path, target: Path, change: Any) -> Path:
    """A copy of an archive whose records went through `change(name, content) -> (name, content) or None`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return target


@pytest.fixture
def sound(state: dict[str, Tensor], tmp_path: Path) -> Path:
    return ldm_files.write(tmp_path / "sound.ckpt", state)


CHANGES: dict[str, tuple[Any, str]] = {
    "without-a-storage": (lambda n, c: None if n.endswith("/data/5") else (n, c), "'data/5' is missing"),
    "with-a-short-storage": (lambda n, c: (n, c[:-4] if n.endswith("/data/5") else c), "bytes where"),
    "with-a-long-storage": (lambda n, c: (n, c + b"0000" if n.endswith("/data/5") else c), "bytes where"),
    "without-a-pickle": (lambda n, c: None if n.endswith("data.pkl") else (n, c), "without data.pkl"),
    "big-endian": (lambda n, c: (n, b"big" if n.endswith("byteorder") else c), "big-endian"),
    "torchscript": (lambda n, c: (n.replace("version", "constants.pkl"), c), "TorchScript"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_archives_that_contradict_themselves(kind: str, sound: Path, tmp_path: Path) -> None:
    change, says = CHANGES[kind]
    assert says in refused(rezipped(sound, tmp_path / "changed.ckpt", change))


def test_zip_bombs_are_never_unpacked(tmp_path: Path) -> None:
    """A gigabyte of zeros in four megabytes; refused by what the table of contents says."""
    path = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as record,
    ):
        for _ in range(1000):
            record.write(bytes(2**20))
    assert "compressed" in refused(path)
    assert "compressed" in refused(with_pickle(tmp_path, b"\x80\x02}.", compress=True))


def test_a_record_twice_or_over_another(sound: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(sound, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name, b"\x80\x02}.")
    assert "twice" in refused(sound)


END = b"PK\x05\x06"


def shifted(content: bytes) -> bytes:
    """Two tables of contents: one where the end says, and one just before the end, which some readers take."""
    place = content.rfind(END)
    size, offset = (int.from_bytes(content[place + at : place + at + 4], "little") for at in (12, 16))
    return content[: offset + size] + content[offset : offset + size] + content[place:]


@pytest.mark.parametrize(
    "change",
    [
        shifted,
        lambda content: b"PK\x03\x04" + bytes(60) + content,
        lambda content: content + bytes(10),
        lambda content: content[:-2] + b"\x05\x00hello",
        lambda content: content[: content.rfind(END) + 4] + b"\x01\x00" + content[content.rfind(END) + 6 :],
    ],
    ids=["two-contents", "bytes-before", "bytes-behind", "comment", "other-disk"],
)
def test_archives_that_readers_could_read_in_two_ways(change: Any, tmp_path: Path) -> None:
    path = with_pickle(tmp_path, b"\x80\x02}.")
    path.write_bytes(change(path.read_bytes()))
    assert "end" in refused(path)


def test_a_second_folder_or_spelling_in_an_archive(tmp_path: Path) -> None:
    for name, says in (("other/data.pkl", "one folder"), ("archive/DATA.PKL", "twice")):
        path = with_pickle(tmp_path, b"\x80\x02}.", name=f"{says.split()[0]}.ckpt")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"\x80\x02}.")
        assert says in refused(path)


def second_name(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A record with the field in which readers of zip files may find another name for it."""
    other = b"archive/other.pkl"
    field = struct.pack("<BL", 1, zlib.crc32(name.encode())) + other
    info = zipfile.ZipInfo(name)
    info.extra = struct.pack("<2H", 0x7075, len(field)) + field
    archive.writestr(info, content)


def zero_byte(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A record whose name goes on behind a zero byte."""
    info = zipfile.ZipInfo(name)
    info.filename = name + "\0.other"
    archive.writestr(info, content)


@pytest.mark.parametrize("write", [second_name, zero_byte])
def test_a_record_with_two_names(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "names.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/version", b"3")
        write(archive, "archive/data.pkl", b"\x80\x02}.")
    assert "two names" in refused(path)


def test_an_entry_with_much_beside_its_name_is_refused_at_once(tmp_path: Path) -> None:
    """Readers go through such fields one by one, each time copying the rest."""
    path = tmp_path / "extra.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(63):
            info = zipfile.ZipInfo(f"archive/{index}")
            info.extra = struct.pack("<2H", 0x9999, 0) * 16383
            archive.writestr(info, b"")
    began = time.process_time()
    assert "table of contents is not as torch.save writes it" in refused(path)
    assert time.process_time() - began < 1


def test_a_stretched_tensor_is_not_blown_up(state: dict[str, Tensor], tmp_path: Path) -> None:
    """A tensor of one number that claims 10^12 by strides of 0; and a thousand names for one tensor."""
    key = "model.diffusion_model.time_embed.0.weight"
    torch.save({**state, key: torch.zeros(1, 1).expand(10**6, 10**6)}, tmp_path / "stretched.ckpt")
    assert "claims more numbers than it has" in refused(tmp_path / "stretched.ckpt")
    one = torch.zeros(10**6)
    torch.save({**state, **{f"x{i}": one for i in range(1000)}}, tmp_path / "shared.ckpt")
    assert "claim more numbers than the file has" in refused(tmp_path / "shared.ckpt")


def test_files_from_before_the_archives_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in refused(tmp_path / "old.ckpt")
    buffer = io.BytesIO()
    pickle.dump(Calls(os.system, f"touch {tmp_path / 'touched'}"), buffer)
    (tmp_path / "bare.ckpt").write_bytes(buffer.getvalue())
    assert "pickle" in refused(tmp_path / "bare.ckpt") and not (tmp_path / "touched").exists()
