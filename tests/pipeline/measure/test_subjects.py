"""Whatever a user hands in ends in a right figure, or in one message before any work."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluated_models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from unchecked import unchecked_types

from pipeline.evaluate import evaluate_model, main
from pipeline.measure.evaluation import in_order
from pipeline.measure.subjects import check_subject, known_data, own_data, split_of
from stages.data.datasets import DataConfig, load_data
from stages.data.formats import DataError
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(norm="Linf", radius=0.1)
DIGITS = load_data(DataConfig(name="digits")).test
IMAGES, LABELS = DIGITS.images[:40], DIGITS.labels[:40]
MODEL = evaluated_models.build().eval()


class Changed(nn.Module):
    """The model with a change of its images or its logits."""

    def __init__(self, before: Callable = lambda images: images, after: Callable = lambda logits: logits) -> None:
        super().__init__()
        self.model, self.before, self.after = evaluated_models.build(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


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


def quick(model: Any, data: Any, root: Path, **settings: Any):
    settings = {"norm": "Linf", "radius": 0.05, "images": 12, "say": lambda line: None} | settings
    with unchecked_types():
        return evaluate_model(model, data=data, quick=True, root=root, **settings)


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


WRONG_DATA: dict[str, tuple[Any, str]] = {
    "one-hot": ((IMAGES, np.eye(10)[LABELS]), "one-hot rows"),
    "labels from 1": ((IMAGES, LABELS + 1), r"lie in \[1, 10\]; .*count from 1"),
    "negative": ((IMAGES, np.where(LABELS == 3, -1, LABELS)), r"lie in \[-1, 9\]"),
    "half labels": ((IMAGES, LABELS / 2), "not all whole numbers"),
    "too few labels": ((IMAGES, LABELS[:7]), "40 images and 7 labels"),
    "no images": ((IMAGES[:0], LABELS[:0]), "with at least one image"),
    "NaN": ((np.where(IMAGES == 0, np.nan, IMAGES / 255), LABELS), "hold NaN"),
    "standardised": (((IMAGES / 255 - 0.3) / 0.4, LABELS), "move normalisation into the model"),
    "resized": ((torch.from_numpy(IMAGES / 255).float().repeat_interleave(2, 3).sqrt(), LABELS), "multiples of 1/255"),
    "three axes": ((IMAGES[:, 0], LABELS), r"images\[:, None\]"),
    "NHWC": ((np.zeros((4, 28, 28, 1), np.uint8), LABELS[:4]), r"transpose\(0, 3, 1, 2\)"),
    "colour": ((np.repeat(IMAGES, 3, 1), LABELS), r"raised RuntimeError on float32 images \[1, 3, 8, 8\]"),
    "another size": ((np.repeat(IMAGES, 2, 2), LABELS), r"raised RuntimeError on float32 images \[1, 1, 16, 8\]"),
    "a Dataset": (torch.utils.data.TensorDataset(torch.from_numpy(IMAGES)), "data is a TensorDataset; .*torch.stack"),
    "three parts": ((IMAGES, LABELS, LABELS), "data is a tuple of 3"),
    "an array": (IMAGES, "data is a ndarray"),
    "an unknown name": ("imagenet", "data is 'imagenet'; allowed are digits, mnist, cifar10"),
    "a sparse tensor": ((torch.from_numpy(IMAGES).to_sparse(), LABELS), "sparse_coo tensor; pass a dense one"),
    "a meta tensor": ((torch.zeros(4, 1, 8, 8, device="meta"), LABELS[:4]), "are a meta tensor"),
    "objects": ((IMAGES.astype(object), LABELS), "ndarray of object; pass a tensor"),
    "ragged": (([IMAGES[0], IMAGES[1][:, :4]], LABELS[:2]), "the images are no array"),
    "booleans": ((IMAGES > 100, LABELS), "the images are bool"),
    "bfloat16": ((torch.from_numpy(IMAGES / 255).bfloat16(), LABELS), "bfloat16 images are not all whole multiples"),
    "no channels": ((IMAGES[:, :0], LABELS), "with at least one image"),
    "words": ((IMAGES, LABELS.astype(str)), "the labels are a ndarray of <U"),
    "labels of NaN": ((IMAGES, np.where(LABELS == 3, np.nan, LABELS)), "not all whole numbers"),
    "labels first": ((LABELS, IMAGES), r"the images have shape \[40\]"),
    "a dictionary": ({"images": IMAGES, "labels": LABELS}, "data is a dict"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_cannot_be_judged_are_refused_before_any_work(name: str, tmp_path: Path):
    data, message = WRONG_DATA[name]
    with pytest.raises(ValueError, match=message):
        quick(MODEL, data, tmp_path / "root")
    assert not (tmp_path / "root").exists()


class Single(nn.Module):
    """One logit for two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


