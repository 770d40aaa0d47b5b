"""``vit-hub completion``: print a script for Tab completion of commands, options and model names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output

_EPILOG = """\b
Add the line for your shell to its start-up file:
  bash  eval "$(vit-hub completion bash)"      ~/.bashrc
  zsh   eval "$(vit-hub completion zsh)"       ~/.zshrc
  fish  vit-hub completion fish | source       ~/.config/fish/config.fish
"""


@click.command("completion", cls=Verb, epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, output: Output, shell: str) -> None:
    """Print a shell completion script."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "vit-hub", "_VIT_HUB_COMPLETE").source()
    if output.json:
        output.document({"shell": shell, "script": script})
    else:
        output.lines([script])
