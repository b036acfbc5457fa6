"""Teachers' answers on disk: a run that looks them up learns, to the last bit, what one learns that asks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spectral_diffusion.spectral.config import BoundaryConfig, StagesConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli, distill
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.distillation.answers import Answers
from spectral_diffusion.training.distillation.config import DistillConfig, LossConfig, RandomConditionsConfig, TapConfig
from spectral_diffusion.training.distillation.task import DistillTask

from .test_distill import configure
from .test_distill_options import OUTPUT_ALONE

SAMPLES = 16  # of a run: 4 steps of 4
OUTPUTS = LossConfig(taps=OUTPUT_ALONE)
QUESTIONS = {"teacher": "one"}
ORDINALS = torch.tensor([5, 2, 9])


@pytest.fixture(scope="module")
def kept(teacher: Path, data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers that a run has asked for, in a folder that nobody changes."""
    folder = tmp_path_factory.mktemp("kept")
    learnt(teacher, data, folder / "run", teacher_answers=folder / "answers")
    return folder / "answers"


@pytest.fixture
def known(kept: Path, tmp_path: Path) -> dict[str, Path]:
    """The same in a folder of one's own, as a setting."""
    return {"teacher_answers": Path(shutil.copytree(kept, tmp_path / "answers"))}


@pytest.fixture(scope="module")
def kept_features(teacher: Path, data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of which the features are a part, likewise."""
    folder = tmp_path_factory.mktemp("features")
    learnt(teacher, data, folder / "run", loss=LossConfig(), teacher_answers=folder / "answers")
    return folder / "answers"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many samples each question that a teacher was asked held."""
    questions: list[int] = []
    ask = DistillTask.ask

    def counted(self: DistillTask, x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
        questions.append(len(x_t))
        return ask(self, x_t, *rest)

    monkeypatch.setattr(DistillTask, "ask", counted)
    yield questions


def learnt(teacher: Path, data: DataConfig, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The student's tensors after a run of four steps."""
    config = configure(teacher, data, out, **{"loss": OUTPUTS} | settings)
    return load_file(distill.train(config)["path"])


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.mark.parametrize("precision", ["run", "bf16"])
def test_a_run_that_looks_answers_up_learns_what_one_learns_that_asks(
    precision: str, teacher: Path, data: DataConfig, tmp_path: Path, asked: list[int]
) -> None:
    given = {"teacher_precision": precision}
    bare = learnt(teacher, data, tmp_path / "bare", **given)
    given |= {"teacher_answers": tmp_path / "answers"}
    asked.clear()
    assert same(learnt(teacher, data, tmp_path / "first", **given), bare)
    assert sum(asked) == SAMPLES + 8  # and two passes to measure a step by
    asked.clear()
    assert same(learnt(teacher, data, tmp_path / "second", **given), bare)
    assert not asked


@pytest.mark.parametrize(
    "other",
    [
        {"resampler": "conv"},
        {"model_channels": 64},
        {"loss": replace(OUTPUTS, spatial=0.0, frequency=3.0, alpha=-0.5)},
        {"init": "teacher", "title": "another", "recompute": True},
        {"stages": StagesConfig((BoundaryConfig(0.5, "blur"),))},
    ],
    ids=lambda other: "-".join(other),
)
def test_another_student_of_one_teacher_needs_no_teacher(
    other: dict[str, Any], teacher: Path, data: DataConfig, known: dict[str, Path], tmp_path: Path, asked: list[int]
) -> None:
    bare = learnt(teacher, data, tmp_path / "bare", **other)
    asked.clear()
    assert same(learnt(teacher, data, tmp_path / "second", **other, **known), bare)
    assert not asked


@pytest.mark.parametrize(
    "other",
    [
        {"resampler": "conv"},
        {"model_channels": 64, "init": "teacher"},
        {"loss": LossConfig(spatial=0.0, frequency=3.0, taps=TapConfig(weight=0.5, normalize=False))},
        {"stages": StagesConfig((BoundaryConfig(0.5, "downsample", gamma=0.5),))},
    ],
    ids=lambda other: "-".join(other),
)
def test_features_are_remembered_too(
    other: dict[str, Any], teacher: Path, data: DataConfig, kept_features: Path, tmp_path: Path, asked: list[int]
) -> None:
    given = {"loss": LossConfig()} | other
    bare = learnt(teacher, data, tmp_path / "bare", **given)
    folder = shutil.copytree(kept_features, tmp_path / "answers")
    asked.clear()
    assert same(learnt(teacher, data, tmp_path / "second", **given, teacher_answers=folder), bare)
    assert not asked


def test_outputs_alone_and_other_features_are_other_questions(
    teacher: Path, data: DataConfig, kept_features: Path, tmp_path: Path, asked: list[int]
) -> None:
    folder = Path(shutil.copytree(kept_features, tmp_path / "answers"))
    for taps in (OUTPUT_ALONE, TapConfig(down=False)):
        asked.clear()
        learnt(teacher, data, tmp_path / f"{taps.middle}", loss=LossConfig(taps=taps), teacher_answers=folder)
        assert sum(asked) >= SAMPLES
    sizes = sorted(path.stat().st_size for path in folder.glob("*.answers"))
    # the second level has twice the channels and a quarter of the places
    output, place = 4 * 8 * 8, 64 * 8 * 8
    up = place + place // 2
    assert sizes == [
        4 * SAMPLES * number for number in (output, output + up + place // 2, output + 2 * up + place // 2)
    ]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_other_questions_have_other_answers(
    share: float, teacher: Path, data: DataConfig, tmp_path: Path, asked: list[int]
) -> None:
    """Whatever changes what a sample meets: each is asked anew, and all lie in one folder side by side."""
    folder = {"teacher_answers": tmp_path / "answers"}
    run = configure(teacher, data, tmp_path).run
    others: list[dict[str, Any]] = [
        {},
        {"run": replace(run, seed=1)},
        {"dropout": 0.5},
        {"prediction": "v"},
        {"teacher_guidance": 2.0},
        {"teacher_precision": "bf16"},
        {"data": replace(data, posterior="mode")},
    ]
    for number, other in enumerate(others):
        given = {"random_conditions": RandomConditionsConfig(share)} | other
        if "run" in given:
            given["run"] = replace(given["run"], out=tmp_path / str(number))
        asked.clear()
        learnt(teacher, given.pop("data", data), tmp_path / str(number), **given, **folder)
        assert sum(asked) >= SAMPLES
    found = [json.loads(path.read_text()) for path in (tmp_path / "answers").glob("*.json")]
    assert len(found) == len(others)
    assert {each["questions"]["dropout"] for each in found} == {0.1, 0.5}


def test_a_longer_run_asks_for_the_rest_alone(
    teacher: Path, data: DataConfig, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"teacher_answers": tmp_path / "answers"}
    run = configure(teacher, data, tmp_path / "first").run
    learnt(teacher, data, tmp_path / "first", **answers, run=replace(run, steps=3))
    asked.clear(), capsys.readouterr()
    longer = learnt(teacher, data, tmp_path / "second", **answers)
    assert sum(asked) == 4 + 8
    assert f"answers  {tmp_path / 'answers'}, 12 of 16 are there" in capsys.readouterr().err
    assert same(longer, learnt(teacher, data, tmp_path / "bare"))


@pytest.mark.parametrize("ending", ["answers", "checks"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_damaged_answers_are_asked_for_anew(
    ending: str,
    harm: str,
    teacher: Path,
    data: DataConfig,
    known: dict[str, Path],
    tmp_path: Path,
    asked: list[int],
) -> None:
    (path,) = known["teacher_answers"].glob(f"*.{ending}")
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        half, rest = len(content) // 2, content[len(content) // 2 :]
        path.write_bytes(content[:half] + (bytes([rest[0] ^ 1]) + rest[1:] if harm == "flipped" else b""))
    learnt(teacher, data, tmp_path / "run", **known)
    assert 0 < sum(asked) <= SAMPLES + 8
    assert path.read_bytes() == content


# ----------------------------------------------------------------------------------------------------------------------
# The files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_answers_are_read_as_they_were_written(dtype: torch.dtype, tmp_path: Path) -> None:
    written = Answers(tmp_path, QUESTIONS, [(4, 3, 2)])
    assert written.recall(ORDINALS) is None and written.count(10) == 0
    said = torch.randn(3, 4, 3, 2).to(dtype)
    written.keep(ORDINALS, [said])
    for answers in (written, Answers(tmp_path, QUESTIONS, [(4, 3, 2)])):
        for chosen in ([0, 1, 2], [2, 0], [1]):
            found = answers.recall(ORDINALS[chosen])
            assert found is not None and found[0].dtype == dtype and torch.equal(found[0], said[chosen])
        assert answers.recall(torch.tensor([5, 6])) is None  # one of them is missing
        assert (answers.count(10), answers.count(9), answers.count(5)) == (3, 2, 1)
    assert Answers(tmp_path, {"teacher": "two"}, [(4, 3, 2)]).recall(ORDINALS) is None


def test_every_tensor_of_an_answer_keeps_its_type(tmp_path: Path) -> None:
    shapes = [(4, 3, 3), (1, 1, 1), (5, 2, 3)]
    dtypes = torch.bfloat16, torch.float32, torch.float16
    said = [torch.randn(3, *shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    Answers(tmp_path, QUESTIONS, shapes).keep(ORDINALS, said)
    found = Answers(tmp_path, QUESTIONS, shapes).recall(ORDINALS[[2, 0]])
    assert found is not None and tuple(part.dtype for part in found) == dtypes
    assert all(torch.equal(part, own[[2, 0]]) for part, own in zip(found, said, strict=True))
    with pytest.raises(ValueError, match="among such of"):
        Answers(tmp_path, QUESTIONS, shapes).keep(ORDINALS, said[:2])


def test_what_was_never_written_takes_no_space(tmp_path: Path) -> None:
    answers = Answers(tmp_path, QUESTIONS, [(4, 32, 32)])
    answers.keep(torch.tensor([100_000]), [torch.zeros(1, 4, 32, 32)])
    assert sum(os.stat(path).st_blocks * 512 for path in tmp_path.iterdir()) < 2**20
    found = answers.recall(torch.tensor([100_000]))
    assert found is not None and not found[0].any()
    assert answers.recall(torch.tensor([99_999])) is None  # zeros, too, but not an answer


# ----------------------------------------------------------------------------------------------------------------------
# Sentences


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": OUTPUTS, "data": DataConfig(buckets=True)}, "teacher_answers needs squares.*leave data.buckets"),
        ({"loss": OUTPUTS, "data": DataConfig("pipe:cat shard.tar")}, "teacher_answers needs squares"),
        ({"loss": OUTPUTS, "few_steps": 4}, "A student of few steps asks its teacher nothing; leave teacher_answers"),
    ],
    ids=["buckets", "pipe", "few-steps"],
)
def test_what_cannot_be_remembered_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    run = configure(tmp_path, DataConfig(), tmp_path / "run").run
    with pytest.raises(SpectralError, match=says):
        DistillConfig(run, tmp_path, teacher_answers=tmp_path / "answers", **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_sentence_and_leaves_no_run(
    teacher: Path, data: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        SpectralError, match="answers cannot be kept in .*file/answers .*set teacher_answers to another"
    ):
        learnt(teacher, data, tmp_path / "run", teacher_answers=tmp_path / "file" / "answers")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_description_is_a_sentence(tmp_path: Path) -> None:
    Answers(tmp_path, QUESTIONS, [(4, 3, 2)]).keep(ORDINALS, [torch.zeros(3, 4, 3, 2)])
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:20])
    with pytest.raises(SpectralError, match=f"{path.name} is damaged; remove it, and the teacher is asked again"):
        Answers(tmp_path, QUESTIONS, [(4, 3, 2)])


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(tmp_path, QUESTIONS, [(4, 3, 2)])
    answers.keep(ORDINALS, [torch.ones(3, 4, 3, 2)])
    answers._rows.unlink()
    answers._rows.symlink_to("/dev/full")
    with pytest.raises(SpectralError, match="cannot be kept in .*No space left on device.*free some space"):
        answers.keep(ORDINALS, [torch.ones(3, 4, 3, 2)])


def test_the_command_line_takes_a_folder(
    teacher: Path, data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run.out", tmp_path / "run", "--run.steps", 1, "--run.batch_size", 2, "--teacher", teacher]
    given += [
        "--data.path",
        data.path,
        "--data.size",
        16,
        "--model_channels",
        32,
        "--teacher_answers",
        tmp_path / "kept",
    ]
    given += [part for tap in ("down", "middle", "up") for part in (f"--loss.taps.{tap}", "false")]
    assert cli.main(["distill", *map(str, given), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"].endswith("student.safetensors")
    assert len(list((tmp_path / "kept").glob("*.answers"))) == 1