WRONG_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "a function": (lambda: lambda images: MODEL(images), "is a function; expected a torch.nn.Module"),
    "nothing": (lambda: None, "is a NoneType; expected a torch.nn.Module"),
    "a path": (lambda: "model.pt", "is a str; expected a torch.nn.Module"),
    "a class": (lambda: Changed, "is the class Changed; .* call it"),
    "weights": (MODEL.state_dict, "OrderedDict; .*load_state_dict"),
    "JPEG": (lambda: Changed(lambda x: torch.from_numpy(x.detach().numpy())).eval(), "no gradient with respect to"),
    "a root": (lambda: Changed(lambda x: x.clamp(0, 1).pow(0.5)).eval(), "first in the derivative of pow"),
    "a tuple": (lambda: Changed(after=lambda z: (z, z)).eval(), "returned a tuple of 2"),
    "a feature map": (lambda: Changed(after=lambda z: z[..., None, None]).eval(), r"returned \[40, 10, 1, 1\]"),
    "one logit": (lambda: Single().eval(), r"torch.cat\(\[-logit, logit\], 1\)"),
    "train mode": (Changed, r"call model.eval\(\)"),
    "half": (lambda: evaluated_models.build().half().eval(), r"model.float\(\)"),
    "too few classes": (lambda: Changed(after=lambda z: z[:, :7]).eval(), "expected 0 to 6 for 7 classes"),
    "exported": (lambda: torch.export.export(MODEL, (torch.zeros(2, 1, 8, 8),)).module(), "pass the module that was"),
    "softmax": (lambda: Changed(after=lambda z: z.softmax(1)).eval(), "returned probabilities"),
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_model_that_cannot_be_judged_is_refused_before_any_work(name: str, tmp_path: Path):
    make, message = WRONG_MODELS[name]
    with pytest.raises(ValueError, match=message):
        quick(make(), (IMAGES, LABELS), tmp_path / "root")
    assert not (tmp_path / "root").exists()


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": "8/255"}, "is the text '8/255'"),
        ({"radius": True}, "is the bool True"),
        ({"radius": 8}, "divide a radius in 0..255 by 255"),
        ({"norm": "L2", "radius": 100.0}, "no two images in .* are farther apart than 8"),
        ({"norm": "linf"}, "allowed are Linf, L2, L1"),
        ({"norm": 2}, "norm is 2; allowed are Linf, L2, L1"),
        ({"radius": None}, "is the NoneType None"),
        ({"radius": [0.1]}, r"is the list \[0.1\]"),
        ({"radius": 1j}, "is the complex 1j"),
        ({"images": 2.5}, "images is 2.5; it must be a whole number"),
        ({"images": None}, "images is None; it must be a whole number"),
        ({"images": True}, "images is True; it must be a whole number"),
        ({"images": 0}, "images is 0; it must be at least 1"),
        ({"checks": True}, "checks is True; pass a CheckSize, or None"),
        ({"workers": {"cpus": 1}}, "workers is {'cpus': 1}; pass a WorkersConfig"),
        ({"version": None}, "leave out version, attacks and autoattack, or quick"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_work(settings: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        quick(MODEL, (IMAGES, LABELS), tmp_path / "root", **settings)
    assert not (tmp_path / "root").exists()


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


def test_absent_data_name_the_settings_that_whoever_asked_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAP_DATA_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=r"Pass data_download to fetch it, .* by data_root or the environment"):
        quick(MODEL, "mnist", tmp_path / "root")
    flags = ["--model", "evaluated_models:build", "--data", "mnist", "--norm", "Linf", "--radius", "0.1"]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--root", str(tmp_path / "root")])
    assert ended.value.code == 2
    assert "Pass --data.download to fetch it, or name the folder where torchvision left it by --data.root" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "root").exists()


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no radius": ({"radius": 0}, "^radius is 0; it must be greater than 0"),
    "a radius of 0..255": ({"radius": 8}, "^radius is 8, .* divide a radius in 0..255 by 255"),
    "another norm": ({"norm": "linf"}, "^norm is 'linf'; allowed are Linf"),
    "an L2 radius of 0..255": ({"norm": "L2", "radius": 128}, r"^the radius is 128, .*\(divide one in 0..255 by 255"),
    "custom without attacks": (
        {"version": "custom"},
        "^autoattack is none with version 'custom'; version custom takes",
    ),
    "no such attack": (
        {"version": "custom", "autoattack": ["pgd"]},
        "^autoattack is pgd with .*takes some of apgd-ce,",
    ),
    "no such version": ({"version": "full"}, "^version is 'full'; allowed are standard,"),
    "no images": ({"images": 0}, "^images is 0; it must be at least 1"),
    "no such data": ({"data": "svhn"}, "^data is 'svhn'; allowed are digits, mnist, cifar10"),
    "no root": ({"root": None}, "^root is None: name a directory, or a URL"),
    "an empty root": ({"root": ""}, "^root is '': name a directory, or a URL"),
    "no list of attacks": ({"attacks": None}, r"^attacks is None; pass a list, also of one: attacks=\[...\]"),
    "attacks of AutoAttack in a set": ({"autoattack": {"square"}}, "^autoattack is {'square'}; pass a list"),
    "an attack and a screening": ({"attacks": [len], "quick": True}, "^a quick screening runs AutoAttack's APGD alone"),
    "no say": ({"say": None}, "^say is None; pass a function that takes a line"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_settings_are_refused_by_the_names_of_the_function_that_takes_them(case: str, tmp_path: Path):
    given, message = UNUSABLE[case]
    settings: dict[str, Any] = {"data": "digits", "norm": "Linf", "radius": 0.1, "root": tmp_path / "root", **given}
    with unchecked_types(), pytest.raises(ValueError, match=message):
        evaluate_model(MODEL, **settings)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--radius", "8"], "error: --radius is 8, but pixels lie in [0, 1]: divide a radius in 0..255 by 255"),
        (["--radius", "0.1", "--chunk", "0"], "error: --chunk is 0; it must be at least 1"),
        (["--radius", "0.1", "--attacks", "square"], "error: --attacks are square with version 'standard'; version "),
        (
            ["--radius", "0.1", "--quick", "--attacks", "square"],
            "leave out --attack, --attacks, --version and --behind",
        ),
        (["--radius", "0.1", "--behind", "nowhere:build"], "error: --behind 'nowhere:build' cannot be imported"),
        (["--radius", "0.1", "--model", "~nobody-here/model"], "error: --model ~nobody-here/model is no path of this"),
        (["--radius", "0.1", "--weights", "~nobody-here/w"], "error: --weights ~nobody-here/w is no path of this mach"),
        (["--radius", "0.1", "--weights", "https://host/w"], "error: --weights https://host/w is a URL: copy what"),
        (["--data", "mnist", "--data.root", "~nobody-here"], "error: --data.root ~nobody-here is no path of this mac"),
        (["--radius", "0.1", "--compare", "~nobody-here"], "error: --compare ~nobody-here is no path of this machine"),
        (["--radius", "0.1", "--root", "~nobody-here"], "error: --root ~nobody-here is no path of this"),
    ],
)
def test_settings_are_refused_by_the_flags_of_the_command_that_takes_them(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "evaluated_models:build", "--norm", "Linf", "--root", str(tmp_path / "root"), *flags])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "root").exists()


def test_data_are_fetched_to_no_copy_in_which_a_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copied = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    lost = r"--data\.root datasets lies in the copy .*: give an absolute path that every node sees"
    with pytest.raises(DataError, match=f"^{lost}"):
        known_data(DataConfig(name="mnist", root="datasets", download=True), "--data.")
    with pytest.raises(DataError, match=rf"Pass --data\.download .* \({lost}"):
        known_data(DataConfig(name="mnist", root="datasets"), "--data.")
    assert known_data(DataConfig(name="digits", root="datasets", download=True), "--data.").name == "digits"


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
