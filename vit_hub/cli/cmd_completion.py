"""``vit-hub completion``: Tab completion of commands, options and model names, as a script or set up for good."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output
from vit_hub.errors import VitHubError

_SHELLS = ("bash", "zsh", "fish")
# What --install writes: nothing happens where vit-hub is not on the path any more.
_LINES = {
    "bash": 'command -v vit-hub >/dev/null && eval "$(vit-hub completion bash)"',
    "zsh": "command -v vit-hub >/dev/null && { (( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }; } "
    '&& eval "$(vit-hub completion zsh)"',
    "fish": "command -q vit-hub; and vit-hub completion fish | source",
}
_EPILOG = """\b
Examples:
  vit-hub completion --install               for the shell in $SHELL, from its next start on
  eval "$(vit-hub completion bash)"          in this bash only
  vit-hub completion fish | source           in this fish only
"""


@click.command("completion", cls=Verb, epilog=_EPILOG, short_help="Set up Tab completion, or print its script.")
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.option("--install", is_flag=True, help="Add one line to the shell's start-up file, unless it is there.")
@click.pass_context
def command(ctx: click.Context, output: Output, shell: str | None, install: bool) -> None:
    """Print a shell completion script, or set it up for good with --install. The default SHELL is the one in $SHELL.

    Start-up files: ~/.bashrc, ~/.zshrc (or in ZDOTDIR), ~/.config/fish/conf.d/vit-hub.fish (or in XDG_CONFIG_HOME).
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in _SHELLS:
        raise click.UsageError(f"name the shell: {', '.join(_SHELLS)}; $SHELL does not name one of them.")
    if install:
        file, changed = _install(shell)
        if output.json:
            output.document({"shell": shell, "file": file, "changed": changed})
        else:
            output.lines([str(file)])
            output.note(f"open a new {shell} to use it" if changed else "it was there already")
        return
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "vit-hub", "_VIT_HUB_COMPLETE").source()
    if output.json:
        output.document({"shell": shell, "script": script})
    else:
        output.lines(script.splitlines())


def _install(shell: str) -> tuple[Path, bool]:
    """Add the line to the shell's start-up file; return the file, and whether it was changed.

    Raises:
        VitHubError: the user has no home folder.
        OSError: the file cannot be written.
    """
    file = _start_up_file(shell)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if _LINES[shell] in text:
        return file, False
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if text and not text.endswith("\n") else "") + _LINES[shell] + "\n")
    return file, True


def _start_up_file(shell: str) -> Path:
    try:
        home = Path.home()
    except RuntimeError as error:
        raise VitHubError("this user has no home folder with start-up files", hint="set HOME") from error
    if shell == "zsh":
        return Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
    if shell == "fish":
        return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish" / "conf.d" / "vit-hub.fish"
    return home / ".bashrc"
