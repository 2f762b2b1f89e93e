"""Whether a model answers each image always alike, and what it is worth where it does not: check 15."""

import logging
import sys
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from pyautoattack import checks as official
from torch import Tensor, nn

from stages import numerics
from stages.evaluation.accuracy import evaluating, to_float
from stages.evaluation.attacks import AttackResult, worst_case
from stages.evaluation.autoattack import distances
from stages.evaluation.checks.attacking import ascend, fixed_seed, run_pgd, submit
from stages.evaluation.checks.case import Behaviour, Case, Outcome
from stages.evaluation.checks.counts import alone, outnumbers
from stages.evaluation.checks.examined import CheckSize, Examined, on_device
from stages.evaluation.evidence import Check, Verdict
from stages.evaluation.pgd import PGDConfig

NAME = "randomness and test-time adaptation"


class Averaged(nn.Module):
    """The mean of the log-probabilities of several answers, whose gradient is that of the expected loss.

    Expectation over transformation (Athalye et al. 2018) for a model that draws random numbers.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.model = model
        self.samples = samples

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        return torch.stack([self.model(images).log_softmax(1) for _ in range(self.samples)]).mean(0)


class Seeded(nn.Module):
    """A randomised model that draws the same numbers at every call, as an attacker who knows the seed would run it."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        with fixed_seed(self.seed, images.device):
            return self.model(images)


def observe(examined: Examined, size: CheckSize) -> Behaviour:
    """How the model answers: the same images twice, in another order and company, and whether it takes gradients.

    Differences count from where the model contract counts them.
    """
    images = on_device(examined.first(size.batch))[0]
    with torch.no_grad(), evaluating(examined.model):
        logits, again = examined.model(images), examined.model(images)
        flipped = examined.model(images.flip(0)).flip(0)
        single = torch.cat([examined.model(part) for part in images[:8].split(1)])  # 8: a few, as each is a call
        adaptive = _takes_gradients(examined.model, images[:1])
    scale = logits.abs().max().clamp(min=torch.finfo(logits.dtype).tiny)
    repeated = float((logits - again).abs().max() / scale)
    company = float(torch.cat([(logits - flipped).flatten(), (logits[:8] - single).flatten()]).abs().max() / scale)
    random = repeated > numerics.SAME
    return Behaviour(
        random=random,
        batch_dependent=not random and company > numerics.SAME_ALONE,
        adaptive=adaptive,
        difference=max(repeated, company),
    )


def check_randomness(case: Case) -> Outcome:
    """Check 15: what an attacker gains who averages over the model's randomness, tries again, or knows the seed.

    Not applicable to a fixed function of each image that takes no gradients. Any other model warns, since attacks that
    assume such a function do not show its worst case; it fails where averaging breaks more images than the plain attack
    beyond chance. Repeated submission: one adversary, asked about `CheckSize.samples` times.
    """
    behaviour = case.behaviour
    evidence: dict[str, object] = {
        "random": behaviour.random,
        "depends on the batch": behaviour.batch_dependent,
        "takes gradients in forward": behaviour.adaptive,
        "largest difference of two answers": behaviour.difference,
    }
    if behaviour.deterministic and not behaviour.adaptive:
        check = Check(
            15,
            NAME,
            "not applicable",
            "deterministic",
            images=case.images,
            says="The model is a fixed function of each image and takes no gradients in its forward pass.",
            evidence=evidence,
        )
        return Outcome(check=check)
    if not behaviour.random:
        figure = "adaptive at test time" if behaviour.adaptive else "depends on the images beside it"
        says = (
            "The model attacks or adapts while it answers (Croce et al. 2022): the gradient through it is not the "
            "whole truth, and AutoAttack alone is not enough."
            if behaviour.adaptive
            else "An image's answer depends on its company, which an attacker would choose."
        )
        return Outcome(check=Check(15, NAME, "warn", figure, images=case.images, says=says, evidence=evidence))
    return _measure_randomness(case, evidence)


def _measure_randomness(case: Case, evidence: dict[str, object]) -> Outcome:
    examined, size = case.examined, case.size
    config = PGDConfig(steps=size.short_steps, seed=size.seed)
    states = ascend(Averaged(examined.model, size.samples), examined, size, config)
    averaged = submit(examined, size, f"EOT-PGD-{config.steps} over {size.samples} draws", states)
    repeated = _resubmit(case, states)
    plain = case.white_box.short
    seeded = run_pgd(replace(examined, model=Seeded(examined.model, size.seed)), size, config, to_the_end=True)
    gained, lost = alone(averaged.robust, plain.robust), alone(plain.robust, averaged.robust)
    verdict: Verdict = "fail" if outnumbers(gained, lost) else "warn"
    evidence |= {
        plain.name: plain.accuracy.as_json(),
        averaged.name: averaged.accuracy.as_json(),
        repeated.name: repeated.accuracy.as_json(),
        "fixed seed": seeded.accuracy.as_json(),
        "broken by averaging only": gained,
        "broken without averaging only": lost,
    }
    check = Check(
        15,
        NAME,
        verdict,
        f"{plain.name} {plain.accuracy}; averaged {averaged.accuracy}; submitted {size.samples} times "
        f"{repeated.accuracy}; fixed seed {seeded.accuracy}",
        images=case.images,
        says="Attacks that average over the randomness break more: the plain figure is too high."
        if verdict == "fail"
        else 'The model is random: read its accuracy under averaged attacks (AutoAttack version "rand").',
        evidence=evidence,
    )
    return Outcome(check=check, results=(averaged, repeated))


def _resubmit(case: Case, states: Float[Tensor, "image channel height width"]) -> AttackResult:
    """The states submitted several times; one wrong answer breaks an image."""
    name = f"{case.size.samples} submissions"
    tries = [submit(case.examined, case.size, name, states) for _ in range(case.size.samples)]
    robust = worst_case([result.robust for result in tries])
    adversarial = np.where(robust[:, None, None, None], tries[0].adversarial, states.numpy())
    distance = distances(torch.from_numpy(adversarial), to_float(case.examined.images), case.examined.threat.norm)
    return replace(tries[0], robust=robust, adversarial=adversarial, distance=distance)


def _takes_gradients(model: nn.Module, images: Float[Tensor, "batch channel height width"]) -> bool:
    """True where the official code of AutoAttack sees a gradient being taken inside of ``forward``."""
    heard, tracer = logging.getLogger("stages.evaluation.checks.dynamic"), sys.gettrace()
    record = _Heard()
    heard.addHandler(record)
    heard.propagate = False
    official.funcs.update(dict.fromkeys(official.funcs, 0))
    try:
        official.check_dynamic(model, images, logger=heard)
    finally:
        sys.settrace(tracer)
        heard.removeHandler(record)
        official.funcs.update(dict.fromkeys(official.funcs, 0))
    return record.said


class _Heard(logging.Handler):
    """Whether anything was logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = True
