"""Shards that are the same whenever they are made, what is held out of them, and what is left where making fails."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.datasets import packing
from spectral_diffusion.training.datasets.packing import Sample, is_held_out

SOURCES = [f"source {number}" for number in range(40)]


def picture(source: str) -> Image.Image:
    return Image.fromarray(np.random.default_rng(len(source) + ord(source[-1])).integers(0, 256, (9, 7, 3), np.uint8))


def samples(source: str) -> list[Sample]:
    """Three of each."""
    image = packing.webp(picture(source))
    return [Sample(f"{source}-{i}", image, {"caption": f"naïve {i}", "group": source[-1]}) for i in range(3)]


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def sources_in(path: Path) -> set[str]:
    return {name.rpartition("-")[0] for name in names(path)}


def test_a_shard_holds_every_sample(tmp_path: Path) -> None:
    """Read by tarfile, json and Pillow: in the order of the names, the description before its picture."""
    out = tmp_path / "new" / "x.tar"
    counts = packing.write(out, SOURCES, samples)
    assert counts == {"images": 120, "groups": 10, "bytes": out.stat().st_size, "path": str(out)}
    expected = sorted(f"{source}-{i}" for source in SOURCES for i in range(3))
    assert names(out) == [key + suffix for key in expected for suffix in (".json", ".webp")]
    with tarfile.open(out) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None and member.mtime == 0
            content, key = file.read(), Path(member.name).stem
            if member.name.endswith(".json"):
                assert json.loads(content) == {"caption": f"naïve {key[-1]}", "group": key[-3]}
            else:
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(picture(key[:-2])))


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (tmp_path / name / "x.tar" for name in "ab")
    packing.write(one, SOURCES, samples, 0.3)
    packing.write(other, SOURCES[::-1], samples, 0.3)
    for path in (one, packing.held_out_of(one)):
        assert path.read_bytes() == (other.parent / path.name).read_bytes()
    packing.write(other, SOURCES, samples, 0.3)  # over what is there
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5, 0.97])
def test_about_that_share_of_all_names_is_held_out(share: float) -> None:
    found = sum(is_held_out(f"name {number}", share) for number in range(20_000))
    assert stats.binomtest(found, 20_000, share).pvalue > 1e-3


def test_a_larger_share_keeps_what_a_smaller_one_held_out() -> None:
    shares = (0.0, 0.01, 0.1, 0.4, 0.999999999)
    held = [{name for name in map(str, range(3000)) if is_held_out(name, share)} for share in shares]
    assert not held[0] and len(held[-1]) == 3000
    assert all(small < large for small, large in itertools.pairwise(held))
    # The SHA-256 of "abc" begins with ba7816bf (FIPS 180-2): 0.72839 of the largest.
    assert is_held_out("abc", 0.7284) and not is_held_out("abc", 0.7283)


def test_samples_of_one_source_are_on_one_side(tmp_path: Path) -> None:
    out = tmp_path / "x.tar"
    counts = packing.write(out, SOURCES, samples, 0.3)
    held = tmp_path / "x-held-out.tar"
    assert sources_in(held) == {source for source in SOURCES if is_held_out(source, 0.3)}
    assert sources_in(out) == set(SOURCES) - sources_in(held) and 0 < len(sources_in(held)) < 40
    assert counts["path"] == str(out) and counts["held_out"]["path"] == str(held)
    for path, found in ((out, counts), (held, counts["held_out"])):
        assert found["images"] == 3 * len(sources_in(path)) and found["bytes"] == path.stat().st_size
    assert set(tmp_path.iterdir()) == {out, held}


def test_more_sources_move_none(tmp_path: Path) -> None:
    packing.write(tmp_path / "few.tar", SOURCES[:20], samples, 0.3)
    packing.write(tmp_path / "many.tar", SOURCES, samples, 0.3)
    assert sources_in(tmp_path / "few-held-out.tar") < sources_in(tmp_path / "many-held-out.tar")
    assert sources_in(tmp_path / "few.tar") < sources_in(tmp_path / "many.tar")


def unasked(source: str) -> list[Sample]:
    raise AssertionError("nothing is made where it cannot be written")


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share: float, tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=r"--held-out is .*; expected a share from 0 \(nothing\) up to, but not, 1"):
        packing.write(tmp_path / "x.tar", SOURCES, unasked, share)


@pytest.mark.parametrize(("share", "empty"), [(1e-9, "x-held-out.tar"), (0.999999999, "x.tar")])
def test_a_share_that_leaves_a_part_empty_is_refused(share: float, empty: str, tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=f"leaves nothing for {empty}; choose another share"):
        packing.write(tmp_path / "x.tar", SOURCES, unasked, share)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=r"--out is .*, which is a folder; expected the name of a \.tar"):
        packing.write(tmp_path, SOURCES, unasked)


def test_what_an_earlier_build_held_out_is_not_left_beside_all_of_it(tmp_path: Path) -> None:
    out = tmp_path / "x.tar"
    packing.write(out, SOURCES, samples, 0.3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SpectralError, match=r"x-held-out\.tar was held out of an earlier x\.tar"):
        packing.write(out, SOURCES, unasked)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    packing.write(out, SOURCES, samples, 0.1)
    assert not sources_in(out) & sources_in(tmp_path / "x-held-out.tar")


@pytest.mark.parametrize("held", [False, True])
def test_where_making_fails_everything_is_as_before(held: bool, tmp_path: Path) -> None:
    """Whichever of the two shards it fails in."""
    out = tmp_path / "x.tar"
    packing.write(out, SOURCES[:10], samples, 0.3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    bad = next(source for source in SOURCES if is_held_out(source, 0.3) == held)

    def make(source: str) -> Sequence[Sample]:
        if source == bad:
            raise SpectralError("one is damaged")
        return samples(source)

    with pytest.raises(SpectralError, match="one is damaged"):
        packing.write(out, SOURCES, make, 0.3)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before and len(before) == 2


def test_more_effort_gives_the_same_pixels() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).resize((64, 64))
    files = [packing.webp(image, effort) for effort in (0, 4, 6)]
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(file))), np.asarray(image)) for file in files)
    assert len(files[2]) <= len(files[0])
