"""``python -m agents.rledit``: trains an RLEdit policy."""

import sys

import tyro

import agents.rledit
from agents.hypernetwork.arguments import Args
from editenv.renamed import renamed_options


def main() -> None:
    """Entry point; a usage error is told before torch is imported."""
    args = tyro.cli(Args, args=renamed_options(sys.argv[1:]), description=agents.rledit.__doc__)

    from agents.hypernetwork import train_command
    from agents.rledit.trainer import RLEditTrainer

    train_command.run(args, RLEditTrainer)


if __name__ == "__main__":
    main()
