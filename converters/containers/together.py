"""Files that belong together: under their final names are all the old ones or all the new ones, never some of each.

They are written into a draft: a hidden folder (``.*.vit-hub.tmp``) beside their destination, locked by its process.

* A new folder is the draft's, renamed.
* One that exists is exchanged with the draft's, after its other files were linked there: on Linux this is one step.
* Where a folder cannot be exchanged (another system, the working folder, a mount point, files beside others), a plan is
  written. Then the file by which the others are found is removed, the others take their places, and it comes last. In
  between there is no model; whoever opens the destination, or writes there, first finishes what a plan says.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from vit_hub.converters.containers.atomic import (
    abandoned,
    atomic_path,
    claim,
    draft_name,
    drafts,
    refusals,
    sync_file,
    sync_folder,
)
from vit_hub.converters.containers.folder import is_name
from vit_hub.errors import CheckpointError
from vit_hub.untrusted import conform, read_json

if sys.platform != "win32":
    import fcntl

__all__ = ["files_together", "finish_interrupted"]

_BUILD, _OLD, _LOCK, _PLAN = "build", "old", "lock", "plan.json"
# Beyond these a folder is too much to link; its files are put in place one by one.
_MOST_LINKS, _MOST_LEVELS = 10_000, 32
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class _Plan(TypedDict):
    """Work that is left to do with a finished draft.

    Attributes:
        folder: where the files go: the name of a folder beside the draft, or ``.``: the folder that it is in.
        first: the file by which the others are found.
        names: all files, that one included.
        gone: those that are removed there.
        exchanged: inode of the draft's files that takes the place of the folder; None: the files are moved in.
        made: time of the draft's lock in ns, which nobody can set: a plan that came with files from others has another.
    """

    folder: str
    first: str
    names: list[str]
    gone: list[str]
    exchanged: int | None
    made: int


@contextmanager
def files_together(folder: Path, first: str, *, whole: bool = False, obsolete: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to write files into; at the end of the ``with`` body they appear in ``folder`` together.

    On any exception, ``KeyboardInterrupt`` included, nothing changes. Other files of the folder stay.

    Args:
        folder: the destination, made if missing; a symbolic link stays, and its target is the destination.
        first: the one of the files by which the others are found: the weights, the program.
        whole: the folder is what is written, so that it may be replaced as one; else it is only the place of the files.
        obsolete: names of files there that go with the old ones.

    Raises:
        CheckpointError: the operating system refuses; nothing was changed, or the next command finishes the rest.
    """
    with refusals(folder / first):
        place = folder.resolve()
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        for left in [*drafts(place.parent, place.name), *drafts(place, None if whole else first)]:
            _finish_abandoned(left)
        whole = whole and _can_be_renamed(place)
        parent, name = (place.parent, place.name) if whole else (place, first)
        parent.mkdir(parents=True, exist_ok=True)
        draft, held = _new_draft(parent, name)
        with held:
            try:
                yield draft / _BUILD
                _put_in_place(draft, place, first, whole, obsolete)
            finally:
                if sys.platform == "win32":  # an open file cannot be removed there
                    held.close()
                with contextlib.suppress(OSError, ValueError):
                    _finish(draft)


def finish_interrupted(path: Path) -> None:
    """Finish what a killed process had begun to put in place: of a folder, or of a file and those that belong to it.

    Nothing is done where there is no finished draft, or where another process is at work.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # such as what can be no path
        place = path.resolve()
        for draft in [*drafts(place.parent, place.name), *drafts(place)]:
            if (draft / _PLAN).is_file():
                _finish_abandoned(draft)


def _can_be_renamed(folder: Path) -> bool:
    if not folder.exists():
        return True
    with contextlib.suppress(OSError):  # the working folder was removed
        if Path.cwd().is_relative_to(folder):
            return False
    return not folder.is_mount() and os.access(folder.parent, os.W_OK | os.X_OK)


def _new_draft(parent: Path, name: str) -> tuple[Path, Any]:
    """Return a draft, and its lock, which is held until it is closed."""
    while True:
        draft = parent / draft_name(name)
        draft.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another writer took it for abandoned
            held = claim(draft / _LOCK)
            if held is not None:
                (draft / _BUILD).mkdir()
                return draft, held


def _finish_abandoned(draft: Path) -> None:
    """Finish or remove what a killed process left; nothing if a process is at work on it, or another user's was."""
    with contextlib.suppress(OSError, ValueError):
        found = draft.lstat()
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
            return
        names = [path.name for path in draft.iterdir()]
        if (draft / _LOCK).is_file():
            with abandoned(draft / _LOCK):
                _finish(draft)
        elif names and _LOCK not in names:  # it was being removed
            shutil.rmtree(draft)
        elif not names:  # it has just been made; should its process be at work, it makes another
            draft.rmdir()


