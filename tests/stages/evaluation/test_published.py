from dataclasses import replace

import pytest

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Row
from stages.evaluation.published import FIELD, PAPER, RAP, beside, differences

OURS = Row(name="ours", values=("no", Accuracy(correct=90, images=128), Accuracy(correct=60, images=128)))


def test_every_row_has_a_value_for_every_column_and_a_source():
    for published in (*PAPER.values(), *FIELD.values()):
        for row in published.table.rows:
            assert len(row.values) == len(published.table.columns), row
            assert row.source
            assert all(0 <= value <= 100 for value in row.values if isinstance(value, float))


def test_the_papers_own_figures_stand_first_and_agree_between_its_tables():
    for name, published in PAPER.items():
        assert published.table.rows[0].name.startswith(RAP), name
    assert PAPER["1"].table.rows[0].values[2] == 73.24
    assert PAPER["4"].table.rows[0].values[1] == PAPER["6"].table.rows[0].values[1] == 73.2


def test_our_row_stands_beside_the_papers_and_says_what_differs():
    ours = replace(PAPER["1"].setting, images=128, classifier="cnn")
    table = beside(PAPER["1"], [OURS], ours)
    assert table.rows[:-1] == PAPER["1"].table.rows
    assert table.rows[-1].values == OURS.values
    assert table.rows[-1].setting == "images 128 instead of 512; classifier cnn instead of WRN-28-10"


def test_figures_on_other_data_stay_out_of_the_leaderboard():
    table = beside(PAPER["1"], [OURS], replace(PAPER["1"].setting, data="CIFAR-10 (JPEG q75)"))
    assert [row.name for row in table.rows] == [RAP, "ours"]
    assert "CIFAR-10 (JPEG q75) instead of CIFAR-10" in table.rows[-1].setting


def test_what_one_side_does_not_say_is_no_difference():
    assert differences(PAPER["3"].setting, replace(PAPER["3"].setting, images=1000)) == ""


def test_a_row_of_another_table_is_refused():
    with pytest.raises(ValueError, match="3 values for the columns"):
        beside(PAPER["3"], [OURS], PAPER["3"].setting)
