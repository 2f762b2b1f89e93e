"""The ledger: written by one, queried by anyone, merged as it grows, and rebuilt from the shards."""

from dataclasses import replace

import pyarrow.dataset as ds
import pytest
from examples import attacked, row_of

from stages.storage import Storage
from stages.trajectories import ledger as module
from stages.trajectories.ledger import Ledger, LedgerError
from stages.trajectories.recorder import Recorder
from stages.trajectories.shards import LedgerRow, MissingShardError, Shard, pack_shard, write_shard

ROW = row_of(attacked().segments)


def rows_of(first: int, last: int, units: int = 2) -> list[LedgerRow]:
    return [
        replace(ROW, fingerprint=f"{number:030}{unit:02}", round=number, unit=unit, fresh=number % 3)
        for number in range(first, last + 1)
        for unit in range(units)
    ]


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(Storage.at(tmp_path), "run")


def test_rows_come_back_in_order_whatever_their_order_was(ledger):
    rows = rows_of(0, 4)
    ledger.write(0, 4, rows[::-1])
    assert ledger.rows() == rows
    assert ledger.rounds == 5


def test_it_lies_where_the_readme_says(ledger):
    ledger.write(3, 12, rows_of(3, 12))
    assert [each.key for each in ledger.root.entries()] == ["ledger/run/0000003-0000012.parquet"]


def test_questions_are_answered_from_the_files_that_may_hold_the_answer(ledger, monkeypatch):
    for first in range(0, 50, 10):
        ledger.write(first, first + 9, rows_of(first, first + 9))
    read, get = [], Storage.get
    monkeypatch.setattr(Storage, "get", lambda storage, key: read.append(key) or get(storage, key))
    assert ledger.rows(range(18, 22)) == rows_of(18, 21)
    assert read == ["0000010-0000019.parquet", "0000020-0000029.parquet"]
    found = [batch.to_pydict() for batch in ledger.query(where=ds.field("fresh") == 2, columns=["round", "unit"])]
    assert sorted(number for each in found for number in each["round"]) == sorted(
        row.round for row in rows_of(0, 49) if row.fresh == 2
    )
    assert all(each.keys() == {"round", "unit"} for each in found)


def test_many_files_become_few_and_no_row_is_lost(ledger, monkeypatch):
    monkeypatch.setattr(module, "MERGED", 4)
    for first in range(0, 200, 2):
        ledger.write(first, first + 1, rows_of(first, first + 1))
        assert len(ledger.storage.names()) <= 12
    assert ledger.rows() == rows_of(0, 199)
    assert ledger.rounds == 200


def test_files_that_are_large_are_not_merged_any_further(ledger, monkeypatch):
    monkeypatch.setattr(module, "MERGED", 4)
    monkeypatch.setattr(module, "LARGEST", 0)
    for first in range(0, 40, 2):
        ledger.write(first, first + 1, rows_of(first, first + 1))
    assert len(ledger.storage.names()) == 20


def test_a_merge_that_was_killed_before_it_tidied_up_shows_no_row_twice(ledger):
    for first in (0, 2):
        ledger.write(first, first + 1, rows_of(first, first + 1))
    ledger._put(0, 3, module.pa.Table.from_pylist([vars(row) for row in rows_of(0, 3)], schema=module.SCHEMA))
    assert len(ledger.storage.names()) == 3
    assert ledger.rows() == rows_of(0, 3)


def test_a_damaged_file_is_named(ledger):
    ledger.write(0, 1, rows_of(0, 1))
    ledger.storage.put("0000000-0000001.parquet", b"PAR1 but not for long")
    with pytest.raises(
        LedgerError, match=r"0000000-0000001.parquet of the ledger is damaged .* pipeline.store ROOT rebuild"
    ):
        ledger.rows()


def commit(storage: Storage, number: int) -> LedgerRow:
    segments = attacked(start="none").segments
    row = replace(row_of(segments), fingerprint=f"{number:032}", round=number)
    content = pack_shard(Shard(row, segments))
    write_shard(storage, row.fingerprint, content)
    return replace(row, bytes=len(content), sha256=content[-64:].decode())


def test_it_is_rebuilt_from_the_shards(ledger, monkeypatch):
    rows = [commit(ledger.root, number) for number in range(3)]
    lines = [line_of(number, checkpoint=False) for number in range(5)]
    ledger.rebuild(lines, 3)
    assert ledger.rows() == rows
    ledger.clear()
    assert ledger.rows() == []
    monkeypatch.setattr("stages.trajectories.ledger.REBUILT", 2)
    ledger.rebuild(lines, 3)
    assert ledger.rows() == rows
    assert len(ledger.storage.names()) == 2
    with pytest.raises(MissingShardError):
        ledger.rebuild(lines, 4)


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_whatever_is_lost_of_it_is_rebuilt(lost, ledger):
    rows = [commit(ledger.root, number) for number in range(6)]
    for first in (0, 2, 4):
        ledger.write(first, first + 1, rows[first : first + 2])
    ledger.storage.delete([f"{2 * each:07}-{2 * each + 1:07}.parquet" for each in lost])
    assert ledger.rows() != rows
    ledger.complete(6, lambda since: [line_of(number) for number in range(since, 6)])
    assert ledger.rows() == rows
    ledger.complete(6, lambda since: pytest.fail("nothing is missing"))


def line_of(number: int, *, checkpoint: bool = False) -> dict:
    return {"round": number, "shards": [f"{number:032}"], "checkpoint": checkpoint}


def test_a_recorder_writes_a_file_from_one_checkpoint_to_the_next(tmp_path):
    ledger, rows = Ledger(Storage.at(tmp_path), "run"), rows_of(0, 6, units=1)
    recorder = Recorder(ledger)
    recorder.begin(0, lambda since: [])
    for number in range(7):
        recorder.enter([rows[number]])
        if number:  # lines come after the rows of the round that is generated meanwhile
            recorder.follow(line_of(number - 1, checkpoint=number in (3, 6)))
    assert ledger.storage.names() == ["0000000-0000002.parquet", "0000003-0000005.parquet"]
    assert ledger.rows() == rows[:6]


def test_a_recorder_that_begins_again_rebuilds_what_was_not_written(tmp_path):
    storage = Storage.at(tmp_path)
    rows = [commit(storage, number) for number in range(4)]
    ledger = Ledger(storage, "run")
    recorder = Recorder(ledger)
    recorder.begin(4, lambda since: [line_of(number, checkpoint=number == 3) for number in range(since, 9)])
    assert ledger.rows() == rows
    recorder.begin(4, lambda since: pytest.fail("nothing is missing"))
    assert ledger.rows() == rows


def test_a_recorder_that_begins_anew_keeps_no_row_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MERGED", 4)
    ledger = Ledger(Storage.at(tmp_path), "run")
    for first in range(0, 8, 2):
        ledger.write(first, first + 1, rows_of(first, first + 1))
    recorder = Recorder(ledger)
    recorder.begin(0, lambda since: pytest.fail("there is nothing before"))
    assert ledger.rows() == []