def _finish(draft: Path) -> None:
    """Carry out what is left of a draft's plan, if it has one, and remove the draft.

    Raises:
        OSError: the operating system refuses; the draft stays.
        ValueError: the plan is damaged.
    """
    plan = _read_plan(draft)
    if plan is not None:
        folder = draft.parent / plan["folder"]
        with _locked(folder):
            _carry_out(draft / _BUILD, folder, plan)
    shutil.rmtree(draft)


def _read_plan(draft: Path) -> _Plan | None:
    """Return the plan of a draft, if it has one.

    Raises:
        ValueError: damaged, or not made here, or it goes beyond its folder.
    """
    if not (draft / _PLAN).is_file():
        return None
    data = read_json(draft / _PLAN)
    conform(data, _Plan, "a plan")
    plan: _Plan = data
    if sys.platform != "win32" and plan["made"] != (draft / _LOCK).lstat().st_ctime_ns:  # there the lock is gone now
        raise ValueError(f"{draft / _PLAN}: was not made here")
    names = [plan["first"], *plan["names"], *plan["gone"], *([] if plan["folder"] == "." else [plan["folder"]])]
    if not all(map(is_name, names)) or any(
        path.is_symlink() for path in (draft / _BUILD, draft.parent / plan["folder"])
    ):
        raise ValueError(f"{draft / _PLAN}: names something outside of its folder")
    return plan


def _put_in_place(draft: Path, folder: Path, first: str, whole: bool, obsolete: Collection[str]) -> None:
    """Give the finished files of a draft their names.

    Raises:
        OSError: the operating system refuses; there is a plan if anything was changed.
    """
    build = draft / _BUILD
    names = sorted(path.name for path in build.iterdir())
    for name in names:
        sync_file(build / name)
    sync_folder(build)
    if whole and not folder.exists():
        try:
            build.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Another writer was faster: it is replaced.
        else:
            sync_folder(folder.parent)
            return
    with _locked(folder):
        gone = [name for name in obsolete if name not in names and (folder / name).is_file()]
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
        if names == [first] and not gone:
            (build / first).replace(folder / first)
            sync_folder(folder)
            return
        made = (draft / _LOCK).lstat().st_ctime_ns
        plan: _Plan = {
            "folder": folder.name if whole else ".",
            "first": first,
            "names": names,
            "gone": gone,
            "exchanged": None,
            "made": made,
        }
        if whole and _exchanged(draft, folder, plan):
            return
        _hold_old(draft, folder, plan)
        _write_plan(draft, plan)
        (folder / first).unlink(missing_ok=True)
        try:
            _carry_out(build, folder, plan)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: not all files could be put in place: {error.strerror or error}",
                hint=f"run it again: they are complete in {draft}, and take their places then",
            ) from error


def _hold_old(draft: Path, folder: Path, plan: _Plan) -> None:
    """Link the files that will go into the draft: to free the space of a large one takes long, and can wait."""
    old = draft / _OLD
    old.mkdir()
    for name in {*plan["names"], *plan["gone"]}:
        with contextlib.suppress(OSError):  # there is none, or the file system has no links
            os.link(folder / name, old / name)


def _write_plan(draft: Path, plan: _Plan) -> None:
    with atomic_path(draft / _PLAN) as temporary:
        temporary.write_text(json.dumps(plan), encoding="utf-8")
    sync_folder(draft.parent)


