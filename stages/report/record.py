"""report.json: every number of a report, for programs.

An accuracy is {"correct", "images", "value", "interval": [low, high]} with shares in [0, 1] and a 95 % interval; what
was not measured, and what is NaN or infinite, is null. The keys, all always there:

| key | |
|---|---|
| format | 1 |
| title, description, data, threat {norm, radius} | what is reported; the radius in pixels of [0, 1] |
| robust_accuracy, worst_of, says | the accuracy, the attacks that it is the worst case of, the sentence |
| clean, undefended_clean, undefended_robust_accuracy | accuracies |
| attacks, probes | [{name, robust, undefended}], accuracies |
| verdict {worst, says}, checks | [{number, name, verdict, figure, images, says, evidence}] |
| flags, notes, alarms | sentences |
| broken | [{model, images, by: {attack: images}}]: each image under the first attack that broke it |
| curves | [{name, x, points: [[x, accuracy]]}] |
| tables | [{name, caption, columns, rows: [{name, values, setting, source}]}], published values in percent |
| pictures | {attack, amplification, labels, predictions: {kind: [class]}, files: {kind: [path]}} or null |
| trajectories | [{name, label, first, predictions, distances, files: {kind: [path]}}] |
| training, shipped_version | the lines of metrics.jsonl, as they are |
| search, recipe, seconds | as in results.json |
| lineage | [{kind, fingerprint, commit, created, device, seconds, packages}] |

Paths of pictures are relative to report.json; distances of states from the clean image are in the threat's norm.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from stages.evaluation.accuracy import Accuracy
from stages.report import words
from stages.report.contents import Contents

FORMAT = 1


def as_json(contents: Contents, files: Mapping[str, Mapping[str, Sequence[str]]]) -> dict:
    """The numbers of a report as JSON can hold them; ``files`` are the pictures' paths by gallery and kind, the
    galleries being "pictures", "trajectory-0", "trajectory-1" ...

    Raises ValueError for what has no place in JSON, naming where it is.
    """
    pictures = contents.pictures
    everything = {
        "format": FORMAT,
        "title": contents.title,
        "description": contents.description,
        "data": contents.data,
        "threat": asdict(contents.threat),
        "robust_accuracy": contents.robust_accuracy,
        "worst_of": contents.worst_of,
        "says": words.robust_accuracy(contents.robust_accuracy),
        "clean": contents.clean,
        "undefended_clean": contents.undefended_clean,
        "undefended_robust_accuracy": contents.undefended_robust_accuracy,
        "attacks": [vars(each) for each in contents.attacks],
        "probes": [vars(each) for each in contents.probes],
        "verdict": {"worst": words.worst_verdict(contents.checks), "says": words.verdict(contents.checks)},
        "checks": [vars(check) for check in contents.checks],
        "flags": contents.flags,
        "notes": contents.notes,
        "alarms": contents.alarms,
        "broken": [vars(each) for each in contents.broken],
        "curves": [vars(curve) for curve in contents.curves],
        "tables": [{**vars(table), "rows": [vars(row) for row in table.rows]} for table in contents.tables],
        "pictures": pictures
        and {
            "attack": pictures.attack,
            "amplification": pictures.amplification,
            "labels": pictures.labels,
            "predictions": pictures.predictions,
            "files": files.get("pictures", {}),
        },
        "trajectories": [
            {
                "name": each.name,
                "label": each.label,
                "first": each.first,
                "predictions": each.predictions,
                "distances": each.distances(contents.threat.norm),
                "files": files.get(f"trajectory-{number}", {}),
            }
            for number, each in enumerate(contents.trajectories)
        ],
        "training": contents.training,
        "shipped_version": contents.shipped_version,
        "search": contents.search,
        "recipe": contents.recipe,
        "seconds": contents.seconds,
        "lineage": [vars(artifact) for artifact in contents.lineage],
    }
    return {key: _plain(value, key) for key, value in everything.items()}


def _plain(value: object, where: str) -> object:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Accuracy):
        return value.as_json()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{place}]") for place, each in enumerate(value)]
    raise ValueError(f"{where} is a {type(value).__name__}; numbers, strings, lists and mappings are needed")
