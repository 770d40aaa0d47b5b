"""Choosing a model: conditions and forms of ``list``, ``recommend``; and ``env``, ``completion --install``."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import vit_hub
from vit_hub.choosing import recommend
from vit_hub.errors import ConfigError, ModelNotFoundError
from vit_hub.registry import get_entry, list_models

Run = Callable[..., Result]
SMALL = ("--max-params", "30M", "--license", "commercial")


def ids(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.parametrize(
    ("args", "conditions"),
    [
        (("dinov2", "base"), {"pattern": "base dinov2"}),
        (("--license", "commercial"), {"license": "commercial"}),
        (("--max-params", "6.5m"), {"max_params": 6_500_000}),
        (("--max-params", "1.1B", "--no-head"), {"max_params": 1.1e9, "head": False}),
        (("--max-gflops", "10", "--sort", "gflops"), {"max_gflops": 10, "sort": "gflops"}),
        (("--min-top1", "88", "--sort", "-top1"), {"min_top1": 88, "sort": "-top1"}),
        (("--head", "--format", "vit_jax", "--image-size", "384"),
         {"head": True, "format": "vit_jax", "image_size": 384}),
        (("--filter", "patch_size=14", "--filter", "pool=map"), {"filter": {"patch_size": 14, "pool": "map"}}),
        (("b16", "--family", "augreg", "--limit", "2"), {"pattern": "b16", "family": "augreg", "limit": 2}),
    ],
)  # fmt: skip
def test_the_command_and_the_library_choose_alike(run: Run, args: tuple[str, ...], conditions: dict[str, Any]) -> None:
    assert ids(run("list", "-q", *args)) == vit_hub.list_models(**conditions) != []


def test_forms_have_the_same_rows(run: Run, answer: Callable[..., Any]) -> None:
    args = ("list", "vit-sam", "--sort", "gflops")
    piped = run(*args).stdout
    assert piped == run(*args, "--tsv").stdout
    rows = list(csv.DictReader(io.StringIO(piped), delimiter="\t"))
    assert rows == list(csv.DictReader(io.StringIO(run(*args, "--csv").stdout)))
    lines = [json.loads(line) for line in run(*args, "--jsonl").stdout.splitlines()]
    assert lines == answer(*args)
    header, rule, *table = run(*args, "--markdown").stdout.splitlines()
    assert header.startswith("| model | params | GFLOP | ")
    assert set(rule) == set("| -:")
    assert len(rows) == len(lines) == len(table) == len(list_models("vit-sam"))
    for row, line, cells in zip(rows, lines, table, strict=True):
        assert row["id"] == line["id"] == cells.split()[1]
        assert (int(row["params"]), int(row["flops"])) == (line["params"], line["flops"])
        assert row["image_size"] == "x".join(map(str, line["image_size"]))
        assert row["formats"].split() == line["formats"]


def test_a_fact_that_is_unknown_is_empty(run: Run) -> None:
    [row] = csv.DictReader(io.StringIO(run("list", "dinov2-b14.lvd142m-518", "--csv").stdout))
    assert (row["top1"], row["top1_data"]) == ("", "")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (("--license", "mitt"), "no model is of licence 'mitt'", "licences: apache-2.0, "),
        (("--format", "onnx"), "no model is of format 'onnx'", "formats: big_vision, "),
        (("dinov2", "--max-params", "1M"),
         "no model meets all conditions: --max-params 1.00M, 'dinov2'", "without --max-params 1.00M"),
        (("--family", "augreg", "--filter", "patch_size=14"),
         "no model meets all conditions: --family augreg, --filter patch_size=14x14", "37 models without --filter"),
        (("base", "dinov9"), "no model's name matches 'dinov9'", "did you mean"),
    ],
)  # fmt: skip
def test_no_match_says_which_condition_to_give_up(run: Run, args: tuple[str, ...], message: str, hint: str) -> None:
    result = run("list", *args)
    assert result.exit_code == 1
    error, remedy = result.stderr.splitlines()
    assert error == f"vit-hub: error: {message}"
    assert hint in remedy


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--max-params", "many"), "'many' is no number of parameters; write 30M"),
        (("--max-params", "0"), "write 30M"),
        (("--max-params", "3MM"), "write 30M"),
        (("--sort", "size"), "name, params, gflops, image-size, top1"),
        (("--filter", "patchsize=14"), "did you mean patch_size or"),
        (("--image-size", "big"), "write 384 or 384x512"),
    ],
)
def test_wrong_conditions_are_wrong_usage(run: Run, args: tuple[str, ...], message: str) -> None:
    result = run("list", *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_features_are_recommended_by_published_results(run: Run, answer: Callable[..., Any]) -> None:
    found = answer("recommend", "--task", "features", *SMALL)
    entry = get_entry(found["id"])
    assert entry.params is not None
    assert entry.params <= 30e6
    assert not entry.restricted
    linear = {
        name: metric.value
        for name in list_models(max_params=30e6, license="commercial")
        for metric in get_entry(name).metrics
        if metric.name.startswith("imagenet-1k linear top-1")
    }
    assert linear[found["id"]] == max(linear.values())
    assert sorted(found["ranked"]) == sorted(linear)
    assert {*found["ranked"], *found["unranked"]} == {*list_models(max_params=30e6, license="commercial")}
    text = run("recommend", "--task", "features", *SMALL).stdout
    for expected in (
        found["id"],
        f"{linear[found['id']]} % imagenet-1k linear top-1",
        found["results"][0]["evidence"],
        "apache-2.0, an open one",
        f"{len(found['unranked'])} models without such a result on record, which may be better",
        f"vit-hub embed {found['id']}",
    ):
        assert expected in text
    assert ids(run("recommend", "--task", "features", *SMALL, "-q")) == [found["id"]]


def test_classifiers_are_recommended_by_their_own_heads(answer: Callable[..., Any]) -> None:
    found = answer("recommend", "--task", "classify", "--max-gflops", "10")
    best = list_models(head=True, max_gflops=10, sort="top1")[0]
    assert found["id"] == best == found["ranked"][0]
    assert all(get_entry(name).labels for name in (*found["ranked"], *found["unranked"]))


def test_what_is_not_on_record_is_said(run: Run) -> None:
    result = run("recommend", "mae-b16.in1k-224", "--task", "features")
    assert result.exit_code == 1
    assert "none of the 1 models that meet the conditions has a published imagenet-1k linear top-1" in result.stderr
    assert "not on record" in run("recommend", "--task", "classify").stdout
    assert run("recommend", "--task", "features", "--max-params", "1k").exit_code == 1
    assert run("recommend").exit_code == 2
    with pytest.raises(ConfigError, match="tasks: features, classify"):
        recommend("segment")
    with pytest.raises(ModelNotFoundError):
        recommend("classify", family="dino")


def environment(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vit_hub", "env", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})


def test_env_says_what_a_bug_report_needs_and_no_secrets(tmp_path: Path) -> None:
    variables = {
        "HF_TOKEN": "hf_verysecret",
        "HF_ENDPOINT": "https://me:verysecret@hub.example.org",
        "ALL_PROXY": "socks5://me:verysecret@127.0.0.1:9",
        "VIT_HUB_CACHE": str(tmp_path / "cache"),
    }
    as_data, as_text = (environment(*args, **variables).stdout for args in (("--json",), ()))
    assert "verysecret" not in as_data + as_text
    found = json.loads(as_data)
    assert found["vit_hub"] == vit_hub.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["packages"]["torch"].startswith("2.")
    assert found["extras"]["onnx"].keys() == {"onnx", "onnxruntime", "onnxscript"}
    assert found["devices"][0].startswith("cpu, ")
    assert found["cache"]["folder"] == variables["VIT_HUB_CACHE"]
    assert found["endpoint"] == "https://hub.example.org"
    assert found["login"] == "a token in HF_TOKEN"
    assert found["variables"]["ALL_PROXY"] == "socks5://127.0.0.1:9"
    assert str(tmp_path) in as_text
    assert len(environment("-q", **variables).stdout.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="start-up files of POSIX shells")
@pytest.mark.parametrize(
    ("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", ".config/fish/conf.d/vit-hub.fish")]
)
def test_completion_is_installed_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str, file: str
) -> None:
    for name in ("ZDOTDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    start = tmp_path / file
    start.parent.mkdir(parents=True, exist_ok=True)
    start.write_text("echo mine")
    assert ids(run("completion", "--install")) == [str(start)]
    once = start.read_text()
    assert re.fullmatch(r"echo mine\n[^\n]*vit-hub completion \w+[^\n]*\n", once)
    assert ids(run("completion", shell, "--install")) == [str(start)]
    assert start.read_text() == once


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
def test_the_installed_line_completes_in_bash(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run("completion", "bash", "--install")
    program = tmp_path / "bin" / "vit-hub"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vit_hub "$@"\n')
    program.chmod(0o755)
    script = f". {tmp_path}/.bashrc; complete -p vit-hub"
    for path, code in ((f"{program.parent}:{os.environ['PATH']}", 0), ("/usr/bin:/bin", 1)):
        done = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert (done.returncode, "_vit_hub_completion" in done.stdout) == (code, not code), done.stderr


def test_completion_asks_for_the_shell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/dash")
    result = run("completion")
    assert result.exit_code == 2
    assert "name the shell: bash, zsh, fish" in result.stderr


def test_short_names_of_the_cache_commands(run: Run) -> None:
    run("download", "vit-nano-digits")
    listed = run("ls").stdout
    assert "vit-nano-digits" in listed
    assert listed == run("cache", "ls").stdout == run("cache", "list").stdout
    [path] = ids(run("rm", "vit-nano-digits"))
    assert not Path(path).exists()
    assert run("cache", "remove", "vit-nano-digits").exit_code == 1
    assert run("rm", "--help").stdout == run("cache", "rm", "--help").stdout
