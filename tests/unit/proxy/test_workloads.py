"""Which cgroup is which workload, on a tree of plain folders: the walk asks nothing of cgroupfs but names and inodes."""

import gc
import os
import select
from pathlib import Path

import pytest

from policies.model import Place, Workload
from proxy.workloads import LAST_ID, MAX_DEPTH, Found, Ids, Watch, WorkloadError, cgroup2_mount, prepare, scan


def workload(name: str, *globs: str) -> Workload:
    return Workload(name=name, place=Place("documents.yaml", 1, 1), labels={}, cgroups=globs)


def folders(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)


def owners(root: Path, found: Found) -> dict[str, str | None]:
    """Path below the mount to owner, for every cgroup that got an entry."""
    inodes = {path.stat().st_ino: "/" + str(path.relative_to(root)) for path in root.rglob("*")} | {root.stat().st_ino: "/"}
    return {inodes[cgroup]: owner for cgroup, owner in found.cgroups.items()}


def unsettled(root: Path, found: Found) -> set[str]:
    return {path for path in owners(root, found) if root.joinpath(path.lstrip("/")).stat().st_ino in found.unsettled}


def test_an_exact_path_is_its_workload_and_nothing_else_is_entered(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/web/below", "/sluice/other", "/system.slice")
    found = scan(tmp_path, [workload("web", "/sluice/web")])
    assert owners(tmp_path, found) == {"/sluice/web": "web"}
    assert not found.unsettled
    assert found.watched == {tmp_path, tmp_path / "sluice"}


def test_a_path_that_is_not_there_yet_leaves_the_last_folder_on_the_way_unsettled(tmp_path: Path) -> None:
    """And its children are the host's, so that the hook need not refuse them."""
    folders(tmp_path, "/sluice/other")
    found = scan(tmp_path, [workload("web", "/sluice/web")])
    assert owners(tmp_path, found) == {"/sluice": None, "/sluice/other": None}
    assert unsettled(tmp_path, found) == {"/sluice"}


def test_a_wildcard_leaves_its_folder_unsettled_whatever_is_there(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/x-1", "/sluice/y-1", "/sluice/x-1/below")
    found = scan(tmp_path, [workload("x", "/sluice/x-*")])
    assert owners(tmp_path, found) == {"/sluice": None, "/sluice/x-1": "x", "/sluice/y-1": None}
    assert unsettled(tmp_path, found) == {"/sluice"}


def test_a_wildcard_in_the_middle_is_followed(tmp_path: Path) -> None:
    folders(tmp_path, "/kubepods/pod1/app", "/kubepods/pod1/pause", "/kubepods/pod2/app", "/kubepods/pod3")
    found = scan(tmp_path, [workload("app", "/kubepods/pod*/app")])
    named = {path for path, owner in owners(tmp_path, found).items() if owner == "app"}
    assert named == {"/kubepods/pod1/app", "/kubepods/pod2/app"}
    assert unsettled(tmp_path, found) == {"/kubepods", "/kubepods/pod3"}


def test_two_stars_stand_for_any_number_of_folders_and_none(tmp_path: Path) -> None:
    folders(tmp_path, "/a/web", "/a/b/web", "/a/b/c/web", "/z/web")
    found = scan(tmp_path, [workload("web", "/a/**/web")])
    named = {path for path, owner in owners(tmp_path, found).items() if owner == "web"}
    assert named == {"/a/web", "/a/b/web", "/a/b/c/web"}
    everything = scan(tmp_path, [workload("all", "/a/**")])
    assert {path for path, owner in owners(tmp_path, everything).items() if owner} == {
        *("/a/web", "/a/b", "/a/b/web", "/a/b/c", "/a/b/c/web"),
    }


def test_repeated_stars_cost_no_more_than_one(tmp_path: Path) -> None:
    folders(tmp_path, "/a/" + "/".join("d" * 14))
    found = scan(tmp_path, [workload("x", "/**/**/**/**/**/**/**/**/x")])
    assert len(found.watched) == 16


def test_a_workload_inside_another_is_its_own_and_its_siblings_are_the_outer_ones(tmp_path: Path) -> None:
    """A sub-cgroup counts as its workload even where another glob looks for something inside it."""
    folders(tmp_path, "/sluice/web/inner", "/sluice/web/sibling")
    both = [workload("web", "/sluice/web"), workload("inner", "/sluice/web/in*")]
    found = scan(tmp_path, both)
    assert owners(tmp_path, found) == {"/sluice/web": "web", "/sluice/web/inner": "inner", "/sluice/web/sibling": "web"}
    assert unsettled(tmp_path, found) == {"/sluice/web"}
    found = scan(tmp_path, list(reversed(both)))
    assert owners(tmp_path, found)["/sluice/web/sibling"] == "web"


def test_below_a_workload_a_folder_on_the_way_to_another_stays_the_outer_ones(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/web/a/b")
    found = scan(tmp_path, [workload("web", "/sluice/web"), workload("deep", "/sluice/web/a/missing")])
    assert owners(tmp_path, found) == {"/sluice/web": "web", "/sluice/web/a": "web", "/sluice/web/a/b": "web"}


def test_of_two_documents_that_name_one_cgroup_the_first_has_it(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/web")
    exact, general = workload("exact", "/sluice/web"), workload("general", "/sluice/*")
    assert owners(tmp_path, scan(tmp_path, [exact, general]))["/sluice/web"] == "exact"
    assert owners(tmp_path, scan(tmp_path, [general, exact]))["/sluice/web"] == "general"


def test_a_removed_cgroup_loses_its_entry(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/x-1")
    documents = [workload("x", "/sluice/x-*")]
    assert "x" in scan(tmp_path, documents).cgroups.values()
    (tmp_path / "sluice/x-1").rmdir()
    assert "x" not in scan(tmp_path, documents).cgroups.values()


def test_without_workloads_nothing_is_looked_at(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/web")
    assert scan(tmp_path, []) == Found({}, frozenset(), frozenset())
    assert scan(tmp_path, [workload("far")]) == Found({}, frozenset(), frozenset())


def test_a_workload_deeper_than_the_hook_looks_is_an_error(tmp_path: Path) -> None:
    deepest = "/".join(str(level) for level in range(MAX_DEPTH))
    folders(tmp_path, f"{deepest}/too-deep")
    assert "fine" in scan(tmp_path, [workload("fine", f"/{deepest}")]).cgroups.values()
    with pytest.raises(WorkloadError, match=r"workload deep: cgroup .*too-deep is more than 16 levels deep"):
        scan(tmp_path, [workload("deep", f"/{deepest}/too-deep")])


def test_nothing_of_a_look_waits_for_the_garbage_collector(tmp_path: Path) -> None:
    """It hardly ever runs, and the agent looks again every second."""
    folders(tmp_path, "/sluice/web/below", "/sluice/orders")
    gc.collect()
    gc.disable()
    try:
        scan(tmp_path, [workload("web", "/sluice/web*"), workload("orders", "/**/orders")])
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_links_are_not_followed(tmp_path: Path) -> None:
    folders(tmp_path, "/sluice/web")
    (tmp_path / "sluice/x-link").symlink_to(tmp_path / "sluice/web")
    found = scan(tmp_path, [workload("x", "/sluice/x-*")])
    assert "x" not in found.cgroups.values()


def test_named_cgroups_in_our_own_folder_are_made_and_no_others(tmp_path: Path) -> None:
    prepare(tmp_path, [workload("web", "/sluice/web", "/sluice/x-*", "/sluice/?", "/system.slice/web.service")])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["sluice", "sluice/web"]


def _reports(watch: Watch) -> bool:
    seen = bool(select.select([watch.fd], [], [], 0)[0])
    watch.drain()
    assert not select.select([watch.fd], [], [], 0)[0]
    return seen


def test_a_watch_reports_what_appears_and_goes_in_the_folders_that_it_follows(tmp_path: Path) -> None:
    folders(tmp_path, "/seen", "/unseen")
    watch = Watch()
    try:
        watch.follow([tmp_path / "seen", tmp_path / "gone"])
        (tmp_path / "seen/new").mkdir()
        assert _reports(watch)
        (tmp_path / "seen/new").rmdir()
        assert _reports(watch)
        (tmp_path / "unseen/new").mkdir()
        assert not _reports(watch)
        watch.follow([tmp_path / "unseen"])
        watch.drain()  # the end of the old watch is reported as well
        (tmp_path / "seen/new").mkdir()
        assert not _reports(watch)
        (tmp_path / "unseen/new").rmdir()
        assert _reports(watch)
    finally:
        watch.close()


def test_a_folder_that_was_removed_and_made_again_is_followed_again(tmp_path: Path) -> None:
    folders(tmp_path, "/pod")
    watch = Watch()
    try:
        watch.follow([tmp_path, tmp_path / "pod"])
        (tmp_path / "pod").rmdir()
        (tmp_path / "pod").mkdir()
        watch.drain()
        watch.follow([tmp_path, tmp_path / "pod"])
        (tmp_path / "pod/app").mkdir()
        assert _reports(watch)
    finally:
        watch.close()


def test_a_name_keeps_its_number_and_no_other_name_gets_it() -> None:
    ids = Ids()
    assert (ids.of("web"), ids.of("orders"), ids.of("web")) == (1, 2, 1)
    assert (ids.name(2), ids.name(3)) == ("orders", None)
    assert ids.all() == {"web": 1, "orders": 2}


def test_names_without_end_are_an_error_and_not_a_second_use_of_a_number() -> None:
    ids = Ids()
    for number in range(LAST_ID):
        ids.of(str(number))
    with pytest.raises(WorkloadError, match="restart"):
        ids.of("one too many")


@pytest.mark.skipif(" cgroup2 " not in Path("/proc/self/mounts").read_text(), reason="cgroup v2 is not mounted")
def test_on_the_real_tree_an_inode_is_the_cgroups_id() -> None:
    """bpf_get_current_cgroup_id() and st_ino are the same number."""
    mount = cgroup2_mount()
    assert os.path.exists(mount / "cgroup.procs")
    found = scan(mount, [workload("nobody", "/sluice-that-is-not-there")])
    assert mount.stat().st_ino in found.unsettled
