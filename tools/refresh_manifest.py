"""Fill in the manifest's hashes, sizes and commits from the servers' metadata. Nothing is downloaded.

python tools/refresh_manifest.py --family dinov2 --family deit
python tools/refresh_manifest.py --check

Sources on Hugging Face get sha256 (the etag of large files), size and commit, files elsewhere their size
(Content-Length: no hash). The TOML text is changed in place and keeps its comments and order. Pinned values that
disagree are reported and never changed; files that no server knows are reported, too. Exit status: 0 no problems, 1
problems, 3 (only with --check) there is something to fill in.
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
        """Replace the line of a key, or add it after the keys that precede it."""
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

    def learn(self, facts: dict[str, str | int], origin: str) -> None:
        """Fill in missing values; if a known value differs, report a problem and fill in nothing."""
        self.problems += [
            f"{key} is pinned as {self.get(key)}, {origin} says {value}"
            for key, value in facts.items()
            if self.get(key) not in (None, str(value))
        ]
        prefix, sha256 = self.get("sha256_prefix"), facts.get("sha256")
        if prefix and sha256 and not str(sha256).startswith(prefix):
            self.problems.append(f"sha256 is known to begin with {prefix}, {origin} says {sha256}")
        new = [key for key in facts if self.get(key) is None]
        if self.problems or not new:
            return
        for key in new:
            self.set(key, facts[key])
        if "sha256" in new:
            self.drop("sha256_prefix")
        names = " and ".join([", ".join(new[:-1]), new[-1]] if len(new) > 1 else new)
        evidence = f"{names}: {origin}"
        self.set("evidence", f"{known}; {evidence}" if (known := self.get("evidence")) else evidence)


def ask_hub(source: Source, date: str) -> None:
    """Ask Hugging Face for the file at the pinned commit, or at ``main`` if none is pinned."""
    repo, file = source.get("repo") or "", source.get("file") or ""
    try:
        found = get_hf_file_metadata(hf_hub_url(repo, file, revision=source.get("revision")), timeout=_TIMEOUT)
    except errors.GatedRepoError:
        if not source.get("gated"):
            source.problems.append('the repository requires a login: add "gated = true"')
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
    """Ask any other server for the length of a file."""
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
    """Yield each source of a family's file: the model's id, the refreshed source, and its old text."""
    for model in text.split(_MODEL)[1:]:
        head, *sources = model.split(_SOURCE)
        model_id = next(quoted for name, quoted, _ in _LINE.findall(head) if name == "id")
        for before in sources:
            source = Source(before)
            if source.get("kind") != "bundled":
                (ask_hub if source.get("kind") == "hf" else ask_server)(source, date)
            yield model_id, source, before


def refresh(path: Path, date: str, check: bool) -> tuple[int, int]:
    """Refresh one family, or print what would change.

    Returns:
        Number of sources that change, and of those with problems.
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
    parser.add_argument("--check", action="store_true", help="write nothing; print what would change")
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
        parser.error(f"there is no family {', '.join(unknown)}; there are {', '.join(families)}")
    results = [refresh(families[name], str(options.date), options.check) for name in options.family or families]
    changed, wrong = (sum(counts) for counts in zip(*results, strict=True))
    print(f"{changed} sources {'to change' if options.check else 'changed'}, {wrong} with problems")
    return 1 if wrong else 3 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
