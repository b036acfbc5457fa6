"""Endless batches of any data: loaded ahead by workers, at an exact position, with what could not be read counted."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import signal
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ...spectral.errors import SpectralError
from . import order
from .config import DataConfig
from .notes import JUDGED, CorruptLog
from .order import Order, Plan
from .records import drawn

WORKER_KILLED = (
    "A worker that reads the data was killed, most likely for want of memory; "
    "set data.workers lower, and start the run again."
)
#: "ordinal" int64 [B], how many samples the run saw before each; "index" int64 [B] (not of a stream); "caption" and
#: "label" (the subgroup) list[str]; and either "image" uint8 [B, 3, H, W], or "moments" [B, 2C, h, w] (mean and
#: log-variance), or "latent" [B, C, h, w], not yet scaled; with "states" [B, S, C, h, w], scaled, where there are some.
Batch = dict[str, Any]


class Loaded(NamedTuple):
    """What a worker made of a plan; a batch, or why there is none.

    Args:
        batch: None where nothing could be loaded.
        corrupt: (name, reason) of samples that were met for the first time and could not be read.
        failure: the sentence that ends the run.
        counted: (number, samples) of shards of a stream that were read to their end.
    """

    batch: Batch | None
    corrupt: list[tuple[str, str]]
    failure: str | None = None
    counted: tuple[tuple[int, int], ...] = ()


class Data(ABC):
    """What a run learns from.

    Args:
        config: what was asked for.
        source: what to call it in a sentence.
        captions, subgroups: of every sample, the first caption, and the name of its class; None for a stream.
        also: other captions of the samples that have several, by their places.

    Attributes:
        also: the same; empty where the configuration wants the first captions alone.
        made_by: SHA-256 of the teacher that imagined the samples; None for images, and for latents of images.
    """

    made_by: str | None = None

    def __init__(
        self,
        config: DataConfig,
        source: str,
        captions: Sequence[str] | None,
        subgroups: Sequence[str] | None,
        also: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        self.config, self.source = config, source
        self.captions, self.subgroups = captions, subgroups
        self.also: Mapping[int, tuple[str, ...]] = {} if config.captions == "first" else also or {}

    @property
    def count(self) -> int | None:
        """Samples in all; None for a stream."""
        return None if self.captions is None else len(self.captions)

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Of the content, wherever it lies, in hexadecimal."""

    @abstractmethod
    def preview_samples(self, count: int) -> Batch:
        """A few samples from all over the data, always the same."""

    @abstractmethod
    def loader(self, batch_size: int, seed: int, start: int, rank: int, world: int, workers: int) -> DataLoader[Loaded]:
        """The batches of one process from its batch `start` on; as `batches`."""

    def found(self) -> list[tuple[str, str]]:
        """(name, reason) of what was found corrupt when the data was opened."""
        return []

    def recall(self, folder: Path | None) -> None:  # noqa: B027 - most have nothing to remember
        """Before batches are made: what a run that goes on in `folder` has learnt of its data."""

    def note(self, counted: Sequence[tuple[int, int]]) -> None:  # noqa: B027
        """Keep what workers counted."""


class MapData(Data):
    """Data with random access."""

    captions: Sequence[str]
    subgroups: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, index: int, seed: int, epoch: int) -> str:
        """What a sample is called in one epoch."""
        captions = (self.captions[index], *self.also.get(index, ()))
        return drawn(captions, seed, epoch, self.key(index), self.config.captions == "half")

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of a sample."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether loading takes nothing but copying."""

    @abstractmethod
    def load(self, plan: Plan, seed: int, mirrored: bool = True) -> Loaded:
        """The samples of a batch; one that cannot be read is replaced by the next that can.

        Args:
            plan: which they are.
            seed: of crops and mirroring.
            mirrored: as the configuration says; or not at all.
        """

    def order(self, batch_size: int, seed: int) -> Order:
        """The sequence of all batches."""
        return order.Shuffled(len(self), batch_size, seed)

    def loader(self, batch_size: int, seed: int, start: int, rank: int, world: int, workers: int) -> DataLoader[Loaded]:
        plans = _Plans(self.order(batch_size * world, seed), batch_size, start, rank)
        return make_loader(Loading(self, seed), 0 if self.in_memory else workers, sampler=plans)


class _Plans:
    """The part of one process in every plan from `start` on."""

    def __init__(self, order: Order, batch_size: int, start: int, rank: int) -> None:
        self.order, self.batch_size, self.start, self.rank = order, batch_size, start, rank

    def __iter__(self) -> Iterator[Plan]:
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for number in itertools.count(self.start):
            plan = self.order.plan(number)
            yield Plan(plan.items[own], plan.bucket)


class Loading(Dataset[Loaded]):
    """Plan → batch."""

    def __init__(self, data: MapData, seed: int, mirrored: bool = True) -> None:
        self.data, self.seed, self.mirrored = data, seed, mirrored

    def __getitem__(self, plan: Plan) -> Loaded:
        try:
            return self.data.load(plan, self.seed, self.mirrored)
        except SpectralError as error:
            return Loaded(None, [], str(error))


