"""What a search tried, as figures and as a page of its own."""

import doctest
import re

import pytest
from example_contents import HOSTILE, hostile, search

from stages.evaluation.accuracy import Accuracy
from stages.rap.threat import ThreatModel
from stages.report import search_charts
from stages.report.document import Chart, Grid
from stages.report.page import search_page
from stages.report.tried import SearchContents, search_blocks


def contents(**changes: object) -> SearchContents:
    given = {
        "title": "digits-1a2b3c4d",
        "data": "digits",
        "threat": ThreatModel(radius=0.2),
        "says": ("search: trial 0 (attack.steps 10), 16.9 % [11.9, 23.4] of 160 after 8 rounds",),
        "search": search(),
        "recipe": {"seed": 0, "attack": {"steps": 10}},
    }
    return SearchContents(**{**given, **changes})  # type: ignore[arg-type]


def charts(found: dict) -> dict[str, Chart]:
    return {block.name: block for block in search_blocks(found) if isinstance(block, Chart)}


def test_the_example_runs() -> None:
    found = doctest.testmod(search_charts)
    assert found.attempted
    assert not found.failed


def test_every_setting_that_was_varied_has_a_panel_and_failed_trials_a_row() -> None:
    found = charts(search())
    assert list(found) == ["front", "panel-0", "panel-1", "parallel", "rungs"]
    assert found["panel-0"].title == "Robust accuracy against attack.steps"
    assert found["panel-1"].says == "0.2: 16.9 %; \N{EN DASH}: 10.6 %"
    (table,) = [block for block in search_blocks(search()) if isinstance(block, Grid)]
    assert [row[0] for row in table.rows] == ["trial 0 (chosen)", "trial 1", "trial 2"]
    assert "out of memory" in table.rows[2]


def test_the_front_says_every_trial_and_marks_what_was_stopped() -> None:
    stopped = search()
    stopped["trials"][1]["rounds"] = 4
    assert charts(stopped)["front"].says == (
        "trial 0: clean 93.8 % [88.9, 96.6] of 160, under attack 16.9 % [11.9, 23.4] of 160; "
        "trial 1: clean 93.8 % [88.9, 96.6] of 160, under attack 10.6 % [6.7, 16.4] of 160"
    )
    assert charts(stopped)["front"].svg != charts(search())["front"].svg


@pytest.mark.parametrize("values", [(5e-4, 5e-3), (1, 2), (True, False), (None, 0.1), ("a", HOSTILE), (0.1, 0.1)])
def test_a_panel_takes_any_values(values: tuple) -> None:
    points = [(value, Accuracy(correct, 40)) for value, correct in zip(values, (0, 20), strict=True)]
    assert "<script" not in search_charts.panel("a setting", points, [True, False], 1)


def test_the_page_of_a_search_is_the_same_bytes_again_and_needs_nothing_beside_it() -> None:
    page = search_page(contents())
    assert page == search_page(contents())
    text = page.decode()
    assert not re.search(r"url\((?!#)|@import|<script|<link (?!rel=\"icon\")", text)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == ["What was tried", "The recipe that was chosen"]
    assert "16.9 % [11.9, 23.4] of 160 after 8 rounds" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text_on_the_page_of_a_search() -> None:
    given = hostile()
    text = search_page(contents(title=HOSTILE, says=(HOSTILE,), search=given.search, recipe=given.recipe)).decode()
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text
