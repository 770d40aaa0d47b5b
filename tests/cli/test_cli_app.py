"""Behaviour common to all verbs: options, errors, exit statuses, streams, import weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

import vit_hub
from vit_hub.cli import cmd_list, main

Run = Callable[..., Result]
VERBS = main.list_commands(click.Context(main))
HEAVY = ("torch", "transformers", "huggingface_hub", "timm")


def test_verbs_are_the_files() -> None:
    files = Path(cmd_list.__file__).parent.glob("cmd_*.py")
    assert sorted(file.stem.removeprefix("cmd_") for file in files) == VERBS
    assert {"list", "info", "download", "convert", "inspect", "compare", "predict"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(run: Run, verb: str) -> None:
    long, short = run(verb, "--help"), run(verb, "-h")
    assert long.exit_code == short.exit_code == 0
    assert long.stdout == short.stdout
    assert long.stdout.startswith(f"Usage: vit-hub {verb} ")
    for option in ("--json", "-q, --quiet", "--debug"):
        assert option in long.stdout


def test_help_names_every_verb(run: Run) -> None:
    for args in ((), ("--help",), ("-h",)):
        result = run(*args)
        assert result.exit_code == 0
        assert all(f"\n  {verb} " in result.stdout for verb in VERBS)


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"vit-hub {vit_hub.__version__}\n"


@pytest.mark.parametrize("args", [("--help",), ("list",), ("list", "--json"), ("info", "vit-b16"), ("info", "-h")])
def test_looking_around_loads_no_framework(args: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom vit_hub.cli import main\n"
        f"try:\n    main({list(args)!r})\nexcept SystemExit as end:\n    assert not end.code, end\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert not loaded & set(HEAVY)
    # It also pays for what it does not need: numpy alone would take half of the time of `list`.
    assert args[0] == "info" or "numpy" not in loaded


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_import_nothing_heavy(verb: str) -> None:
    program = f"import sys, vit_hub.cli.cmd_{verb}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_errors_are_two_lines_on_stderr(run: Run) -> None:
    result = run("info", "vit-b61")
    assert result.exit_code == 1
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error == "vit-hub: error: no model is called 'vit-b61'"
    assert hint.startswith("hint: did you mean vit-b16")


def test_errors_as_json(run: Run) -> None:
    result = run("info", "vit-b61", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "ModelNotFoundError"
    assert error["message"] == "no model is called 'vit-b61'"
    assert "vit-b16" in error["hint"]


def test_debug_shows_the_traceback(run: Run) -> None:
    assert "Traceback" not in run("info", "vit-b61").stderr
    result = run("info", "vit-b61", "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert "vit-hub: error: no model is called 'vit-b61'" in result.stderr.splitlines()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("lst",), "there is no command 'lst'; did you mean list?"),
        (("xyzzy",), f"there is no command 'xyzzy'; commands: {', '.join(VERBS)}."),
        (("info",), "Missing argument 'MODEL'."),
        (("list", "--colour"), "No such option"),
        (("convert", "a.npz"), "Missing argument 'DST'."),
        (("convert", "a.npz", "b", "--to", "onnx"), "there is no format 'onnx'; `vit-hub export --to onnx` "),
        (
            ("convert", "a.npz", "b", "--to", "huggingface"),
            "there is no format 'huggingface', did you mean hf? Formats",
        ),
        (("convert", "a.npz", "b", "--to", "transformers"), "did you mean hf?"),
        (("convert", "a.npz", "b", "--to", "Open-CLIP"), "did you mean open_clip?"),
        (("convert", "a.npz", "b", "--to", "xyzzy"), "there is no format 'xyzzy'. Formats: canonical, "),
        (("convert", "a.npz", "b", "--to", "hff"), "there is no format 'hff', did you mean hf"),
        (("predict", "vit-b16", "a.png", "--top", "0"), "0 is not in the range"),
    ],
)
def test_wrong_usage_exits_2(run: Run, args: tuple[str, ...], expected: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("vit-hub: error: ")
    assert expected in error
    assert hint.startswith("hint: usage: vit-hub ")
    as_json = run(*args, "--json")
    assert as_json.exit_code == 2
    assert expected in json.loads(as_json.stdout)["error"]["message"]


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), EOFError("two lines")])
def test_the_unexpected_is_called_a_bug(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(words: object, **conditions: object) -> None:
        raise error

    monkeypatch.setattr(cmd_list, "list_models", fail)
    result = run("list")
    assert result.exit_code == 1
    first, hint = result.stderr.strip().splitlines()
    assert first == f"vit-hub: error: this is a bug: {type(error).__name__}: two lines"
    assert "--debug" in hint
    assert "in fail" in run("list", "--debug").stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 320000000000 bytes"),
    ],
)
def test_too_little_memory_is_no_bug(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(words: object, **conditions: object) -> None:
        raise error

    monkeypatch.setattr(cmd_list, "list_models", fail)
    result = run("list")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, "vit-hub: error: not enough memory")


def test_errors_have_public_names(run: Run) -> None:
    error = json.loads(run("download", "vit-b16", "--offline", "--json").stdout)["error"]
    assert error["type"] == "DownloadError"


@pytest.mark.parametrize("args", [(), ("cache",)])
def test_a_group_alone_shows_its_help(run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == run(*args, "--help").stdout
    assert "Commands:" in result.stdout
    assert "..." not in result.stdout.partition("Commands:")[2].partition("Examples:")[0]


def test_system_errors_are_no_bugs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: object, **conditions: object) -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr(cmd_list, "list_models", fail)
    assert run("list").stderr == "vit-hub: error: /secret: Permission denied\n"


def test_interrupt_exits_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(words: object, **conditions: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cmd_list, "list_models", interrupt)
    result = run("list")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_warnings_of_the_library_are_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(words: object, **conditions: object) -> list[str]:
        warnings.warn("mind\nthe gap", stacklevel=1)
        return ["vit-b16.augreg2-in21k-ft-in1k-224"]

    monkeypatch.setattr(cmd_list, "list_models", warn)
    result = run("list", "--json")
    assert result.stderr == "warning: mind the gap\n"
    assert json.loads(result.stdout)
    assert run("list", "--quiet").stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes that close are POSIX's")
@pytest.mark.parametrize("args", [("list",), ("list", "--json"), ("info", "vit-b61", "--json"), ("--help",)])
def test_a_closed_pipe_is_silent(args: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from vit_hub.cli import main; main()", *args]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def on_terminal(*args: object, columns: int = 80, **environment: str) -> str:
    """Return the text that a terminal shows."""
    import fcntl
    import pty
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-c", "from vit_hub.cli import main; main()", *map(str, args)]
    unset = ("COLUMNS", "LINES", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    running = subprocess.Popen(command, stdout=terminal, stderr=terminal, env={**kept, **environment})
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 1 << 16)
        except OSError:  # Linux says so that the other side is closed
            break
        if not part:
            break
        shown += part
    running.wait()
    os.close(controller)
    return shown.decode().replace("\r\n", "\n")


needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")


@needs_terminal
def test_colours_only_where_wanted(run: Run) -> None:
    assert "\x1b[" in on_terminal("info", "vit-b16")
    assert "\x1b[" not in on_terminal("info", "vit-b16", NO_COLOR="1")
    assert "\x1b[" not in run("info", "vit-b16").output


@needs_terminal
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_fit_the_terminal(columns: int, run: Run) -> None:
    shown = on_terminal("list", columns=columns, NO_COLOR="1")
    assert max(map(len, shown.splitlines())) <= columns
    assert "models; `vit-hub info MODEL`" in shown
    # A pipe gets everything, and no advice.
    piped = run("list")
    assert "\ttimm vit_jax\n" in piped.stdout
    assert piped.stderr == ""


@needs_terminal
def test_progress_only_on_a_terminal(run: Run, models: Path, tmp_path: Path) -> None:
    source = models / "classifier.safetensors"
    assert "converting" in on_terminal("convert", source, tmp_path / "a.safetensors")
    assert "converting" not in on_terminal("convert", source, tmp_path / "b.safetensors", "--quiet")
    assert "converting" not in run("convert", source, tmp_path / "c.safetensors").output


def completions(*words: str) -> list[str]:
    """Return the completions that bash offers for the last word."""
    environment = {
        **os.environ,
        "COMP_WORDS": " ".join(("vit-hub", *words)),
        "COMP_CWORD": str(len(words)),
        "_VIT_HUB_COMPLETE": "bash_complete",
    }
    command = [sys.executable, "-c", "from vit_hub.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line.startswith("plain,")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("inf",), "info"),
        (("info", "vit-b1"), "vit-b16"),
        (("predict", "vit-b16.orig-in21k-ft-in1k-2"), "vit-b16.orig-in21k-ft-in1k-224"),
        (("convert", "a", "b", "--to", "vit_"), "vit_jax"),
        (("convert", "a", "b", "--set", "num_h"), "num_heads="),
        (("list", "--family", "aug"), "augreg"),
        (("list", "--license", "comm"), "commercial"),
        (("list", "--sort", "par"), "params"),
    ],
)
def test_the_shell_completes(words: tuple[str, ...], expected: str) -> None:
    assert expected in completions(*words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_VIT_HUB_COMPLETE={shell}_complete" in result.stdout
