"""Fills in what servers say of the manifest's files: sha256, size and commit. Nothing is downloaded.

python tools/refresh_manifest.py --family dinov2 --family deit
python tools/refresh_manifest.py --check

Sources on Hugging Face get sha256 (the etag of large files), size and commit, files elsewhere their size
(Content-Length: no hash). The TOML text is changed in place, with its comments and order. What is pinned already and
disagrees is never touched but reported, and so is what no server knows. Status: 0 nothing wrong, 1 something is, 3
(only with --check) there is something to fill in.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

from vit_hub.converters.containers.atomic import atomic_path
from vit_hub.errors import first_line
from vit_hub.weights_manifest import FOLDER

_MODEL, _SOURCE = "\n[[model]]\n", "\n[[model.sources]]\n"
_LINE = re.compile(r'^(\w+) = (?:"(.*)"|(\w+))$', re.MULTILINE)
_SHA256 = re.compile("[0-9a-f]{64}")
_TIMEOUT = 30.0
# The order of a source's keys in the manifest, as far as this tool writes them.
_PLACE = ("kind", "format", "repo", "file", "file_assumed", "url")
_ORDER = (*_PLACE, "revision", "sha256", "sha256_prefix", "size", "evidence")


@dataclass
class Source:
    """The text of one ``[[model.sources]]`` table."""

    text: str
    problems: list[str] = field(default_factory=list)

    def get(self, key: str) -> str | None:
        return next((quoted or bare for name, quoted, bare in _LINE.findall(self.text) if name == key), None)

    @property
    def place(self) -> str:
        return self.get("url") or f"{self.get('repo')}/{self.get('file')}"

    def set(self, key: str, value: str | int) -> None:
        """Replaces the line of a key, or adds it after those that stand before it."""
        line = f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"'
        lines = self.text.split("\n")
        keys = [found[1] if (found := _LINE.fullmatch(text)) else "" for text in lines]
        if key in keys:
            lines[keys.index(key)] = line
        else:
            before = _ORDER[: _ORDER.index(key)]
            lines.insert(max(index for index, name in enumerate(keys) if name in before) + 1, line)
        self.text = "\n".join(lines)

    def drop(self, key: str) -> None:
        self.text = re.sub(rf"^{key} = .*\n", "", self.text, flags=re.MULTILINE)

    def learn(self, facts: dict[str, str | int], who: str) -> None:
        """Fills in what is not known; what is known and differs is a problem, and then nothing is filled in."""
        self.problems += [
            f"{key} is pinned as {self.get(key)}, {who} says {value}"
            for key, value in facts.items()
            if self.get(key) not in (None, str(value))
        ]
        prefix, sha256 = self.get("sha256_prefix"), facts.get("sha256")
        if prefix and sha256 and not str(sha256).startswith(prefix):
            self.problems.append(f"sha256 is known to begin with {prefix}, {who} says {sha256}")
        new = [key for key in facts if self.get(key) is None]
        if self.problems or not new:
            return
        for key in new:
            self.set(key, facts[key])
        if "sha256" in new:
            self.drop("sha256_prefix")
        names = " and ".join([", ".join(new[:-1]), new[-1]] if len(new) > 1 else new)
        told = f"{names}: {who}"
        self.set("evidence", f"{known}; {told}" if (known := self.get("evidence")) else told)


def ask_hub(source: Source, date: str) -> None:
    """Asks Hugging Face for what is at the pinned commit, or at ``main`` where none is pinned."""
    repo, file = source.get("repo") or "", source.get("file") or ""
    try:
        found = get_hf_file_metadata(hf_hub_url(repo, file, revision=source.get("revision")), timeout=_TIMEOUT)
    except errors.GatedRepoError:
        if not source.get("gated"):
            source.problems.append('the repository wants a login: add "gated = true"')
        return
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, httpx2.HTTPError, OSError) as error:
        source.problems.append(f"{type(error).__name__}: {first_line(error)}")
        return
    facts: dict[str, str | int] = {}
    if found.etag and _SHA256.fullmatch(found.etag):
        facts["sha256"] = found.etag
    if found.size is not None:
        facts["size"] = found.size
    if found.commit_hash:
        facts["revision"] = found.commit_hash
    source.learn(facts, f"Hugging Face's metadata, {date}")
    if not source.problems:
        source.drop("file_assumed")


def ask_server(source: Source, date: str) -> None:
    """Asks any other server for the length of a file."""
    try:
        headers = {"Accept-Encoding": "identity"}
        reply = httpx2.head(source.get("url") or "", headers=headers, follow_redirects=True, timeout=_TIMEOUT)
        reply.raise_for_status()
    except httpx2.HTTPError as error:
        source.problems.append(f"{type(error).__name__}: {first_line(error)}")
        return
    length = reply.headers.get("Content-Length")
    if length is not None:
        source.learn({"size": int(length)}, f"the server's Content-Length, {date}")


def refreshed(text: str, date: str) -> Iterator[tuple[str, Source, str]]:
    """Each source of a family's file: the model's id, the source as it is now, and its text as it was."""
    for model in text.split(_MODEL)[1:]:
        head, *sources = model.split(_SOURCE)
        model_id = next(quoted for name, quoted, _ in _LINE.findall(head) if name == "id")
        for before in sources:
            source = Source(before)
            if source.get("kind") != "bundled":
                (ask_hub if source.get("kind") == "hf" else ask_server)(source, date)
            yield model_id, source, before


def refresh(path: Path, date: str, check: bool) -> tuple[int, int]:
    """Brings one family up to date, or says what that would change.

    Returns:
        How many sources change, and how many have problems.
    """
    text = path.read_text(encoding="utf-8")
    changed = wrong = 0
    for model_id, source, before in refreshed(text, date):
        for problem in source.problems:
            print(f"{path.name}: {model_id}: {source.place}: {problem}", file=sys.stderr)
        wrong += bool(source.problems)
        if source.text != before:
            changed += 1
            old, new = before.splitlines(), source.text.splitlines()
            for sign, lines, others in (("-", old, new), ("+", new, old)):
                for line in lines:
                    if line not in others:
                        print(f"{path.name}: {model_id}: {sign} {line}")
            text = text.replace(_SOURCE + before, _SOURCE + source.text, 1)
    if changed and not check:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return changed, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="only this family; may be given again")
    parser.add_argument("--check", action="store_true", help="write nothing; say what would change")
    parser.add_argument(
        "--date", type=datetime.date.fromisoformat, default=datetime.date.today(), help="of the evidence"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the TOML files")
    options = parser.parse_args()
    families = {
        found[1]: path
        for path in sorted(options.folder.glob("*.toml"))
        if (found := re.search(r'^family = "(.*)"$', path.read_text(encoding="utf-8"), re.MULTILINE))
    }
    unknown = sorted(set(options.family or ()) - set(families))
    if unknown:
        parser.error(f"no family is called {', '.join(unknown)}; there are {', '.join(families)}")
    results = [refresh(families[name], str(options.date), options.check) for name in options.family or families]
    changed, wrong = (sum(counts) for counts in zip(*results, strict=True))
    print(f"{changed} sources {'to change' if options.check else 'changed'}, {wrong} with problems")
    return 1 if wrong else 3 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
