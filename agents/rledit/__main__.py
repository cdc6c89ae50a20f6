"""``python -m agents.rledit``: trains an RLEdit policy."""

import sys

import tyro

import agents.rledit
from agents.hypernetwork.arguments import Args
from editenv.renamed import renamed_options

args = tyro.cli(Args, args=renamed_options(sys.argv[1:]), description=agents.rledit.__doc__)

# A usage error is told before torch is imported.
from agents.hypernetwork import train_command  # noqa: E402
from agents.rledit.trainer import RLEditTrainer  # noqa: E402

train_command.main(args, RLEditTrainer)