def _carry_out(build: Path, folder: Path, plan: _Plan) -> None:
    """Do what is left of a plan; nothing if all is done, or if nothing had begun."""
    if plan["exchanged"] is None:
        _move_in(build, folder, plan)
    elif build.stat().st_ino != plan["exchanged"]:
        _empty(build, folder, {*plan["names"], *plan["gone"]})


def _move_in(build: Path, folder: Path, plan: _Plan) -> None:
    # Where there is a first file, it is the new one, or nothing had begun, or the user has put another one there.
    if not (build / plan["first"]).exists() or os.path.lexists(folder / plan["first"]):
        return
    for name in plan["gone"]:
        (folder / name).unlink(missing_ok=True)
    for name in sorted(plan["names"], key=lambda name: name == plan["first"]):
        with contextlib.suppress(FileNotFoundError):  # it was moved before the process was killed
            (build / name).replace(folder / name)
    sync_folder(folder)


def _exchanged(draft: Path, folder: Path, plan: _Plan) -> bool:
    """Exchange a folder with the draft's files, after its other files were linked there; return whether it was done."""
    build, exchange = draft / _BUILD, _exchange()
    if exchange is None:
        return False
    try:
        _link_others(folder, build, {*plan["names"], *plan["gone"]})
        _write_plan(draft, {**plan, "exchanged": build.stat().st_ino})
        exchange(build, folder)
    except OSError:  # of file systems that cannot, mount points, files of another user, ...
        return False
    sync_folder(folder.parent)
    with contextlib.suppress(OSError):  # what is left is hidden, and removed by the next writer
        _empty(build, folder, {*plan["names"], *plan["gone"]})
    return True


def _link_others(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Link all files of a folder into another one, but for those that are replaced.

    Raises:
        OSError: the file system cannot, or the folder is too large or not all this user's.
    """
    folders, count, device = [Path()], 0, old.stat().st_dev
    for inner in folders:
        for item in os.scandir(old / inner):
            there, count = inner / item.name, count + 1
            if str(there) in replaced or str(there).endswith(".vit-hub.tmp"):
                continue
            if count > _MOST_LINKS or len(there.parts) > _MOST_LEVELS:
                raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
            if item.stat(follow_symlinks=False).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if item.is_dir(follow_symlinks=False):
                if not os.access(item.path, os.W_OK | os.X_OK):  # it could not be emptied afterwards
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                (new / there).mkdir()
                folders.append(there)
            else:
                os.link(item.path, new / there, follow_symlinks=False)
    for inner in reversed(folders):
        found = (old / inner).stat()
        os.chown(new / inner, found.st_uid, found.st_gid)
        shutil.copystat(old / inner, new / inner)


def _empty(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Remove the files of a replaced folder; what came into it meanwhile is moved to the new one."""
    for root, folders, files in os.walk(old, topdown=False):
        inner = Path(root).relative_to(old)
        if (new / inner).resolve() != new.resolve() / inner:  # a link has been put there
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        for name in [*files, *(name for name in folders if Path(root, name).is_symlink())]:
            file, other = Path(root, name), new / inner / name
            if str(inner / name) in replaced or _is_same(file, other):
                file.unlink()
            else:
                other.parent.mkdir(parents=True, exist_ok=True)
                file.replace(other)
        if inner.parts:
            Path(root).rmdir()


def _is_same(file: Path, other: Path) -> bool:
    """Return whether two names are of one file."""
    return os.path.lexists(other) and os.path.samestat(file.lstat(), other.lstat())


def _exchange() -> Callable[[Path, Path], None] | None:
    """Return what lets two folders take each other's names in one step; None: the system has no such call."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)

    def exchange(one: Path, other: Path) -> None:
        if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return exchange


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, where there are such, so that one process at a time changes its files."""
    if sys.platform == "win32":
        yield
        return
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), folder.stat()):  # else it was exchanged meanwhile
                yield
                return
        finally:
            os.close(handle)
