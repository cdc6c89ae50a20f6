"""The command of the OpenEnv server; needs the extra ``openenv``.

python -m editenv.language_agents.serve --edits-per-step 5 --horizon 10
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from editenv.arguments import PositiveInt, check_fields


@dataclass
class ServerArgs:
    """Serves LifelongEdit-v1 to OpenEnv clients.

    Attributes:
        model: A name of `editenv models`, a Hugging Face folder, or a hub id.
        dataset: What is edited, as docs/reference/data_formats.md names a data set.
        horizon: Batches of an episode.
        modules: Edited modules, as endings of dotted names; by default the model's own.
        sessions: Episodes at the same time.
    """

    model: str = "atlas"
    dataset: str = "atlas"
    split: str = "train"
    edits_per_step: PositiveInt = 5
    horizon: PositiveInt = 10
    modules: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    sessions: PositiveInt = 4
    host: str = "127.0.0.1"
    port: PositiveInt = 8000

    def __post_init__(self) -> None:
        check_fields(self)


def main() -> None:
    """The command.

    Raises:
        ValueError: If an argument of the environment is out of range; the server is not begun then.
    """
    args = tyro.cli(ServerArgs)
    try:
        import uvicorn

        from editenv.language_agents.openenv_server import make_app
    except ImportError as error:
        raise SystemExit(f"the extra openenv is not installed ({error}): pip install 'lifelongedit[openenv]'") from None
    from editenv.language_agents.episode import TextEpisode

    arguments = {
        "model": args.model,
        "dataset": args.dataset,
        "split": args.split,
        "edits_per_step": args.edits_per_step,
        "horizon": args.horizon,
        "modules": args.modules or None,
        "device": args.device,
        "dtype": args.dtype,
        "redraw": args.dataset == "atlas" and args.split == "train",
    }
    TextEpisode(**arguments).close()  # what is wrong with them is said now, and the model is loaded
    uvicorn.run(make_app(args.sessions, **arguments), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
