"""Files that hypothesis thinks of: whatever the bytes, headers, descriptions and pickles are, nothing but a refusal."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig, to_dict
from spectral_diffusion.spectral.errors import SpectralError

from . import tiny

thorough = settings(
    max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SpectralError) as caught:
        checkpoint.load(path)
    said = str(caught.value)
    assert path.name in said and "\n" not in said and said.endswith(".")


def with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@thorough
@given(content=st.binary(max_size=300), name=st.sampled_from(["x.safetensors", "x.ckpt", "x.pt", "x"]))
def test_bytes(content: bytes, name: str, tmp_path: Path) -> None:
    refused(tmp_path / name, content)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E5M2"]) | JSON,
        "shape": st.lists(st.integers(-2, 2**64), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-2, 2**64), min_size=2, max_size=2) | JSON,
    },
)


@thorough
@given(
    header=st.dictionaries(
        st.sampled_from(["__metadata__", "model.diffusion_model.out.2.weight", "betas"]) | st.text(max_size=9),
        ENTRY | JSON,
        max_size=4,
    ),
    data=st.binary(max_size=64),
)
def test_safetensors_headers(header: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "x.safetensors", with_header(header, data))


@thorough
@given(
    path=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    value=JSON | st.sampled_from([-1, 0, 2**31 - 1, 2**40, 1e400, "haar", "wavelet"]),
)
def test_descriptions(path: list[int], value: Any, tmp_path: Path) -> None:
    """Any one value of a description, at any depth, replaced: refused, or as it was."""
    description = to_dict(ModelConfig("teacher", tiny.CONDITIONED, tiny.FIRST_STAGE, tiny.CLASSES))
    place = description
    for step in path[:-1]:
        inner = list(place.values())[step % len(place)]
        place = inner if isinstance(inner, dict) and inner else place
    key = list(place)[path[-1] % len(place)]
    place[key] = value
    metadata = {"spectral_diffusion": json.dumps(description)}
    refused(tmp_path / "x.safetensors", save({"model.diffusion_model.x": torch.zeros(1)}, metadata))


OPCODES = [bytes([ord(operation.code)]) for operation in pickletools.opcodes]
ARGUMENTS = st.binary(max_size=6) | st.sampled_from(
    [b"os\nsystem\n", b"torch\nFloatStorage\n", b"collections\nOrderedDict\n", b"torch._utils\n_rebuild_tensor_v2\n"]
)


@thorough
@given(operations=st.lists(st.tuples(st.sampled_from(OPCODES), ARGUMENTS), max_size=20))
def test_pickles(operations: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"".join(code + argument for code, argument in operations) + b".")
    refused(tmp_path / "x.ckpt", buffer.getvalue())
