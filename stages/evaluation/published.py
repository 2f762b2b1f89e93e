"""What others published, and under which setting: the paper's tables, and the field's best models beside them.

Every figure is a percentage as its source prints it. Nothing here was measured by this project; `beside` puts our rows
below and says how their setting differs.

>>> PAPER["1"].table.rows[0].values
('no', 94.53, 73.24)
>>> differences(PAPER["1"].setting, replace(PAPER["1"].setting, images=128))
'images 128 instead of 512'
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from stages.evaluation.evidence import Row, Table

RAP = "RAP (the paper)"
PAPER_SOURCE = "From Malicious to Marvelous: The Art of Adversarial Attack as Diffusion (anonymous, 2023, withdrawn)"
ROBUSTBENCH = "RobustBench (Croce et al. 2020)"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How figures were obtained, in the words of a table; None where the source does not say."""

    data: str | None = None
    threat: str | None = None
    attack: str | None = None
    images: int | None = None
    classifier: str | None = None
    hardware: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published table with the setting that its rows share."""

    table: Table
    setting: Setting


def differences(published: Setting, ours: Setting) -> str:
    """In which points a setting of ours differs; what either does not say is left out, "" for none."""
    pairs = [(field.name, getattr(published, field.name), getattr(ours, field.name)) for field in fields(Setting)]
    return "; ".join(
        f"{name} {mine} instead of {theirs}"
        for name, theirs, mine in pairs
        if theirs is not None and mine is not None and mine != theirs
    )


def beside(published: Published, ours: Sequence[Row], setting: Setting) -> Table:
    """The published table with our rows below, each saying how it was obtained.

    On other data than the table's, only the paper's own rows stay: the others are a leaderboard's, where such figures
    do not belong. Raises ValueError for a row that does not have the table's columns.
    """
    table = published.table
    for row in ours:
        if len(row.values) != len(table.columns):
            raise ValueError(
                f"row {row.name!r} has {len(row.values)} values for the columns {', '.join(table.columns)}"
            )
    same_data = setting.data is None or setting.data == published.setting.data
    theirs = [row for row in table.rows if same_data or row.name.startswith(RAP)]
    changed = differences(published.setting, setting)
    mine = [replace(row, setting="; ".join(filter(None, (row.setting, changed)))) for row in ours]
    return replace(table, rows=(*theirs, *mine))


def _rows(source: str, *lines: tuple[object, ...]) -> tuple[Row, ...]:
    return tuple(Row(name=str(name), values=tuple(values), source=source) for name, *values in lines)  # pyright: ignore[reportArgumentType]


def _paper(*lines: tuple[object, ...]) -> tuple[Row, ...]:
    return _rows(PAPER_SOURCE, *lines)


_LINF = Published(
    table=Table(
        name="Table 1",
        caption="CIFAR-10, L-inf 8/255, AutoAttack: standard and robust accuracy in percent",
        columns=("extra data", "standard", "robust"),
        rows=_paper(
            (RAP, "no", 94.53, 73.24),
            ("Nie et al. 2022 (DiffPure)", "no", 90.07, 71.29),
            ("Wang et al. 2023", "yes", 93.25, 70.69),
            ("Rebuffi et al. 2021", "yes", 92.23, 68.56),
            ("Wang et al. 2023", "yes", 92.44, 67.31),
            ("Gowal et al. 2021", "no", 88.74, 66.60),
            ("Gowal et al. 2020", "yes", 91.10, 66.02),
            ("Huang et al. 2022", "no", 91.58, 65.79),
            ("Rebuffi et al. 2021", "no", 88.54, 64.46),
            ("Kang et al. 2021", "yes", 93.73, "71.28 (64.20)"),
            ("Xu et al. 2023", "no", 93.69, 63.89),
            ("Pang et al. 2022", "no", 89.01, 63.35),
            ("Sehwag et al. 2021", "no", 87.30, 62.79),
            ("Wu et al. 2020", "yes", 88.25, 62.11),
            ("Zhang et al. 2020", "yes", 89.36, 59.96),
            ("Gowal et al. 2020", "no", 85.29, 59.57),
            ("Wu et al. 2020", "no", 85.36, 59.18),
        ),
    ),
    setting=Setting(
        data="CIFAR-10",
        threat="Linf 8/255",
        attack="AutoAttack standard",
        images=512,
        classifier="WRN-28-10",
    ),
)
_L2 = Published(
    table=Table(
        name="Table 2",
        caption="CIFAR-10, L2 0.5, AutoAttack: standard and robust accuracy in percent",
        columns=("extra data", "standard", "robust"),
        rows=_paper(
            (RAP, "no", 95.76, 85.54),
            ("Wang et al. 2023", "yes", 95.54, 84.97),
            ("Wang et al. 2023", "yes", 95.16, 83.68),
            ("Rebuffi et al. 2021", "yes", 95.74, 82.32),
            ("Rebuffi et al. 2021", "no", 92.41, 80.86),
            ("Nie et al. 2022 (DiffPure)", "no", 92.68, 80.60),
            ("Gowal et al. 2020", "yes", 94.74, 80.53),
            ("Augustin et al. 2020", "yes", 93.96, 78.79),
            ("Sehwag et al. 2021", "no", 90.93, 77.24),
            ("Wu et al. 2020", "yes", 92.23, 76.25),
            ("Gowal et al. 2020", "no", 90.90, 74.50),
            ("Wu et al. 2020", "no", 88.51, 73.66),
            ("Augustin et al. 2020", "no", 91.08, 72.91),
            ("Ding et al. 2018", "no", 88.02, 67.77),
            ("Rony et al. 2019", "no", 89.05, 66.41),
        ),
    ),
    setting=replace(_LINF.setting, threat="L2 0.5"),
)
_MNIST = Published(
    table=Table(
        name="Table 3",
        caption="MNIST, classical attacks within L2 1.5 and L-inf 0.3: accuracy in percent (the paper's caption says "
        "ImageNet, and its BIM under L2 is headed L-inf; both are slips)",
        columns=(
            "clean",
            "L2 Gaussian noise",
            "L2 DeepFool",
            "L2 BIM",
            "Linf FGSM",
            "Linf DeepFool",
            "Linf BIM",
        ),
        rows=_paper(
            (RAP, 99.0, 98.9, 97.3, 93.5, 94.8, 92.3, 94.1),
            ("CNN", 99.1, 96.0, 18.0, 13.0, 4.0, 0.0, 0.0),
            ("Binary CNN", 98.5, 92.0, 11.0, 11.0, 77.0, 74.0, 70.0),
            ("Madry et al.", 98.8, 96.0, 91.0, 88.0, 93.0, 90.0, 90.0),
        ),
    ),
    setting=Setting(
        data="MNIST",
        threat="L2 1.5, Linf 0.3",
        attack="DeepFool-50 (overshoot 0.02), BIM-20 (step 2/255), FGSM, Gaussian noise",
        classifier="CNN",
    ),
)
_TRANSFER = Published(
    table=Table(
        name="Table 4",
        caption="CIFAR-10, AutoAttack, trained against one norm and attacked in both (8/255; 0.5): accuracy in percent",
        columns=("standard", "Linf", "L2"),
        rows=_paper(
            (f"{RAP}, trained on Linf", 94.5, 73.2, 80.2),
            (f"{RAP}, trained on L2", 95.8, 70.2, 85.5),
            ("AT (Linf)", 86.8, 49.0, 19.2),
            ("AT (L2)", 85.0, 39.5, 47.8),
            ("PAT-self", 82.4, 30.2, 34.9),
            ("Adv. CRAIG", 83.2, 40.0, 33.9),
            ("Adv. GradMatch", 83.1, 39.2, 34.1),
            ("DiffPure", 88.2, 70.0, 70.9),
        ),
    ),
    setting=replace(_LINF.setting, threat="Linf 8/255, L2 0.5"),
)
_BPDA = Published(
    table=Table(
        name="Table 5",
        caption="CIFAR-10, L-inf 8/255, BPDA+EOT (a weaker attack than AutoAttack on deterministic purifiers): "
        "accuracy in percent",
        columns=("standard", "robust"),
        rows=_paper(
            (RAP, 94.62, 81.63),
            ("Song et al. 2017 (Gibbs update)", 95.00, 9.00),
            ("Yang et al. 2019 (mask and reconstruction)", 94.00, 15.00),
            ("Hill et al. 2020 (EBM, Langevin dynamics)", 84.12, 54.90),
            ("Yoon et al. 2021 (DSM, Langevin dynamics)", 86.14, 70.01),
            ("DiffPure (t* = 0.075)", 91.03, 77.43),
            ("DiffPure (t* = 0.1)", 89.02, 81.40),
            ("Stochastic Security (EBM)", 84.12, 78.91),
        ),
    ),
    setting=replace(_LINF.setting, attack="BPDA+EOT-50 (identity backward, 15 samples)"),
)
_COMBINED = Published(
    table=Table(
        name="Table 6",
        caption="CIFAR-10, L-inf 8/255, AutoAttack, with an adversarially trained classifier behind the adapter: "
        "robust accuracy in percent",
        columns=("AT", "RAP", "RAP+AT"),
        rows=_paper((RAP, 49.0, 73.2, 73.5)),
    ),
    setting=_LINF.setting,
)
_SPEED = Published(
    table=Table(
        name="Section 4.5",
        caption="Images a second, with and without the adapter",
        columns=("images/s",),
        rows=_paper((f"{RAP}, without the adapter", 7.54), (f"{RAP}, 1 reverse step", 7.35)),
    ),
    setting=Setting(data="CIFAR-10", classifier="WRN-28-10", hardware="A6000, which other programs used too"),
)

PAPER: dict[str, Published] = {
    "1": _LINF,
    "2": _L2,
    "3": _MNIST,
    "4": _TRANSFER,
    "5": _BPDA,
    "6": _COMBINED,
    "4.5": _SPEED,
}
"""The paper's tables by number, and the figures of its Section 4.5."""


