"""Whatever cannot be judged ends in one message before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluated_models
import numpy as np
import pytest
import torch
from screened_digits import IMAGES, LABELS, MODEL, Changed, evaluate, quick
from torch import Tensor, nn

from pipeline.evaluate import main
from pipeline.measure.subjects import known_data
from stages.data.datasets import DataConfig
from stages.data.formats import DataError

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
        ({"checks": True}, "checks is True; it must be a CheckSize or None"),
        ({"workers": {"cpus": 1}}, "workers is {'cpus': 1}; it must be a WorkersConfig"),
        ({"version": None}, "leave out version, attacks and autoattack, or quick"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_work(settings: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        quick(MODEL, (IMAGES, LABELS), tmp_path / "root", **settings)
    assert not (tmp_path / "root").exists()


def test_absent_data_name_the_settings_that_whoever_asked_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAP_DATA_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=r"Pass DataConfig.download to fetch it, .* by DataConfig.root or the env"):
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
    passed: dict[str, Any] = {"data": "digits", "norm": "Linf", "radius": 0.1, "root": tmp_path / "root", **given}
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL, **passed)
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
