"""``python -m agents.rledit``: trains an RLEdit policy."""

import sys

import tyro

import agents.rledit
from agents.hypernetwork import train_command
from editenv.renamed import renamed_options

args = tyro.cli(train_command.Args, args=renamed_options(sys.argv[1:]), description=agents.rledit.__doc__)

from agents.rledit.trainer import RLEditTrainer  # noqa: E402 - a usage error is told before torch is imported

train_command.main(args, RLEditTrainer)
