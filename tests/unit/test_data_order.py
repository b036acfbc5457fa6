"""The order of batches: over epochs, processes, workers and resumed runs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.data.batches import Batch, batches, dead_workers_told
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_data
from spectral_diffusion.training.data.images import Images
from spectral_diffusion.training.data.order import (
    Bucketed,
    Shuffled,
    bucket_sizes,
    joined_buckets,
    nearest_bucket,
)

from . import tiny
from .test_data_images import noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("data"), 10)


def opened(path: Path, **settings: Any) -> Images:
    data = open_data(DataConfig(str(path), 16, cache="off", **settings))
    assert isinstance(data, Images)
    return data


def taken(data: Images, count: int, batch: int = 3, **options: Any) -> list[Batch]:
    found = batches(data, batch, **{"seed": 4, **options})
    try:
        return list(islice(found, count))
    finally:
        found.close()


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["index"], b["index"]) and a["caption"] == b["caption"]
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("length", "batch"), [(10, 3), (10, 10), (4, 9), (7, 1), (1000, 64)])
def test_every_epoch_is_a_permutation(length: int, batch: int) -> None:
    order = Shuffled(length, batch, 3)
    indices = [index for number in range(5 * length) for _, index in order.plan(number).items]
    epochs = [indices[start : start + length] for start in range(0, 4 * length, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert length < 7 or epochs[0] != epochs[1]
    assert Shuffled(length, batch, 3).plan(7) == order.plan(7)


def test_epochs_are_counted() -> None:
    order = Shuffled(10, 4, 0)
    items = [item for number in range(25) for item in order.plan(number).items]
    assert [epoch for epoch, _ in items] == [epoch for epoch in range(10) for _ in range(10)]
    assert len(set(items)) == 100


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("start", [0, 7])
def test_a_resumed_run_sees_what_it_would_have_seen(start: int, workers: int, folder: Path) -> None:
    """Crops, mirroring and order, whatever the number of workers before and after."""
    data = opened(folder, crop="random", flip=True)
    whole = taken(data, 12, workers=2)
    assert same(
        taken(opened(folder, crop="random", flip=True), 12 - start, start=start, workers=workers), whole[start:]
    )


@pytest.mark.parametrize("buckets", [False, True], ids=["squares", "buckets"])
@pytest.mark.parametrize(("world", "start"), [(2, 0), (2, 3), (3, 1)])
def test_processes_share_the_batches_of_one(world: int, start: int, buckets: bool, tmp_path: Path) -> None:
    """Part for part, the ordinals too; with buckets, all have the same one."""
    for index in range(20):
        noise([(40, 20), (30, 30)][index % 2], index).save(tmp_path / f"{index:02d}.png")
    data = open_data(DataConfig(str(tmp_path), 16, cache="off", buckets=buckets), multiple=4)
    assert isinstance(data, Images)
    whole = taken(data, 4, batch=6, start=start, workers=0)
    parts = [
        taken(data, 4, batch=6 // world, start=start, rank=rank, world=world, workers=rank) for rank in range(world)
    ]
    for one, *several in zip(whole, *parts, strict=True):
        for name in ("image", "index", "ordinal"):
            assert torch.equal(one[name], torch.cat([part[name] for part in several]))
        assert one["caption"] == [caption for part in several for caption in part["caption"]]
    assert whole[0]["ordinal"].tolist() == list(range(6 * start, 6 * start + 6))


def test_two_processes_with_two_workers_see_every_sample_once(folder: Path) -> None:
    data = opened(folder)
    seen = Counter(
        index
        for rank in range(2)
        for batch in taken(data, 5, batch=1, rank=rank, world=2, workers=2)
        for index in batch["index"].tolist()
    )
    assert seen == dict.fromkeys(range(10), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_random_stream_is_left_alone(workers: int, folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    taken(opened(folder, crop="random", flip=True), 5, workers=workers)
    assert torch.equal(torch.rand(3), expected)


def test_the_wait_for_data_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = batches(opened(folder), 2, seed=0, workers=1)
    for _ in range(5):
        next(found)
    time.sleep(0.5)  # the worker is ahead meanwhile
    found.take_wait()
    next(found)
    assert found.take_wait() < 0.2 and found.take_wait() == 0.0
    found.close()
    data, load = opened(folder), Images.load
    monkeypatch.setattr(Images, "load", lambda *given: (time.sleep(0.1), load(*given))[1])
    slow = batches(data, 2, seed=0, workers=0)
    next(slow), next(slow)
    assert slow.take_wait() >= 0.2


def test_a_killed_worker_is_a_sentence(folder: Path) -> None:
    found = batches(opened(folder), 2, seed=0, workers=1)
    next(found)
    (worker,) = multiprocessing.active_children()
    said = r"A worker that reads the data was killed.*set data\.workers lower"
    with closing(found), pytest.raises(SpectralError, match=said), dead_workers_told():
        worker.kill()
        for _ in range(20):
            next(found)
    assert not multiprocessing.active_children()


def test_a_worker_killed_while_it_is_being_ended_is_no_matter(folder: Path) -> None:
    found = batches(opened(folder), 2, seed=0, workers=1)
    next(found)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)  # it does not hear that it should end
    killer = threading.Timer(0.5, worker.kill)
    killer.start()
    found.close()
    killer.join()
    assert not multiprocessing.active_children()


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from spectral_diffusion.training.data.batches import batches
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_data
stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1)); signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
found = batches(open_data(DataConfig(sys.argv[1], 16, cache="off")), 2, seed=0, workers=2)
next(found)
os.killpg(0, signal.SIGINT); os.killpg(0, signal.SIGTERM)
for _ in range(50): next(found)
assert len(stop) == 2
print("in order")
"""


