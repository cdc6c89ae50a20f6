"""``python -m agents.rledit``: trains an RLEdit policy."""

import sys

import tyro

from agents.hypernetwork import train_command
from agents.rledit import agent
from editenv.renamed import renamed_options

train_command.main(tyro.cli(train_command.Args, args=renamed_options(sys.argv[1:]), description=agent.__doc__))
