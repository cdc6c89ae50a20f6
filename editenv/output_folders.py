"""Folders that commands write to: never those that they read from."""

from pathlib import Path

from editenv.models import model_path


def check_output(output: Path, model: str, **others: str | Path | None) -> None:
    """Whether what is written to a folder would come to lie in one that is read.

    A folder reached by a link, or by another path, is the same folder.

    Args:
        output: Where is to be written; need not be there yet.
        model: Name, folder or hub id of the model that is read: nothing is written anywhere inside its folder.
        others: By what they are (``policy``, ``training``, ...), what else is read: nothing is written beside its files.

    Raises:
        ValueError: If it would; names both.
    """
    target = output.expanduser().resolve()
    around = [folder for folder in (target, *target.parents) if folder.is_dir()]
    source = Path(model_path(model))
    if source.is_dir() and any(folder.samefile(source) for folder in around):
        raise ValueError(
            f"{output} is in the place of the model that is read, {model}, which is never changed; choose another folder"
        )
    for what, given in others.items():
        folder = Path(given).expanduser() if given is not None else None
        if folder is not None and folder.is_dir() and target.is_dir() and target.samefile(folder):
            raise ValueError(f"{output} is the folder of the {what} that is read; choose another folder")
