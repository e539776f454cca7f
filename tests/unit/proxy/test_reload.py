"""Which changes on disk are changes of the documents."""

import os
from pathlib import Path

import pytest

from proxy.reload import RESTLESS, SETTLE, Rest, fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text("one")
    return tmp_path


def test_the_same_files_have_the_same_fingerprint(folder: Path) -> None:
    assert fingerprint([str(folder)]) == fingerprint([str(folder)])


def test_a_new_text_a_new_file_and_a_removed_file_are_changes(folder: Path) -> None:
    seen = {fingerprint([str(folder)])}
    (folder / "a.yaml").write_text("three")
    seen.add(fingerprint([str(folder)]))
    (folder / "b.yml").write_text("two")
    seen.add(fingerprint([str(folder)]))
    (folder / "a.yaml").unlink()
    seen.add(fingerprint([str(folder)]))
    assert len(seen) == 4


def test_a_text_of_the_same_length_in_a_new_file_is_a_change(folder: Path) -> None:
    """As editors save: a new file takes the old one's name, and may even take its time."""
    before, status = fingerprint([str(folder)]), (folder / "a.yaml").stat()
    (folder / "new").write_text("two")
    os.utime(folder / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "new").rename(folder / "a.yaml")
    assert fingerprint([str(folder)]) != before


def test_the_switch_of_a_symbolic_link_to_a_folder_is_a_change(tmp_path: Path) -> None:
    """As a ConfigMap volume is updated: ..data points to another folder."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(version)
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    before = fingerprint([str(tmp_path)])
    (tmp_path / "..new").symlink_to("2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert fingerprint([str(tmp_path)]) != before


@pytest.mark.parametrize("name", ["notes.md", ".a.yaml.swp", ".a.yaml", "a.yaml~", "a.yaml.bak"])
def test_what_is_no_document_is_no_change(name: str, folder: Path) -> None:
    before = fingerprint([str(folder)])
    (folder / name).write_text("something")
    assert fingerprint([str(folder)]) == before


def test_a_folder_or_file_that_vanished_is_a_change_and_no_error(folder: Path) -> None:
    file = folder / "a.yaml"
    before = fingerprint([str(folder)]), fingerprint([str(file)])
    file.unlink()
    folder.rmdir()
    assert fingerprint([str(folder)]) != before[0]
    assert fingerprint([str(file)]) != before[1]


def test_a_link_that_leads_nowhere_is_a_change(folder: Path) -> None:
    before = fingerprint([str(folder)])
    (folder / "b.yaml").symlink_to("b.yaml")
    assert fingerprint([str(folder)]) != before


ONE, OTHER, THIRD = (frozenset({("a.yaml", inode, 1, 1)}) for inode in (1, 2, 3))


def test_a_change_is_to_be_read_once_it_has_come_to_rest_and_once_only() -> None:
    rest = Rest()
    rest.read(ONE)
    assert not rest.look(ONE, 10.0)
    assert not rest.look(OTHER, 11.0)
    assert not rest.look(THIRD, 11.0 + SETTLE)
    assert rest.restless
    assert rest.look(THIRD, 11.0 + 2 * SETTLE)
    rest.read(THIRD)
    assert not rest.look(THIRD, 20.0)
    assert not rest.restless


def test_a_change_that_is_taken_back_is_none() -> None:
    rest = Rest()
    rest.read(ONE)
    assert not rest.look(OTHER, 1.0)
    assert not rest.look(ONE, 9.0)
    assert (rest.restless, rest.trouble(99.0)) == (False, None)


def test_what_does_not_come_to_rest_is_told_and_is_not_to_be_read() -> None:
    rest = Rest()
    rest.read(ONE)
    for step in range(100):
        state = OTHER if step % 2 else THIRD
        assert not rest.look(state, step * SETTLE / 2)
        assert (rest.trouble(step * SETTLE / 2) is not None) == (step * SETTLE / 2 >= RESTLESS)
    assert "go on changing" in (rest.trouble(99.0) or "")


def test_what_could_not_be_read_as_a_whole_is_tried_again_though_nothing_changes() -> None:
    rest = Rest()
    rest.read(ONE)
    rest.unsettled("a.yaml is open for writing", 5.0)
    rest.look(ONE, 6.0)
    assert rest.look(ONE, 6.0 + SETTLE)
    assert "a.yaml is open for writing" in (rest.trouble(5.0 + RESTLESS) or "")
    rest.read(ONE)
    assert rest.trouble(99.0) is None