def test_signals_to_all_processes_leave_the_run_its_data(folder: Path) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the workers too; the run goes on, and ends without waiting for them."""
    before = time.perf_counter()
    command = [sys.executable, "-c", SIGNALLED, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert result.stdout == "in order\n", result.stderr
    assert time.perf_counter() - before < 30 and "Traceback" not in result.stderr


def test_workers_end_with_a_killed_run(folder: Path) -> None:
    code = (
        SIGNALLED.split("os.killpg")[0] + "print(*[w.pid for w in found._loaded._workers], flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 20
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.2)
    assert len(pids) == 2 and not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(("size", "multiple"), [(64, 8), (256, 64), (512, 64)])
def test_buckets_are_multiples_of_about_the_same_area(size: int, multiple: int) -> None:
    sizes = bucket_sizes(size, multiple)
    assert (size, size) in sizes and len(sizes) >= 3 and len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0 and 0.5 <= width / height <= 2
        assert 0.8 <= height * width / size**2 <= 1.25 and (width, height) in sizes
    assert sizes == sorted(sizes, key=lambda pair: pair[1] / pair[0])
    assert sizes[nearest_bucket((1000, 1000), sizes)] == (size, size)
    assert (
        sizes[nearest_bucket((3000, 1000), sizes)] == sizes[0] and sizes[nearest_bucket((10, 900), sizes)] == sizes[-1]
    )


def test_a_size_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(SpectralError, match=r"data\.size is 60; with data\.buckets it must be a multiple of 8"):
        bucket_sizes(60, 8)


def test_small_buckets_join_their_neighbours() -> None:
    assert joined_buckets(Counter({0: 5, 1: 5, 2: 5}), 5) == {0: 0, 1: 1, 2: 2}
    assert joined_buckets(Counter({0: 1, 1: 9, 3: 6}), 4) == {0: 1, 1: 1, 3: 3}
    assert joined_buckets(Counter({0: 1, 1: 2}), 9) == {0: 1, 1: 1}


def test_an_epoch_of_buckets_holds_every_sample_and_each_batch_one_bucket() -> None:
    buckets = [0] * 7 + [1] * 12 + [2] * 2 + [3] * 5
    order = Bucketed(buckets, 4, 3)
    count = len(order.batches)
    assert count == 2 + 3 + 2  # the two samples of bucket 2 join those of bucket 3
    epochs = []
    for epoch in range(3):
        plans = [order.plan(number) for number in range(epoch * count, (epoch + 1) * count)]
        seen = Counter(index for plan in plans for _, index in plan.items)
        assert set(seen) == set(range(26)) and max(seen.values()) <= 2
        for plan in plans:
            assert len({index for _, index in plan.items}) == 4 and {e for e, _ in plan.items} == {epoch}
            assert {buckets[index] for _, index in plan.items} <= ({2, 3} if plan.bucket == 3 else {plan.bucket})
        epochs.append([plan.items for plan in plans])
    assert [[i for _, i in items] for items in epochs[0]] != [[i for _, i in items] for items in epochs[1]]
    assert Bucketed(buckets, 4, 3).plan(10) == order.plan(10)


def test_batches_of_buckets(tmp_path: Path) -> None:
    """Wide, tall and square pictures each in batches of their own size; of the right part, and resumed in place."""
    for index in range(12):
        noise([(40, 20), (20, 40), (30, 30)][index % 3], index).save(tmp_path / f"{index:02d}.png")
    (tmp_path / "tall.png").write_bytes(b"no picture")
    data = open_data(DataConfig(str(tmp_path), 16, buckets=True, max_corrupt=1, flip=True), multiple=4)
    assert isinstance(data, Images)
    found = taken(data, 8, batch=4, workers=0)
    shapes = {tuple(batch["image"].shape[2:]) for batch in found}
    assert shapes == {(16, 16), (12, 24), (24, 12)} or shapes == {(16, 16), (12, 20), (20, 12)}
    again = open_data(DataConfig(str(tmp_path), 16, buckets=True, max_corrupt=1, flip=True), multiple=4)
    assert isinstance(again, Images) and same(taken(again, 5, batch=4, start=3, workers=1), found[3:])


def test_data_can_be_sent_to_spawned_workers(folder: Path) -> None:
    """As on systems that cannot fork."""
    data = opened(folder)
    sent = pickle.loads(pickle.dumps(data))
    assert same(taken(sent, 4, workers=0), taken(data, 4, workers=0))