def make_loader(dataset: Dataset[Loaded], workers: int, **options: Any) -> DataLoader[Loaded]:
    """A loader of whole batches that leaves the random stream of this process alone."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _leave_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process; the run itself ends in order, and its workers after it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def dead_workers_told() -> Iterator[None]:
    """Within the block a worker that was killed is a sentence; torch says so wherever the program happens to be.

    Raises:
        SpectralError: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
            raise
        raise SpectralError(WORKER_KILLED) from error


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Within the block those two signals wait; on systems without masks they do not."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Batches(Iterator[Batch]):
    """Batches without end. `waited` is how many seconds were spent waiting for them in all.

    Args:
        loader: gives them.
        data: what they are of.
        log: of what cannot be read.
        seen: samples that the data has, or, of a stream, that all processes have used at batch 0 of this iterator.
        stride: samples that all processes use with every batch of a stream; 0 where `seen` is all there is.
        ordinals: of the samples of every batch, [B] int64; None leaves them out.
    """

    def __init__(
        self,
        loader: DataLoader[Loaded],
        data: Data,
        log: CorruptLog,
        seen: int,
        stride: int,
        ordinals: Iterator[torch.Tensor] | None = None,
    ) -> None:
        self.data, self.log, self.seen, self.stride, self.waited = data, log, seen, stride, 0.0
        self._ordinals = ordinals
        self._asked = 0.0
        with _signals_blocked():  # which workers inherit, from their first moment on
            self._loaded = iter(loader)
        _OPEN.add(self)

    def __next__(self) -> Batch:
        before = time.perf_counter()
        try:
            with dead_workers_told():
                loaded = self._take()
        finally:
            self.waited += time.perf_counter() - before
        self.seen += self.stride
        self.data.note(loaded.counted)
        self.log.add(loaded.corrupt, max(self.seen, JUDGED) if self.stride else self.seen)
        if loaded.batch is None:
            raise SpectralError(loaded.failure or f"No image of {self.log.source} can be read; check the data.")
        if self._ordinals is not None:
            loaded.batch["ordinal"] = next(self._ordinals)
        return loaded.batch

    def _take(self) -> Loaded:
        """The next batch; where the way to it was cut, torch's word of the death that did it is waited for, so that it
        does not come in the middle of something else."""
        try:
            return next(self._loaded)
        except (OSError, EOFError) as error:
            if not self._lost_a_worker(error):
                raise
            until = time.monotonic() + 1.0
            while time.monotonic() < until and all(worker.is_alive() for worker in self._workers):
                time.sleep(0.01)
            raise SpectralError(WORKER_KILLED) from error

    def _lost_a_worker(self, error: Exception) -> bool:
        """Whether that is why the way to a batch was cut in the middle of it."""
        cut = isinstance(error, (ConnectionError, EOFError))
        return bool(self._workers) and (cut or not all(worker.is_alive() for worker in self._workers))

    @property
    def _workers(self) -> Sequence[multiprocessing.Process]:
        """None where this process reads the data itself."""
        return self._loaded._workers if isinstance(self._loaded, _MultiProcessingDataLoaderIter) else ()

    def take_wait(self) -> float:
        """Seconds spent waiting for batches since this was last asked."""
        since, self._asked = self.waited - self._asked, self.waited
        return since

    def close(self) -> None:
        """End the workers, by force those that are stuck: they do not listen to signals."""
        if isinstance(self._loaded, _MultiProcessingDataLoaderIter):
            with suppress(SpectralError), dead_workers_told():  # they end here, one way or another
                self._loaded._shutdown_workers()
            for worker in self._workers:
                if worker.is_alive():
                    worker.kill()


_OPEN: weakref.WeakSet[Batches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before multiprocessing waits for its processes."""
    for open_batches in list(_OPEN):
        open_batches.close()


def batches(
    data: Data,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    folder: Path | None = None,
) -> Batches:
    """Endless batches of `data` for one of `world` processes.

    What they hold depends on the seed, the samples that all processes use at once, and the batch's number alone:
    `world` processes share what one process sees in batches `world` times as large. Of a stream, whose lanes belong to
    processes, they see at their batch b what one process sees at its batches b · world … b · world + world − 1.

    Args:
        batch_size: samples of a batch, for each process.
        seed: of the order, the crops and the mirroring; the random stream of this process is left alone.
        start: batches that every process has used already.
        rank, world: which process of how many.
        workers: processes that load ahead; None: as the data's configuration says.
        folder: of the run, which all processes share: `corrupt.log` there names what cannot be read, and `shards.jsonl`
            counts the samples of a stream's shards; None remembers nothing.

    Raises:
        SpectralError: too much of the data cannot be read.
    """
    found, count = corrupt_log(data, folder, write=rank == 0), data.count
    stride = 0 if count is not None else batch_size * world
    data.recall(folder)
    loader = data.loader(batch_size, seed, start, rank, world, data.config.workers if workers is None else workers)
    ordinals = (
        torch.arange(first, first + batch_size)
        for first in itertools.count((start * world + rank) * batch_size, batch_size * world)
    )
    return Batches(loader, data, found, start * stride if count is None else count, stride, ordinals)


def corrupt_log(data: Data, folder: Path | None, write: bool) -> CorruptLog:
    """The log of what cannot be read, in a run's folder, with all in it that was found when the data was opened.

    Args:
        folder: None keeps no file.
        write: name there what was found, which one process does for all.

    Raises:
        SpectralError: that is too much.
    """
    log = CorruptLog(None if folder is None else folder / "corrupt.log", data.config.max_corrupt, data.source)
    log.add(data.found(), data.count or 0, write)
    return log
