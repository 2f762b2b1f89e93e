"""The command line of an evaluation, and what is refused before any work is done."""

from dataclasses import dataclass, field, replace
from typing import Literal

import tyro

from pipeline.artifacts import check_name
from pipeline.exits import LogLevel, fail, settings_called
from pipeline.flags import NUMBERS, SHORT, WorkersConfig, check_flags, in_full, is_given
from pipeline.measure.paper_tables import DATA, TableName
from pipeline.recipe import EvaluationConfig
from stages.data.datasets import DataConfig
from stages.evaluation.autoattack import Version
from stages.evaluation.checks.examined import CheckSize
from stages.evaluation.claim import ClaimConfig
from stages.evaluation.screening import ScreeningConfig
from stages.models import ModelConfig
from stages.rap.threat import Norm, ThreatModel

USAGE = "python -m pipeline.evaluate --model RUN/model|my_package.models:build [--flags]"


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Measure how robust a model is, whoever trained it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    norm: Norm | None = None
    """Norm of the ball: Linf, L2 or L1; unset: that in which a saved model was trained."""
    radius: float | None = None
    """Also --eps: radius of the ball in pixels of [0, 1], such as 8/255; unset: that in which a saved model was
    trained."""
    images: int | None = None
    """Test images attacked, of one fixed random order; unset: 1,000 (512 for a table of the paper)."""
    version: Version = "standard"
    """AutoAttack's version: standard (claims), plus, rand (for models that draw random numbers), custom."""
    attacks: tuple[str, ...] = ()
    """The attacks of version custom: apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square."""
    attack: tuple[str, ...] = ()
    """Custom attacks, my_package:function, which count as all do: (model, images, labels, threat) -> images."""
    pgd_steps: int = 40
    """Steps of PGD, which runs beside AutoAttack."""
    table: TableName | None = None
    """A table of the paper by number (4.5: images a second), with its attacks and radii, and its row beside ours."""
    behind: str | None = None
    """Another model, as --model, whose classifier is also put behind the adapter of the first (the paper's Table 6)."""
    quick: bool = False
    """Screen only: APGD-CE and targeted APGD, until the interval is narrow enough; a minute, without Ray."""
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)
    checks: CheckSize = field(default_factory=CheckSize)
    skip_checks: bool = False
    """Leave out the checks, and the report with them."""
    compare: str | None = None
    """Another evaluation's directory, or its results.json, to compare with image by image."""
    chunk: int = 64
    """Images of an evaluation chunk, which is attacked, recorded and resumed as a whole."""
    seed: int = 0
    """Seed of every attack."""
    claim: ClaimConfig = field(default_factory=ClaimConfig)
    cpus: int | None = None
    """CPUs of a local session; unset: all of this machine's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto: on GPUs where the cluster has any."""
    root: str = "rap-runs"
    """Folder of receipts and results. On a cluster, one that every node sees."""
    log_level: LogLevel = "warning"
    """What of Python's log is shown, of this project, Ray and other libraries; from info on also what workers print."""
    name: str | None = None
    """Name of the evaluation's directory below ROOT/evaluations; unset: the data set and a hash."""

    def __post_init__(self) -> None:
        if self.model.name is None:
            raise ValueError(
                "no model is named: give --model a saved model's directory, my_package.models:build, or timm:, "
                "torchvision: or robustbench: with a name"
            )
        if self.table:
            own = {"norm": None, "radius": None, "attack": (), "attacks": (), "quick": False, "version": "standard"}
            given = [flag for flag, unset in own.items() if getattr(self, flag) != unset]
            if given:
                raise ValueError(
                    f"--table {self.table} has its own attacks and radii; leave out --{', --'.join(given)}"
                )
        if (self.table == "6") != bool(self.behind) and self.table:
            raise ValueError(
                "Table 6 takes --behind, a model whose (adversarially trained) classifier is put behind the adapter; "
                "no other table does"
            )
        if self.compare and self.table == "4.5":
            raise ValueError("--table 4.5 attacks nothing, so there is nothing to --compare")
        if self.quick and (self.attack or self.attacks or self.behind or self.version != "standard"):
            raise ValueError(
                "--quick screens one model with AutoAttack's APGD; leave out --attack, --attacks, --version and "
                "--behind"
            )
        if self.name:
            check_name(self.name, "it is kept in ROOT/evaluations/NAME")
        with settings_called({"workers.": "--"}):
            self.workers  # noqa: B018 - refuses what it cannot be
        if self.images is not None and self.images < 1:
            raise ValueError(f"--images is {self.images}; it must be at least 1")

    @property
    def workers(self) -> WorkersConfig:
        return WorkersConfig(cpus=self.cpus, device=self.device)

    @property
    def evaluation(self) -> EvaluationConfig:
        """AutoAttack and PGD; the number of images is yet to be filled in."""
        with settings_called({"evaluation.": "--"}):
            return EvaluationConfig(
                version=self.version,
                attacks=self.attacks,
                chunk=self.chunk,
                batch=self.chunk,
                seed=self.seed,
                pgd_steps=self.pgd_steps,
            )

    @property
    def identity(self) -> "EvaluateCommand":
        """The command without what does not change a result."""
        kept = EvaluateCommand(model=ModelConfig(name="any"))
        return replace(
            self,
            model=kept.model,
            compare=None,
            data=self.data.identity,
            claim=kept.claim,
            cpus=None,
            device=kept.device,
            log_level=kept.log_level,
            root="",
            name=None,
        )

    def threat(self, trained: ThreatModel | None) -> ThreatModel:
        """The ball, for a saved model by default its own. Raises ValueError where nothing names one."""
        norm, radius = self.norm or (trained.norm if trained else None), self.radius
        if radius is None and trained is not None and norm == trained.norm:
            radius = trained.radius
        if norm is None or radius is None:
            if self.table:
                return trained or ThreatModel()  # a table brings its own
            raise ValueError(
                f"the ball is not named (norm {norm}, radius {radius}): give --norm Linf, L2 or L1, and --radius in "
                "pixels of [0, 1], such as 8/255"
            )
        with settings_called({"threat.": "--"}):
            return ThreatModel(norm=norm, radius=radius)


def parse(argv: list[str]) -> EvaluateCommand:
    """The command that the arguments give. Ends with exit code 2 and one message where they make no sense."""
    check_flags(argv)
    flags = in_full(argv, SHORT | {"--eps": "--radius"})
    try:
        command = tyro.cli(EvaluateCommand, prog=USAGE, args=flags, registry=NUMBERS)
    except ValueError as error:  # a config's own check, in its own words
        fail(str(error))
    if command.table and not is_given("--data.name", flags):
        return replace(command, data=replace(command.data, name=DATA.get(command.table, "cifar10")))
    return command
