"""The shipped model: the robust classifier as model.safetensors and config.json, loaded in one line.

>>> model = load_model("runs/digits/model")  # doctest: +SKIP
>>> logits = model(images)  # doctest: +SKIP
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.models import ModelConfig, rebuild_model
from stages.nets.architectures import ClassifierConfig
from stages.nets.normalisation import check_normalisation
from stages.nets.unet import UNet, UNetConfig
from stages.pretrained import model_directory
from stages.rap.reverse import reverse_times
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.settings import checked, with_tuples
from stages.weights import damage_of, place_weights, read_weights, save_weights

FORMAT = 1
OPTIONAL = float | None
CARD = """---
library_name: rap-pipeline
pipeline_tag: image-classification
tags: [adversarial-robustness]
---

# {what}

```python
from stages.shipped import load_model

model = load_model("this folder")  # images [N, C, H, W] in [0, 1] -> logits [N, classes]
```

Normalisation is inside. What is known of it, as config.json has it:

```json
{notes}
```
"""
"""The model card, with the front matter of model hubs."""
AGAIN = "copy the folder of the model again, or save the model again"


def save_model(
    directory: Path,
    robust: RobustClassifier,
    *,
    classifier: ClassifierConfig,
    inputs: dict[str, object],
    notes: dict[str, object],
    model: ModelConfig | None = None,
) -> None:
    """Write the robust classifier. ``inputs`` are the arguments of `build_classifier` beside its config, ``model`` what
    `bring_model` says of a classifier that came trained; ``notes`` (what it was trained on, how it was judged) are kept
    as they are. Raises ValueError for an adapter that is no UNet, which could not be built again on loading.
    """
    adapter = robust.adapter
    if adapter is not None and not isinstance(adapter, UNet):
        raise ValueError(
            f"the adapter is a {type(adapter).__name__}; only a UNet can be saved so that it loads in one line: "
            "save the state_dict of any other with torch.save, beside the code that builds it"
        )
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "adapter": None if adapter is None else asdict(adapter.config),
        "classifier": asdict(classifier),
        "model": asdict(model or ModelConfig()),
        "inputs": inputs,
        "steps": robust.steps,
        "straight_through": robust.straight_through,
        "threat": asdict(robust.threat),
        "notes": notes,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    save_weights(robust.state_dict(), directory / "model.safetensors")
    (directory / "README.md").write_text(CARD.format(what=_in_words(robust), notes=json.dumps(notes, indent=1)))


def load_model(directory: str | Path, *, reverse_steps: int = 1, step_size: float | None = None) -> RobustClassifier:
    """The robust classifier, in eval mode on the CPU, with no gradients to its weights; `pretrained:digits` comes with
    the package.

    With ``reverse_steps`` above 1 it is an adaptive test-time defence (Alg. 2), whose inner attack moves in
    steps of ``step_size`` pixels of [0, 1], by default 2.5 radius / T. Raises ValueError for a directory that
    holds no such model, or a damaged one, with the file that is not right and what is wrong with it.
    """
    if not isinstance(directory, str | Path):
        raise ValueError(f"the directory is {directory!r}; pass the path of a saved model, such as RUN/model")  # noqa: TRY004
    reverse_steps, step_size = checked(reverse_steps, int, "reverse_steps"), checked(step_size, OPTIONAL, "step_size")
    if step_size is not None and reverse_steps == 1:
        raise ValueError(
            f"step_size is {step_size:g}, but one reverse step attacks nothing: leave it out, or pass reverse_steps"
        )
    directory = model_directory(directory, "the directory")
    file, weights = directory / "config.json", directory / "model.safetensors"
    config = _read_config(file)
    if not weights.exists():
        raise ValueError(f"{directory} holds a config.json but no model.safetensors: save the model again")
    content = read_weights(weights, name=str(weights))
    try:
        inputs = _inputs(config)
        _check_size(config, inputs, weights.stat().st_size)
        with torch.random.fork_rng(devices=[]):  # building draws first weights, which are then replaced
            adapter, classifier = _adapter(config["adapter"], inputs), rebuild_model(*_described(config), inputs)
        steps = checked(config["steps"], int, "steps")
        reverse_times(1, steps)
        straight_through = checked(config["straight_through"], bool, "straight_through")
        threat = ThreatModel(**config["threat"])
    except Exception as error:  # a value that was edited may lead to any
        found = f"it lacks {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} does not describe a saved model ({found}): {AGAIN}") from error
    robust = RobustClassifier(
        adapter,
        classifier,
        steps=steps,
        straight_through=straight_through,
        threat=threat,
        reverse_steps=reverse_steps,
        step_size=step_size,
    )
    place_weights(
        robust, content, name=str(weights), remedy=f"its config.json is another model's. {AGAIN.capitalize()}"
    )
    check_normalisation(robust, str(weights))
    return robust.eval().requires_grad_(False)


def load_base(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The classifier of a saved model without its adapter, and the arguments by which `save_model` describes it.

    Raises ValueError as `load_model` does.
    """
    classifier, config = load_model(directory).classifier, _read_config(directory / "config.json")
    model, own = _described(config)
    return classifier, {"classifier": own, "model": model, "inputs": _inputs(config)}


def _in_words(robust: RobustClassifier) -> str:
    """The title of a model card."""
    alone = "adversarially trained" if robust.adapter is None else "behind an adapter"
    return f"{type(robust.classifier).__name__}, {alone}, trained in {robust.threat.norm} {robust.threat.radius:.4g}"


def _read_config(file: Path) -> dict[str, Any]:
    """What config.json holds. Raises ValueError where it is not there, damaged, or of another version."""
    if not file.exists():
        raise ValueError(
            f"{file.parent} holds no config.json; a saved model is a directory with config.json and model.safetensors, "
            "such as RUN/model"
        )
    if damage := damage_of(file):
        raise ValueError(f"{file} {damage}")
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # of its characters, or of its JSON
        raise ValueError(f"{file} is no JSON ({error}; {file.stat().st_size:,} bytes): {AGAIN}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = repr(config.get("format")) if isinstance(config, dict) else f"a {type(config).__name__}"
        raise ValueError(f"{file.parent} has format {found}; this version reads format {FORMAT}")
    return config


def _check_size(config: dict[str, Any], inputs: dict[str, Any], stored: int) -> None:
    """Refuse networks for which the bytes of their weights are too few, before they take memory. Raises ValueError."""
    with torch.device("meta"):
        parts: list[nn.Module | None] = [_adapter(config["adapter"], inputs)]
        known, own = _described(config)
        if known.name is None:  # anybody's function may load weights, which this device has not
            parts.append(rebuild_model(known, own, inputs))
        count = sum(each.numel() for part in parts if part is not None for each in part.parameters())
    if count > stored:
        raise ValueError(
            f"its networks have {count:,} parameters, for which the {stored:,} bytes of model.safetensors are too few"
        )


def _adapter(config: dict[str, Any] | None, inputs: dict[str, Any]) -> UNet | None:
    if config is None:
        return None
    return UNet(UNetConfig(**with_tuples(config)), inputs["channels"])


def _inputs(config: dict[str, Any]) -> dict[str, Any]:
    return with_tuples(config["inputs"])


def _described(config: dict[str, Any]) -> tuple[ModelConfig, ClassifierConfig]:
    """What builds the classifier again; how it was trained plays no part any more."""
    own = ClassifierConfig(architecture=config["classifier"]["architecture"])
    return ModelConfig(**with_tuples(config.get("model", {}))), own
