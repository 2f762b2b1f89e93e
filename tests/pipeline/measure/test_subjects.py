"""Whatever can be judged gets a right figure, in whatever form a user hands it in."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluated_models
import numpy as np
import pytest
import torch
from screened_digits import DIGITS, IMAGES, LABELS, MODEL, Changed, quick
from torch import Tensor, nn

from pipeline.measure.evaluation import in_order
from pipeline.measure.subjects import check_subject, own_data, split_of
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(norm="Linf", radius=0.1)


def linear(shape: tuple[int, ...], classes: int, labels: Tensor) -> tuple[nn.Module, Tensor]:
    """Random images of a shape, and a linear model that is right on nearly all of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=generator)
    features = torch.cat([images.flatten(1) / 255, torch.ones(len(labels), 1)], 1).double()
    wanted = nn.functional.one_hot(labels, classes).double()
    solved = torch.linalg.lstsq(features, wanted).solution.float()
    layer = nn.Linear(features.shape[1] - 1, classes)
    layer.load_state_dict({"weight": 5 * solved[:-1].T, "bias": 5 * solved[-1]})
    return nn.Sequential(nn.Flatten(), layer).eval(), images


RIGHT: dict[str, Any] = {
    "bytes": (IMAGES, LABELS),
    "float32": ((IMAGES / 255).astype(np.float32), LABELS),
    "float64 tensors": (torch.from_numpy(IMAGES / 255), torch.from_numpy(LABELS)),
    "float16": ((IMAGES / 255).astype(np.float16), LABELS),
    "reversed twice": (np.ascontiguousarray(IMAGES[::-1])[::-1], LABELS[::-1].copy()[::-1]),
    "channels last in memory": (torch.from_numpy(IMAGES).contiguous(memory_format=torch.channels_last), LABELS),
    "int8 labels": (IMAGES, LABELS.astype(np.int8)),
    "uint8 labels": (IMAGES, LABELS.astype(np.uint8)),
    "whole float labels": (IMAGES, LABELS.astype(np.float64)),
    "lists": [(IMAGES / 255).tolist(), LABELS.tolist()],
    "read-only": (np.broadcast_to(IMAGES, IMAGES.shape), np.broadcast_to(LABELS, LABELS.shape)),
}


def test_images_and_labels_of_any_type_give_the_same_figure(tmp_path: Path):
    splits = {name: own_data(data) for name, data in RIGHT.items()}
    assert len({split.fingerprint for split in splits.values()}) == 1
    expected = quick(MODEL, RIGHT["bytes"], tmp_path)
    found = quick(MODEL, RIGHT["lists"], tmp_path)
    assert 0 < expected.robust_accuracy.correct < 12
    assert found.evaluations["model"]["screening"].attacked_now == 0
    assert found.robust_accuracy == expected.robust_accuracy


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: {"logits": logits, "features": logits[:, :3]},
        lambda logits: (logits, logits[:, :, None]),
        lambda logits: types.SimpleNamespace(logits=logits),
    ],
    ids=["a dict", "a tuple", "an object"],
)
def test_a_model_that_returns_its_logits_among_other_things_gets_the_figure_of_its_logits(answer, tmp_path: Path):
    expected = quick(MODEL, RIGHT["bytes"], tmp_path / "alone")
    assert quick(Changed(after=answer).eval(), RIGHT["bytes"], tmp_path).robust_accuracy == expected.robust_accuracy


@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 1, 1), 2), ((3, 2, 3), 5), ((1, 5, 9), 3), ((3, 9, 5), 1000)], ids=str
)
def test_images_and_classes_of_any_number_are_screened(shape: tuple[int, ...], classes: int, tmp_path: Path):
    labels = torch.arange(12) % classes
    model, images = linear(shape, classes, labels)
    if shape == (1, 1, 1):
        labels = model(images / 255).argmax(1)
    found = quick(model, (images, labels), tmp_path)
    expected = (model(images / 255).argmax(1) == labels).sum()
    assert found.evaluations["model"]["screening"].clean.correct == expected
    assert found.robust_accuracy.images == 12