def _field(name: str, setting: Setting, *rows: Row) -> Published:
    caption = f"{setting.data}, {setting.threat}, AutoAttack on the whole test set, as published: percent"
    return Published(
        table=Table(name=name, caption=caption, columns=("extra or synthetic data", "standard", "robust"), rows=rows),
        setting=setting,
    )


def _entry(name: str, extra: str, standard: float | None, robust: float | str, source: str = ROBUSTBENCH) -> Row:
    return Row(name=name, values=(extra, standard, robust), source=source)


FIELD: dict[str, Published] = {
    "cifar10 Linf": _field(
        "CIFAR-10, L-inf 8/255: the field",
        Setting(data="CIFAR-10", threat="Linf 8/255", attack="AutoAttack standard", images=10_000),
        _entry("Bartoldson et al. 2024", "synthetic", 93.68, 73.71),
        _entry("Cui et al. 2023, WRN-28-10", "synthetic", 92.16, 67.73),
        _entry("Chen et al. 2024, WRN-34-20", "none", 86.10, 58.09),
        _entry("Wu et al. 2020 (TRADES + AWP), WRN-28-10", "none", None, 55.85),
        _entry("Addepalli et al. 2022, ResNet-18", "none", 85.71, 52.48),
        _entry("adversarial training, WRN-28-10", "none", None, 52.05),
        _entry("DiffPure, as published", "none", 90.07, 71.29, "Nie et al. 2022, on 512 images"),
        _entry("DiffPure, PGD+EOT through the full gradient", "none", None, "46 to 51", "later evaluations"),
    ),
    "cifar10 L2": _field(
        "CIFAR-10, L2 0.5: the field",
        Setting(data="CIFAR-10", threat="L2 0.5", attack="AutoAttack standard", images=10_000),
        _entry("Wang et al. 2023", "synthetic", 95.54, 84.97),
        _entry("Gowal et al. 2020", "none", 90.90, 74.50),
    ),
    "mnist Linf": _field(
        "MNIST, L-inf 0.3: the field",
        Setting(data="MNIST", threat="Linf 0.3", attack="AutoAttack standard", images=10_000),
        _entry("Gowal et al. 2020", "none", 99.26, 96.34, "AutoAttack's authors"),
        _entry("Zhang et al. 2020", "none", 98.38, 93.96, "AutoAttack's authors"),
        _entry("Zhang et al. 2019 (TRADES)", "none", 99.48, 92.81, "AutoAttack's authors"),
        _entry("Madry et al. 2018", "none", 98.53, 88.50, "AutoAttack's authors"),
    ),
}
"""Honest figures of the field by data set and norm: what a result is to be compared with before the paper's."""
