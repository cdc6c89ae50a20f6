"""``python -m agents.rledit``: trains an RLEdit policy."""

import tyro

from agents.hypernetwork import train_command
from agents.rledit import agent

train_command.main(tyro.cli(train_command.Args, description=agent.__doc__))
