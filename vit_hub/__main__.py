"""``python -m vit_hub``: the command ``vit-hub``."""

from vit_hub.cli import main

if __name__ == "__main__":
    main()