def test_a_model_in_bfloat16_that_converts_its_images_is_screened_as_one_in_float32(tmp_path: Path):
    model = Changed(lambda images: images.bfloat16())
    model.model.bfloat16()
    found = quick(model.eval(), (IMAGES, LABELS), tmp_path)
    expected = quick(MODEL, (IMAGES, LABELS), tmp_path)
    assert found.robust_accuracy.correct == pytest.approx(expected.robust_accuracy.correct, abs=1)


def test_a_radius_of_another_library_gives_the_same_receipts(tmp_path: Path):
    expected = quick(MODEL, (IMAGES, LABELS), tmp_path, radius=0.0625)
    for radius in (np.float32(0.0625), torch.tensor(0.0625), np.array(0.0625)):
        found = quick(MODEL, (IMAGES, LABELS), tmp_path, radius=radius)
        assert found.evaluations["model"]["screening"].attacked_now == 0
        assert found.robust_accuracy == expected.robust_accuracy


@pytest.mark.parametrize("count", [1, 2, 5, 19])
def test_a_sound_model_passes_with_however_few_images(count: int):
    rows = np.random.default_rng(count)
    for _ in range(8):
        chosen = rows.choice(len(DIGITS), count, replace=False)
        test = split_of(DIGITS.images[chosen], DIGITS.labels[chosen])
        check_subject(MODEL, test, classes=None, threat=THREAT)


SAME: dict[str, Callable[[], Any]] = {
    "frozen TorchScript": lambda: torch.jit.freeze(torch.jit.script(evaluated_models.build().eval())),
    "torch.compile": lambda: torch.compile(evaluated_models.build().eval(), backend="eager"),
    "DataParallel": lambda: nn.DataParallel(evaluated_models.build()).eval(),
    "logits of 1e30": lambda: Changed(after=lambda z: 1e30 * z).eval(),
    "logits of 1e-30": lambda: Changed(after=lambda z: 1e-30 * z).eval(),
    "channels last": lambda: Changed(lambda x: x.contiguous(memory_format=torch.channels_last)).eval(),
    "a buffer for its answers": lambda: Buffered().eval(),
    "a seed of its own": lambda: Seeded().eval(),
}


class Buffered(Changed):
    """Answers that are written where the last ones stood."""

    answers: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        if logits.requires_grad:
            return logits
        if self.answers is None or self.answers.shape != logits.shape:
            self.answers = torch.empty_like(logits)
        return self.answers.copy_(logits)


class Seeded(Changed):
    """Noise that is the same at every call."""

    def forward(self, images: Tensor) -> Tensor:
        torch.manual_seed(0)
        return self.model(images + 1e-4 * torch.randn_like(images[:1]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", SAME)
def test_the_same_weights_in_another_coat_give_the_same_figure(name: str, tmp_path: Path):
    expected = quick(MODEL, (IMAGES, LABELS), tmp_path)
    found = quick(SAME[name](), (IMAGES, LABELS), tmp_path)
    assert found.robust_accuracy == expected.robust_accuracy


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_figure_depends_on_nothing_around_the_call(around: Callable[[], Any], tmp_path: Path):
    expected = quick(MODEL, (IMAGES, LABELS), tmp_path / "plain")
    with around():
        found = quick(MODEL, (IMAGES, LABELS), tmp_path / "inside")
    assert found.robust_accuracy == expected.robust_accuracy


def test_images_without_an_answer_are_said_so(tmp_path: Path):
    """Beyond those by which a model is checked before the work."""
    images, labels = DIGITS.images[:230].copy(), DIGITS.labels[:230]
    silent = np.random.default_rng(0).integers(0, 256, images.shape[1:], dtype=np.uint8)
    images[in_order(own_data((images, labels)))[220]] = silent
    marked = torch.from_numpy(silent / np.float32(255))

    class Silent(Changed):
        def forward(self, images: Tensor) -> Tensor:
            is_marked = (images - marked).abs().amax((1, 2, 3))[:, None] < 1e-6
            return torch.where(is_marked, torch.nan, self.model(images))

    found = quick(Silent().eval(), (images, labels), tmp_path, images=230)
    assert any(
        "returned NaN or infinity for images as they are" in flag
        for flag in found.evaluations["model"]["screening"].flags
    )
