r"""The methods' other forms as rows: where papers and public code disagree, and the papers' own values.

docs/reference/papers_and_code.md explains them.

    python -m benchmarks.run --suite atlas-50x20 --agents benchmarks.forms:rect_20 benchmarks.forms:prune_edited \
        --out runs/forms

Each has the settings chosen for the embedded model, but for what its name says.
"""

from collections.abc import Callable
from typing import Any

from agents.base import Agent
from agents.registry import make_method
from agents.settings import merged, read_settings


def _form(method: str, **changes: Any) -> Callable[[], Agent]:
    """Makes the method with some of its chosen settings changed; objects of settings are merged."""
    return lambda: make_method(method, merged(read_settings(method), changes))


# Values and keys must not depend on what came before the prompt: five texts of the model's own before it.
rome_prefixes = _form("rome", value={"prefixes": 5})
rome_public = _form("rome", value={"prefixes": 5}, keys="public")
memit_prefixes = _form("memit", value={"prefixes": 5})

rect_20 = _form("rect", keep=0.2)
rect_40 = _form("rect", keep=0.4)

prune_paper = _form("prune", base=1.2)
prune_edited = _form("prune", onto="edited")
prune_every_batch = _form("prune", every_batch=True)

alphaedit_paper = _form("alphaedit", threshold=1e-2, ridge=1.0)
alphaedit_public = _form("alphaedit", threshold=2e-2, ridge=10.0)

# At the subject's last token, for suites that edit layers below the last one.
memit_subject = _form("memit", value={"token": "subject_last"})
alphaedit_subject = _form("alphaedit", value={"token": "subject_last"})
