"""The environment for agents that read and write text: a language model, or a script that speaks JSON.

* :mod:`editenv.language_agents.choices`: what is chosen, and how it is read.
* :mod:`editenv.language_agents.episode`: an episode in text.
* :mod:`editenv.language_agents.openenv_server` and ``openenv_client``: the same behind an OpenEnv server (extra
  ``openenv``); :mod:`editenv.language_agents.serve` is its command.
* :mod:`editenv.language_agents.verifiers_env`: the same as an environment of the package verifiers (extra
  ``verifiers``).
"""
