"""What a recipe says of its search."""

from dataclasses import dataclass
from typing import Literal

from stages.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The search: short loops with other settings, judged on the hold-out, of which the worse ones are stopped early
    where the judge tells them apart."""

    trials: int = 8
    """Trials; the first is the recipe as it stands. 0: no search."""
    space: tuple[str, ...] = ()
    """Settings to try, each as name=value,value,... or name=low..high, with :log or :int behind a range; unset:
    attack.steps (T), attack.step-size and attack.noise-scale, but for those that are given as flags."""
    algorithm: Literal["random", "grid", "tpe"] = "random"
    """How trials are chosen: at random, all points of a grid in random order, or by Optuna's TPE from the verdicts of
    the trials before (pip install 'rap-pipeline[optuna]')."""
    rounds: int | None = None
    """Rounds of the longest trials; unset: half of schedule.rounds."""
    first_rounds: int | None = None
    """Rounds after which trials are compared for the first time; unset: a quarter of search.rounds."""
    factor: int = 2
    """At each comparison the best 1 / factor go on, for factor times as many rounds, and what ties with them."""
    images: int | None = None
    """Images of the hold-out on which trials are compared; unset: all of them."""
    batch: int = 8
    """Trials that tpe chooses at once."""

    def __post_init__(self) -> None:
        check_settings(self, "search")
        for name, least in (
            ("trials", 0),
            ("rounds", 1),
            ("first_rounds", 1),
            ("factor", 2),
            ("images", 1),
            ("batch", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"search.{name} is {value}; it must be at least {least}")
