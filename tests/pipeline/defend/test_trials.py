"""What the search tries: a function of the recipe, on the lattice, never the test data."""

from dataclasses import fields, replace

from pipeline.defend.trials import candidates, resolved
from pipeline.recipe import PRESETS, SearchConfig
from stages.data.splits import Split
from stages.training.setup import Setup

DIGITS = replace(PRESETS["digits"](), search=SearchConfig(trials=3))


def test_the_first_candidate_is_the_recipes_own_attack() -> None:
    found = candidates(DIGITS)
    assert found[0] == resolved(DIGITS.attack, DIGITS)
    assert len(found) == len(set(found)) == DIGITS.search.trials
    assert found == candidates(DIGITS)


def test_every_candidate_fits_lattice_and_ball() -> None:
    recipe = replace(DIGITS, search=SearchConfig(trials=100, steps=(5, 10)))
    found = candidates(recipe)
    assert len(found) == 2 * 3 * 2  # steps, step sizes and noise scales; the recipe's own is among them
    for attack in found:
        process = attack.process(recipe.threat)
        assert process.step <= process.bound
        assert attack.step_size is not None
        assert process.step == attack.step_size * process.denominator


def test_what_is_fixed_is_not_varied() -> None:
    search = SearchConfig(trials=100, steps=(), step_sizes=())
    recipe = replace(DIGITS, attack=replace(DIGITS.attack, steps=7, step_size=0.05), search=search)
    found = candidates(recipe)
    assert {(attack.steps, attack.step_size) for attack in found} == {(7, 0.05)}
    assert len({attack.noise_scale for attack in found}) > 1


def test_a_start_without_noise_has_no_scale_to_try() -> None:
    recipe = replace(
        DIGITS, attack=replace(DIGITS.attack, start="none"), search=SearchConfig(trials=100, noise_scales=(0.5, 1.0))
    )
    assert {attack.noise_scale for attack in candidates(recipe)} == {None}


def test_a_radius_between_two_levels_is_searched_as_the_nearest_one() -> None:
    recipe = replace(DIGITS, threat=replace(DIGITS.threat, radius=0.1005))  # 512.55 levels
    assert {attack.process(recipe.threat).bound for attack in candidates(recipe)} == {513}


def test_another_seed_tries_others() -> None:
    assert candidates(DIGITS) != candidates(replace(DIGITS, seed=1))


def test_a_trial_cannot_see_test_images() -> None:
    assert {field.name for field in fields(Setup) if field.type is Split} == {"train", "holdout"}
