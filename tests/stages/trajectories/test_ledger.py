import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from stages.trajectories.ledger import MERGED, Ledger, LedgerError, LedgerRow


def row(fingerprint: str, **changes) -> LedgerRow:
    values = {
        "prefix": "9" * 32,
        "parents": ("a" * 32, "b" * 32),
        "round": 4,
        "unit": 1,
        "version": 3,
        "weights": "c" * 32,
        "attack": '{"norm": "Linf"}',
        "first_index": 17,
        "last_index": 2**40,
        "n": 256,
        "k": 3,
        "bytes": 12345,
        "sha256": "d" * 64,
        "last_states": "e" * 32,
        "success": (0.1, 0.25, 1.0),
        "loss": (0.1 + 0.2, 1e-30, 7.0),
        "zero_gradients": (0.0, 0.5, 1.0),
        "seconds": 1.5,
        "worker": "host:1",
        "created": "2026-01-01T00:00:00.000+00:00",
    }
    return LedgerRow(fingerprint=fingerprint, **{**values, **changes})


def names(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


# What a writer in another process does; it says "ready", waits for a line, and says what it won.
WRITER = """
import sys
from pathlib import Path
from test_ledger import names, row
from stages.trajectories.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(ledger.add(row(name, worker=sys.argv[2])) for name in names(int(sys.argv[3]))), flush=True)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from test_ledger import row
from stages.trajectories.ledger import Ledger

os.link = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
Ledger(Path(sys.argv[1])).add(row("f" * 32))
"""


def start(program: str, *arguments: object) -> subprocess.Popen:
    folders = [str(Path(__file__).parent), str(Path(next(iter(stages.__path__))).parent)]
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def started(program: str, *arguments: object) -> subprocess.Popen:
    writer = start(program, *arguments)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def test_a_row_comes_back_as_it_was(ledger):
    assert ledger.add(row("f" * 32))
    again = Ledger(ledger.root)
    assert again.get("f" * 32) == row("f" * 32)
    assert again.rows() == [row("f" * 32)]
    ledger.compact()
    assert Ledger(ledger.root).get("f" * 32) == row("f" * 32)


def test_an_empty_ledger_has_nothing(ledger):
    assert "f" * 32 not in ledger
    assert ledger.get("f" * 32) is None
    assert ledger.rows() == []
    ledger.compact()
    assert Ledger(ledger.root).rows() == []


def test_the_first_row_of_a_shard_stays(ledger):
    assert ledger.add(row("f" * 32, worker="first"))
    assert not ledger.add(row("f" * 32, worker="second"))
    ledger.compact()
    assert not Ledger(ledger.root).add(row("f" * 32, worker="third"))
    assert [found.worker for found in ledger.rows()] == ["first"]


def test_rows_come_in_the_order_of_the_schedule(ledger):
    for name, place in zip(names(4), [(2, 0), (0, 1), (1, 0), (0, 0)], strict=True):
        ledger.add(row(name, round=place[0], unit=place[1]))
    assert [(found.round, found.unit) for found in ledger.rows()] == [(0, 0), (0, 1), (1, 0), (2, 0)]


def test_shards_with_the_same_first_states_are_found_the_shortest_first(ledger):
    for name, k, prefix in zip(names(4), [9, 3, 5, 1], ["p", "p", "p", "q"], strict=True):
        ledger.add(row(name, k=k, prefix=prefix))
    assert [found.k for found in ledger.with_prefix("p")] == [3, 5, 9]
    assert ledger.with_prefix("r") == []


def test_one_who_polls_sees_what_another_adds_merges_and_removes(ledger):
    other = Ledger(ledger.root)
    for action, expected in (
        (lambda: other.add(row("f" * 32)), True),
        (other.compact, True),
        (lambda: other.add(row("e" * 32)), True),
        (other.compact, True),
        (lambda: other.remove(["f" * 32]), False),
        (lambda: other.add(row("f" * 32)), True),
    ):
        action()
        assert ("f" * 32 in ledger) is expected
        assert (ledger.get("f" * 32) is not None) is expected


def test_polling_opens_no_file(ledger, monkeypatch):
    ledger.add(row("e" * 32))
    ledger.compact()
    ledger.add(row("f" * 32))
    assert "e" * 32 in ledger
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert "e" * 32 in ledger
    assert "f" * 32 in ledger
    assert "d" * 32 not in ledger
    assert ledger.get("e" * 32) == row("e" * 32)


def test_compaction_leaves_one_file(ledger):
    for name in names(5):
        ledger.add(row(name))
    ledger.compact()
    assert [path.name for path in ledger.root.glob("*.parquet")] == [MERGED]
    assert [found.fingerprint for found in Ledger(ledger.root).rows()] == names(5)


def test_removed_shards_are_forgotten_wherever_their_rows_were(ledger):
    first, second, third, fourth = names(4)
    ledger.add(row(first))
    ledger.add(row(second))
    ledger.compact()
    ledger.add(row(third))
    ledger.add(row(fourth))
    ledger.remove([first, third, "0" * 31 + "9"])
    assert [found.fingerprint for found in Ledger(ledger.root).rows()] == [second, fourth]


def test_of_processes_that_add_the_same_rows_exactly_one_wins_each(ledger):
    writers = [started(WRITER, ledger.root, f"writer-{number}", 40) for number in range(3)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    won = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    assert sum(won) == 40
    assert [found.fingerprint for found in ledger.rows()] == names(40)
    by_worker = [found.worker for found in ledger.rows()]
    assert [by_worker.count(f"writer-{number}") for number in range(3)] == won
    assert not list(ledger.root.glob("*.partial"))


def test_compaction_beside_a_writer_loses_nothing(ledger):
    writer = started(WRITER, ledger.root, "writer", 60)
    assert writer.stdin is not None
    writer.stdin.write("\n")
    writer.stdin.flush()
    while writer.poll() is None:
        seen = len(ledger.rows())
        ledger.compact()
        assert len(Ledger(ledger.root).rows()) >= seen
    assert writer.communicate()[0] == "60\n"
    assert [found.fingerprint for found in ledger.rows()] == names(60)


def test_a_writer_killed_before_the_commit_leaves_no_row(ledger):
    writer = start(KILLED, ledger.root)
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert list(ledger.root.glob("*.partial"))
    assert "f" * 32 not in ledger
    assert ledger.rows() == []
    assert ledger.add(row("f" * 32))
    assert ledger.get("f" * 32) == row("f" * 32)


def test_a_killed_compaction_loses_nothing(ledger, monkeypatch):
    for name in names(3):
        ledger.add(row(name))
    ledger.compact()
    ledger.add(row("f" * 32))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, die)
            with pytest.raises(KeyboardInterrupt):
                ledger.compact()
        assert [found.fingerprint for found in Ledger(ledger.root).rows()] == [*names(3), "f" * 32]


def test_a_full_disk_leaves_no_row(ledger, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.add(row("f" * 32))
    assert "f" * 32 not in ledger
    assert ledger.add(row("f" * 32))


@pytest.mark.parametrize("merged", [False, True], ids=["part", "merged"])
def test_a_damaged_file_is_named_or_reads_as_it_was(ledger, merged):
    ledger.add(row("f" * 32))
    if merged:
        ledger.compact()
    file = next(ledger.root.glob("*.parquet"))
    whole, errors = file.read_bytes(), []
    for position in random.Random(0).sample(range(len(whole)), 300):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        file.write_bytes(altered)
        try:
            assert Ledger(ledger.root).get("f" * 32) == row("f" * 32)
        except LedgerError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all(message.startswith(f"{file} of the ledger is damaged") for message in errors)


@pytest.mark.parametrize("length", [0, 4, 2000])
def test_a_truncated_file_is_named_in_an_error(ledger, length):
    ledger.add(row("f" * 32))
    file = ledger.root / f"{'f' * 32}.parquet"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(LedgerError, match=re.escape(f"{file} of the ledger is damaged")):
        Ledger(ledger.root).rows()


def test_a_row_under_the_name_of_another_is_refused(ledger):
    ledger.add(row("f" * 32))
    (ledger.root / f"{'f' * 32}.parquet").rename(ledger.root / f"{'e' * 32}.parquet")
    with pytest.raises(LedgerError, match=f"the rows of shards .'{'f' * 32}'. instead of {'e' * 32}"):
        ledger.get("e" * 32)
