"""Files that belong together: all old or all new, killed at every step, and what of others stays."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vit_hub.converters.containers.together as together
from vit_hub.converters.containers.together import files_together, finish_interrupted
from vit_hub.errors import CheckpointError

OTHERS = {"README.md": "mine", "sub/deep/er.txt": "mine too", "sub/empty.txt": ""}
OLD = {"model.bin": "old", "config.json": "old", "processor.json": "old"}
NEW = {"model.bin": "new", "config.json": "new", "labels.json": "new"}

needs_forks = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows neither fork nor SIGKILL")
needs_exchange = pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders in one step")


@pytest.fixture(autouse=True)
def without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process needs none, and they take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    """Return the text of all files of a folder, without drafts."""
    files = [file for file in folder.rglob("*") if file.is_file() and not drafts(file.relative_to(folder).parts)]
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


def drafts(names: tuple[str, ...]) -> bool:
    return any(name.endswith(".vit-hub.tmp") for name in names)


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if drafts((path.name,))]


def write(folder: Path, *, whole: bool = True) -> None:
    with files_together(folder, "model.bin", whole=whole, obsolete=["processor.json", "absent.json"]) as draft:
        fill(draft, NEW)


def killed_at(step: int, task: Callable[[], None]) -> bool:
    """Run a task in a process that is killed at one of its calls of the file system; return whether it came so far."""
    child = os.fork()
    if not child:
        counter = itertools.count()

        def kill(event: str, _: object) -> None:
            if event.startswith(("os.", "open", "shutil.")) and next(counter) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            task()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@needs_forks
@pytest.mark.parametrize("way", ["exchanged", "without exchange", "working folder", "beside others", "new"])
def test_killed_at_every_step(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "exchanged" and sys.platform != "linux":
        pytest.skip("only Linux exchanges folders in one step")
    if way == "without exchange":
        monkeypatch.setattr(together, "_exchange", lambda: None)
    at_once = way in ("exchanged", "new")
    outcomes = set()
    for step in itertools.count():
        parent = tmp_path / str(step)
        folder = parent / "out"
        before = {} if way == "new" else {**OLD, **OTHERS}
        fill(folder if before else parent, before or {"other.txt": ""})
        after = {**NEW, **(OTHERS if before else {})}
        if way == "working folder":
            monkeypatch.chdir(folder)
        killed = killed_at(step, lambda folder=folder: write(folder, whole=way != "beside others"))  # type: ignore[misc]
        found = read(folder)
        if at_once or "model.bin" in found:  # else there is no model that could be a mixture
            assert found in (before, after), step
        finish_interrupted(folder / "model.bin" if way == "beside others" else folder)
        found = read(folder)
        assert found in (before, after), step
        outcomes.add(found == after)
        write(folder, whole=way != "beside others")
        assert (read(folder), left(parent)) == (after, []), step
        monkeypatch.chdir(tmp_path)
        if not killed:
            break
    assert outcomes == {True, False}
    assert step > 20


@needs_exchange
def test_files_of_others_are_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, {**OLD, **OTHERS})
    (folder / "link").symlink_to("nowhere")
    (folder / "to folder").symlink_to("sub")
    folder.chmod(0o750)
    inodes = {name: (folder / name).stat().st_ino for name in OTHERS}
    with (folder / "README.md").open("a") as log, files_together(folder, "model.bin", whole=True) as draft:
        fill(draft, NEW)
        log.write(", added meanwhile")
        (folder / "new.txt").write_text("made meanwhile")
    assert read(folder)["README.md"] == "mine, added meanwhile"
    assert read(folder)["new.txt"] == "made meanwhile"
    assert {name: (folder / name).stat().st_ino for name in OTHERS} == inodes
    assert [os.fspath((folder / name).readlink()) for name in ("link", "to folder")] == ["nowhere", "sub"]
    assert folder.stat().st_mode & 0o777 == 0o750
    assert not left(tmp_path)


@needs_exchange
@pytest.mark.parametrize("interrupted", [False, True])
def test_what_comes_at_the_last_moment_stays(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "out", together._link_others
    fill(folder, {**OLD, **OTHERS})

    def late(*arguments: object) -> None:
        link(*arguments)  # type: ignore[arg-type]
        fill(folder, {"late.txt": "late", "sub/late.txt": "late", "made/late.txt": "late"})
        (folder / "fresh").write_text("changed by a rename")
        (folder / "fresh").replace(folder / "README.md")

    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(together, "_link_others", late)
    with monkeypatch.context() as until_then:
        if interrupted:
            until_then.setattr(together, "_empty", fail)
        write(folder)
    assert len(left(tmp_path)) == interrupted
    finish_interrupted(folder)
    late_ones = {
        "late.txt": "late",
        "sub/late.txt": "late",
        "made/late.txt": "late",
        "README.md": "changed by a rename",
    }
    assert read(folder) == {**NEW, **OTHERS, **late_ones}
    assert not left(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_changes_nothing(error: BaseException, whole: bool, tmp_path: Path) -> None:
    fill(tmp_path / "out", {**OLD, **OTHERS})

    def fail() -> None:
        with files_together(tmp_path / "out", "model.bin", whole=whole) as draft:
            fill(draft, NEW)
            raise error

    with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
        fail()
    if isinstance(error, OSError):
        assert f"{tmp_path / 'out' / 'model.bin'}: cannot be written: No space left" in str(caught.value)
    assert (read(tmp_path / "out"), left(tmp_path)) == ({**OLD, **OTHERS}, [])


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_disk_at_the_end_changes_nothing(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", OLD)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(together, "sync_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(tmp_path / "out", whole=whole)
    assert (read(tmp_path / "out"), left(tmp_path)) == (OLD, [])


def test_what_cannot_be_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    fill(tmp_path, {"out/model.bin": "old", "out/config.json/inside.txt": "mine"})
    for folder, said in ((tmp_path / "file", "Not a directory|is a file"), (tmp_path / "out", "Is a directory")):
        with pytest.raises(CheckpointError, match=said):
            write(folder)
    assert read(tmp_path) == {"file": "mine", "out/model.bin": "old", "out/config.json/inside.txt": "mine"}
    assert not left(tmp_path)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "real", {**OLD, **OTHERS})
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == {**NEW, **OTHERS}


def test_a_folder_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", {**OLD, **OTHERS})
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    before = (tmp_path / "out").stat().st_ino
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == before
    assert (read(tmp_path / "out"), left(tmp_path)) == ({**NEW, **OTHERS}, [])


def test_a_folder_with_too_much_is_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_MOST_LINKS", 4)
    fill(tmp_path / "out", {**OLD, **OTHERS})
    before = (tmp_path / "out").stat().st_ino
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == before
    assert (read(tmp_path / "out"), left(tmp_path)) == ({**NEW, **OTHERS}, [])


@needs_forks
def test_a_writer_at_work_is_not_disturbed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, OLD)
    with files_together(folder, "model.bin", whole=True) as first:
        fill(first, {"model.bin": "first"})
        write(folder)
        finish_interrupted(folder)
        assert (read(folder), len(left(tmp_path))) == (NEW, 1)
        assert (first / "model.bin").exists()
    assert (read(folder)["model.bin"], left(tmp_path)) == ("first", [])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_many_writers_leave_what_one_of_them_wrote(whole: bool, there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    others = OTHERS if there else {}
    fill(folder if there else tmp_path, others)

    def write_one(number: int) -> None:
        with files_together(folder, "model.bin", whole=whole) as draft:
            fill(draft, {"model.bin": str(number), "config.json": str(number)})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write_one, range(60)))
    found = read(folder)
    number = found["model.bin"]
    assert found == {"model.bin": number, "config.json": number, **others}
    assert not left(tmp_path)


@needs_forks
@pytest.mark.parametrize(
    "plan",
    [
        {"first": "../victim.txt"},
        {"names": ["model.bin", "../victim.txt"]},
        {"gone": ["../victim.txt"]},
        {"folder": ".."},
        {"folder": 1},
        {"exchanged": "1"},
        {"made": 1},
    ],
)
def test_a_plan_from_others_reaches_nothing_outside(plan: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    draft = folder / ".0-0.vit-hub.tmp"
    fill(draft, {"build/model.bin": "new", "lock": ""})
    fill(tmp_path, {"victim.txt": "mine", "out/mine.txt": "mine"})
    whole = {"folder": ".", "first": "model.bin", "names": ["model.bin", "config.json"], "gone": ["mine.txt"]}
    made = (draft / "lock").stat().st_ctime_ns
    (draft / "plan.json").write_text(json.dumps({**whole, "exchanged": None, "made": made, **plan}))
    before = read(tmp_path)
    finish_interrupted(folder)
    assert read(tmp_path) == before


@needs_forks
@pytest.mark.parametrize("exchanged", [None, 1])
@pytest.mark.parametrize("link", [".0-0.vit-hub.tmp/build", "model", "sub"])
def test_links_are_not_followed(link: str, exchanged: int | None, tmp_path: Path) -> None:
    """Not even if somebody knew what a plan must say."""
    folder = tmp_path / "out"
    draft = folder / ".0-0.vit-hub.tmp"
    fill(tmp_path, {"elsewhere/mine.txt": "mine", "elsewhere/model.bin": "mine"})
    fill(
        draft, {"lock": ""} if "build" in link else {"lock": "", "build/sub/mine.txt": "new", "build/model.bin": "new"}
    )
    (folder / link).symlink_to(tmp_path / "elsewhere")
    plan = {"folder": "model" if link == "model" else ".", "first": "model.bin", "names": ["model.bin", "mine.txt"]}
    made = (draft / "lock").stat().st_ctime_ns
    (draft / "plan.json").write_text(json.dumps({**plan, "gone": [], "exchanged": exchanged, "made": made}))
    finish_interrupted(folder)
    write(folder)
    assert read(tmp_path / "elsewhere") == {"mine.txt": "mine", "model.bin": "mine"}
