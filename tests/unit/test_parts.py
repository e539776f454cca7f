"""The parts that ``make test`` runs side by side: all tests are in them, and none of them fails unnoticed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.__main__ import PARTS, Part, run
from tests.harness import ROOT, eventually

PASSES = "def test_it(): pass\n"
FAILS = "def test_it(): assert 0, 'it is wrong'\n"
WAITS = """
import pathlib, time, pytest

@pytest.fixture
def here():
    folder = pathlib.Path(__file__).parent
    yield folder
    time.sleep(1)
    (folder / "ended").touch()

def test_it(here):
    (here / "began").touch()
    time.sleep(100)
"""
RUN = "import sys; from tests.__main__ import *; sys.exit(main((), [Part('one', (sys.argv[1],))], 'no rooms'))"


def part(folder: Path, name: str, text: str) -> Part:
    (folder / name).mkdir()
    (folder / name / f"test_{name}.py").write_text(text)
    return Part(name, (str(folder / name),), ("-c", os.devnull))


def test_every_folder_is_in_one_part_and_those_of_both_datapaths_are_in_two() -> None:
    def plays(part: Part, folder: Path) -> bool:
        return f"--ignore={folder}" not in part.options and any(folder.is_relative_to(own) for own in part.folders)

    folders = [path.relative_to(ROOT) for path in (ROOT / "tests").iterdir() if any(path.rglob("test_*.py"))]
    counts = {str(folder): sum(plays(part, folder) for part in PARTS) for folder in folders}
    assert counts == dict.fromkeys(counts, 1) | {"tests/e2e": 2, "tests/programs": 2}


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part(tmp_path, "bad", FAILS), part(tmp_path, "good", PASSES), part(tmp_path, "fine", PASSES)]
    assert run(parts, jobs=2, in_rooms=False) is False
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bad ") and "it is wrong" in line for line in lines), "what each says has its name"
    assert [line.split()[:2] for line in sorted(lines[-3:])] == [["FAILED", "bad"], ["ok", "fine"], ["ok", "good"]]


def test_a_part_without_tests_has_failed(tmp_path: Path) -> None:
    assert run([part(tmp_path, "empty", "")], jobs=1, in_rooms=False) is False


def test_all_is_well_when_every_part_is(tmp_path: Path) -> None:
    assert run([part(tmp_path, name, PASSES) for name in ("one", "two")], jobs=1, in_rooms=False) is True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_tests_that_are_interrupted_clean_up(number: int, code: int, tmp_path: Path) -> None:
    one = part(tmp_path, "one", WAITS)
    process = subprocess.Popen([sys.executable, "-c", RUN, *one.folders], cwd=ROOT)
    try:
        eventually(lambda: (tmp_path / "one/began").exists(), "the test", patience=60)
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
    eventually(lambda: (tmp_path / "one/ended").exists(), "the test's own end")
