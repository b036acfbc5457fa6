"""Every way in which a checkpoint can be broken is one sentence that names the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import FORMAT_VERSION, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError

from . import tiny

NAME = "model.safetensors"
KEY = "model.diffusion_model.time_embed.0.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig("teacher", tiny.CONDITIONED, tiny.FIRST_STAGE, tiny.CLASSES)
    return tiny.write(tmp_path_factory.mktemp("sound") / NAME, config)


def refused(path: Path) -> str:
    """The one sentence with which `path` is refused."""
    with pytest.raises(SpectralError) as caught:
        checkpoint.load(path)
    said = str(caught.value)
    assert path.name in said and "\n" not in said and said.endswith(".") and len(said) < 600
    return said


def header_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])  # type: ignore[no-any-return]


def with_length(content: bytes, length: int) -> bytes:
    """The same file, whose first eight bytes claim another length of the header."""
    return struct.pack("<Q", length) + content[8:]


def with_header(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The same tensors behind a changed header."""
    length = struct.unpack("<Q", content[:8])[0]
    header = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def test_a_path_to_nothing(tmp_path: Path) -> None:
    assert "No checkpoint at" in refused(tmp_path / "nothing.safetensors")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert "is a folder" in refused(tmp_path / NAME)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    assert ".safetensors" in refused(tmp_path / "model.ckpt")


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "it is empty"),
    "one-byte": (lambda content: content[:1], "damaged"),
    "eight-bytes": (lambda content: content[:8], "damaged"),
    "text": (lambda content: b"<!DOCTYPE html><html>404 Not Found</html>\n" * 20, "not a safetensors file"),
    "pickle": (lambda content: b"PK\x03\x04" + bytes(500), "not a file of torch.save"),
    "cut-in-the-header": (lambda content: content[:2000], "damaged"),
    "cut-after-the-header": (lambda content: content[: 8 + struct.unpack("<Q", content[:8])[0]], "ends before"),
    "cut-half-way": (lambda content: content[: len(content) // 2], "ends before"),
    "cut-by-one-byte": (lambda content: content[:-1], "ends before"),
    "bytes-left-over": (lambda content: content + b"\0", "damaged"),
    "header-length-too-large": (lambda content: with_length(content, 2**62), "damaged"),
    "header-length-past-the-end": (lambda content: with_length(content, len(content) + 1), "damaged"),
    "header-length-too-small": (lambda content: with_length(content, 100), "damaged"),
    "header-length-zero": (lambda content: with_length(content, 0), "damaged"),
    "header-not-utf8": (lambda content: content[:9] + b"\xff\xfe" + content[11:], "damaged"),
    "header-overwritten": (lambda content: content[:20] + bytes(50) + content[70:], "damaged"),
}


@pytest.mark.parametrize(("damage", "says"), BYTES.values(), ids=BYTES)
def test_damaged_bytes(damage: Callable[[bytes], bytes], says: str, sound: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(damage(sound.read_bytes()))
    assert says in refused(tmp_path / NAME)


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """A change of the description inside the metadata."""

    def apply(header: dict[str, Any]) -> None:
        description = json.loads(header["__metadata__"]["spectral_diffusion"])
        change(description)
        header["__metadata__"]["spectral_diffusion"] = json.dumps(description)

    return apply


def metadata(text: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header["__metadata__"].update(spectral_diffusion=text)


DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "foreign-without-metadata": (lambda header: header.pop("__metadata__"), "says nothing of its architecture"),
    "foreign-with-metadata": (
        lambda header: header.update(__metadata__={"format": "pt"}),
        "nothing of its architecture",
    ),
    "not-json": (metadata("{version"), "not valid JSON"),
    "nested-without-end": (metadata("[" * 100_000), "deeper than any"),
    "no-number": (metadata('{"scale_factor": NaN}'), "not valid JSON"),
    "infinite": (metadata('{"scale_factor": 1e999}'), "not valid JSON"),
    "not-an-object": (metadata("[1, 2]"), "should be a JSON object"),
    "newer-version": (
        described(lambda d: d.update(version=FORMAT_VERSION + 1)),
        f"format version {FORMAT_VERSION + 1}, newer than this reader's {FORMAT_VERSION}",
    ),
    "newer-version-with-unknown-keys": (described(lambda d: d.update(version=7, stages=3)), "format version 7, newer"),
    "version-not-a-number": (described(lambda d: d.update(version="1")), "version should be int"),
    "unknown-key": (described(lambda d: d.update(sampler="ddim")), "unknown key 'sampler'"),
    "unknown-key-inside": (described(lambda d: d["unet"].update(dropout=0.1)), "unet has an unknown key 'dropout'"),
    "missing-key": (described(lambda d: d["unet"].pop("model_channels")), "lacks the key 'model_channels'"),
    "wrong-type": (described(lambda d: d["unet"].update(model_channels="32")), "model_channels should be int"),
    "wrong-type-in-a-list": (described(lambda d: d["unet"].update(channel_mult=[1, None])), r"channel_mult\[1\]"),
    "unknown-choice": (described(lambda d: d.update(kind="giant")), "kind is 'giant'"),
    "impossible-unet": (described(lambda d: d["unet"].update(model_channels=33)), "multiple of 32"),
    "impossible-first-stage": (described(lambda d: d["first_stage"].update(ch=33)), "multiple of 32"),
    "impossible-codebook": (described(lambda d: d["first_stage"].update(kind="vq")), "n_embed"),
    "impossible-conditioner": (described(lambda d: d["conditioning"].update(n_classes=0)), "n_classes"),
    "impossible-schedule": (described(lambda d: d["schedule"].update(linear_end=2)), "0 < β < 1"),
    "impossible-size": (described(lambda d: d["unet"].update(image_size=-5)), "image_size is -5"),
    "impossible-width": (described(lambda d: d["unet"].update(model_channels=2**30)), "model_channels is"),
    "impossible-depth": (described(lambda d: d["unet"].update(num_res_blocks=10**7)), "num_res_blocks is"),
    "impossible-layers": (
        described(lambda d: d.update(conditioning={"kind": "text", "width": 32, "layers": 10**9, "heads": 2})),
        "layers of 1 to 128",
    ),
    "impossible-steps": (described(lambda d: d["schedule"].update(steps=10**9)), "1 to 1000000 steps"),
    "impossible-resolution": (described(lambda d: d["first_stage"].update(resolution=-1)), "resolution is -1"),
    "endless-number": (described(lambda d: d.update(scale_factor=10**400)), "scale_factor is beyond any number"),
    "digits-without-end": (metadata('{"version": 1' + "0" * 5000 + "}"), "not valid JSON"),
    "version-before-the-first": (described(lambda d: d.update(version=-1)), "format version -1"),
    "impossible-scale": (described(lambda d: d.update(scale_factor=0)), "scale_factor is 0"),
    "latents-that-do-not-fit": (described(lambda d: d["first_stage"].update(embed_dim=3)), "its first stage makes 3"),
    "contexts-that-do-not-fit": (described(lambda d: d["conditioning"].update(width=16)), "its conditioner makes 16"),
    "part-not-described": (described(lambda d: d.update(first_stage=None)), "belongs to nothing"),
}


@pytest.mark.parametrize(("change", "says"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_wrong_descriptions(change: Callable[[dict[str, Any]], Any], says: str, sound: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(with_header(sound.read_bytes(), change))
    assert says.replace("\\", "") in refused(tmp_path / NAME)


@pytest.mark.parametrize("name", [name for name in DESCRIPTIONS if name.startswith("impossible") or "fit" in name])
def test_what_cannot_be_built_is_known_before_anything_is_built(name: str, sound: Path, tmp_path: Path) -> None:
    """By `read`, which is what the node calls first."""
    change, says = DESCRIPTIONS[name]
    (tmp_path / NAME).write_bytes(with_header(sound.read_bytes(), change))
    with pytest.raises(SpectralError, match=f"{NAME} describes what cannot be built: .*{says}"):
        checkpoint.read(tmp_path / NAME)


def cast(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({KEY: tensors[KEY].to(dtype)})


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop(KEY), f"{KEY} is missing"),
    "all-missing": (lambda tensors: tensors.clear(), "is missing"),
    "wrong-shape": (
        lambda tensors: tensors.update({KEY: tensors[KEY][:, 1:].contiguous()}),
        f"{KEY} has shape [128, 31]",
    ),
    "surplus": (lambda tensors: tensors.update({KEY + "2": torch.zeros(1)}), f"{KEY}2 belongs to nothing"),
    "surplus-elsewhere": (lambda tensors: tensors.update(model_ema=torch.zeros(1)), "'model_ema'"),
    "float64": (cast(torch.float64), f"{KEY!r} is torch.float64"),
    "int64": (cast(torch.int64), f"{KEY!r} is torch.int64"),
    "float8": (cast(torch.float8_e4m3fn), f"{KEY!r} is torch.float8_e4m3fn"),
}


@pytest.mark.parametrize(("change", "says"), TENSORS.values(), ids=TENSORS)
def test_wrong_tensors(change: Callable[[dict[str, Tensor]], Any], says: str, sound: Path, tmp_path: Path) -> None:
    tensors = load_file(sound)
    change(tensors)
    save_file(tensors, tmp_path / NAME, header_of(sound.read_bytes())["__metadata__"])
    assert says in refused(tmp_path / NAME)


DESCRIBING_TENSORS: dict[str, tuple[Tensor, str]] = {
    "empty": (torch.zeros(0, dtype=torch.uint8), "not valid JSON"),
    "no-text": (torch.full((9,), 255, dtype=torch.uint8), "holds no description"),
    "of-floats": (torch.zeros(9), "holds no description"),
    "of-two-axes": (torch.zeros(3, 3, dtype=torch.uint8), "holds no description"),
    "too-long": (torch.full((2**20 + 1,), 32, dtype=torch.uint8), "holds no description"),
    "no-json": (torch.tensor(list(b"{version"), dtype=torch.uint8), "not valid JSON"),
    "of-nothing": (torch.tensor(list(b"{}"), dtype=torch.uint8), "lacks the key 'kind'"),
}


@pytest.mark.parametrize(("tensor", "says"), DESCRIBING_TENSORS.values(), ids=DESCRIBING_TENSORS)
def test_wrong_descriptions_in_a_tensor(tensor: Tensor, says: str, sound: Path, tmp_path: Path) -> None:
    save_file({**load_file(sound), "spectral_diffusion": tensor}, tmp_path / NAME)
    assert says in refused(tmp_path / NAME)
