"""``editenv diff``: what a run has changed in the weights and in what the model says; and how two runs differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load

from agents.editing import summary
from agents.editing.history import base_model
from agents.editing.reported import reported
from agents.editing.run import Run, read_lines
from agents.editing.valid_json import valid_json
from editenv.data.text import one_line, printable
from editenv.delta_files import read_delta
from editenv.deltas import Delta, LowRank, dense, low_rank_sum, squared_norm
from editenv.memories import deltas_of

LISTED = 10
"""Corrections and questions of a kind that are listed."""

MOST_OF_IT = 0.9
"""Share of a change's squared norm that is in as many directions as are counted."""


def diff(
    output: Path,
    other: Path | None = None,
    model: str | None = None,
    dtype: str = "float32",
    as_json: bool = False,
) -> None:
    """Prints what one run has changed, or what sets two apart.

    Args:
        output: Folder of a run, finished or stopped.
        other: Folder of another one.
        model: The base model; that of each run's report by default.
        dtype: The precision that the runs edited in.
        as_json: One JSON object.

    Raises:
        FileNotFoundError: If a folder has no journal.
        ValueError: If nothing was edited, or a file is not what the journal says.
    """
    changes = [_Changes.of(folder, model, dtype) for folder in (output, other) if folder is not None]
    reports = [change.report() for change in changes]
    result = reports[0] if other is None else _two(changes, reports)
    if as_json:
        print(valid_json(result, ensure_ascii=False))
    elif other is None:
        _show_one(output, result)
    else:
        _show_two((output, other), result)


@dataclass(frozen=True)
class _Changes:
    """What a run has changed.

    Attributes:
        folder: Of the run.
        deltas: By module the sum of what was added to its weight.
        norms: By module the Frobenius norm of the weight before.
    """

    folder: Path
    deltas: dict[str, Delta]
    norms: dict[str, float]

    @classmethod
    def of(cls, folder: Path, model: str | None, dtype: str) -> "_Changes":
        from editenv.language_model.editable_lm import EditableLM
        from editenv.models import load_model

        deltas = total_change(_actions(folder))
        if not deltas:
            raise ValueError(f"{folder}: no batch of the run was kept, so nothing was changed")
        lm = EditableLM(*load_model(model or base_model(folder), dtype=dtype), list(deltas))
        return cls(folder, deltas, {name: float(lm.initial_weight(name).float().norm()) for name in deltas})

    def report(self) -> dict[str, Any]:
        """By module what was changed; corrections and unrelated answers, if the run was evaluated."""
        modules = {}
        for name, delta in self.deltas.items():
            squares = singular_values(delta).double().square()
            cutoff = (max(delta.shape) * torch.finfo(torch.float32).eps) ** 2 * squares[:1]
            shares = squares.cumsum(0) / squares.sum().clamp_min(1e-300)
            modules[name] = {
                "shape": list(delta.shape),
                "norm": float(squared_norm(delta).sqrt()),
                "relative_norm": float(squared_norm(delta).sqrt()) / self.norms[name],
                "rank": int((squares > cutoff).sum()),
                "directions": int((shares < MOST_OF_IT).sum()) + 1,
            }
        corrections, answers = reported(self.folder), reported(self.folder, "unrelated.jsonl")
        report: dict[str, Any] = {"modules": modules}
        if corrections is not None and answers is not None:
            report["said"] = [_named(row) for row in corrections if row["begins_right"]]
            report["not_said"] = [_named(row) for row in corrections if not row["begins_right"]]
            report["unrelated"] = {
                "asked": len(answers),
                "changed": [summary.asked_as(row) for row in answers if row["changed"]],
            }
        return report


def _actions(folder: Path) -> Iterable[dict[str, Delta]]:
    """The deltas of a run's batches, in order."""
    for entry in Run.of(read_lines(folder / "journal.jsonl")).entries:
        path = folder / "batches" / f"{entry['batch']:06d}.safetensors"
        content = path.read_bytes()
        if sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"{path} is not what the journal says was written")
        for changes in read_delta(load(content)):
            deltas = deltas_of(changes)
            if len(deltas) < len(changes):
                raise ValueError(
                    f"{folder}: this run put something beside the model and changed no weight, which is what `editenv diff` "
                    "compares; `editenv log` lists what it did"
                )
            yield deltas


def total_change(actions: Iterable[Mapping[str, Delta]]) -> dict[str, Delta]:
    """By module the sum of all deltas; in factors as long as these are fewer numbers than the matrix."""
    totals: dict[str, Delta] = {}
    for deltas in actions:
        for name, delta in deltas.items():
            totals[name] = _sum(totals[name], delta) if name in totals else delta
    return totals


def _sum(one: Delta, other: Delta) -> Delta:
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        rank = one.left.shape[1] + other.left.shape[1]
        if rank * sum(one.shape) < one.shape[0] * one.shape[1]:
            return low_rank_sum((one, other), one.shape, one.left.device)
    return dense(one) + dense(other)


def singular_values(delta: Delta) -> torch.Tensor:
    """``(r,)``, the largest first; of factors without making the matrix."""
    if isinstance(delta, LowRank):
        left, right = (torch.linalg.qr(factor.double(), mode="r")[1] for factor in (delta.left, delta.right.T))
        return torch.linalg.svdvals(left @ right.T)
    return torch.linalg.svdvals(delta)


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "prompt", "form", "question", "target", "said") if name in row}


def _two(changes: Sequence[_Changes], reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What two runs have in common and what not; ``cosine`` is that of the two changes of a module."""
    modules = {}
    for name in dict.fromkeys([*reports[0]["modules"], *reports[1]["modules"]]):
        sides = [report["modules"].get(name) for report in reports]
        row: dict[str, Any] = {"relative_norms": [side and side["relative_norm"] for side in sides]}
        row["ranks"] = [side and side["rank"] for side in sides]
        if all(sides) and sides[0]["shape"] == sides[1]["shape"]:
            one, two = (dense(change.deltas[name]).flatten().double() for change in changes)
            row["cosine"] = float(torch.nn.functional.cosine_similarity(one, two, dim=0))
        modules[name] = row
    result: dict[str, Any] = {"modules": modules}
    if all("said" in report for report in reports):
        said, not_said = ([_by_texts(report[kind]) for report in reports] for kind in ("said", "not_said"))
        result["said_by_both"] = len(said[0].keys() & said[1].keys())
        result["said_by_none"] = len(not_said[0].keys() & not_said[1].keys())
        result["said_by_first"] = [said[0][key] for key in said[0] if key in not_said[1]]
        result["said_by_second"] = [said[1][key] for key in said[1] if key in not_said[0]]
        result["asked_of_first"] = [
            row for key, row in (said[0] | not_said[0]).items() if key not in said[1] | not_said[1]
        ]
        result["asked_of_second"] = [
            row for key, row in (said[1] | not_said[1]).items() if key not in said[0] | not_said[0]
        ]
        changed = [set(report["unrelated"]["changed"]) for report in reports]
        result["unrelated"] = {
            "changed_by_both": sorted(changed[0] & changed[1]),
            "changed_by_first": sorted(changed[0] - changed[1]),
            "changed_by_second": sorted(changed[1] - changed[0]),
        }
    return result


def _by_texts(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["prompt"], row["target"]): row for row in rows}


# -- for people -----------------------------------------------------------------------------------------------------------


def _show_one(output: Path, report: Mapping[str, Any]) -> None:
    table = Table("module", "change / weight", "rank", f"{MOST_OF_IT:.0%} in", title_justify="left", title=str(output))
    for name, row in report["modules"].items():
        full = min(row["shape"])
        table.add_row(name, _percent(row["relative_norm"]), f"{row['rank']} of {full}", str(row["directions"]))
    Console().print(table, markup=False)
    if "said" not in report:
        print("The run was not evaluated yet: the same `editenv edit` again does that.")
        return
    print(f"{len(report['said'])} corrections are said, {len(report['not_said'])} are not")
    _list(
        [f'{row["id"]}: {summary.asked_as(row)} "{row["said"]}", not "{row["target"]}"' for row in report["not_said"]]
    )
    unrelated = report["unrelated"]
    print(f"{len(unrelated['changed'])} of {unrelated['asked']} unrelated answers changed")
    _list(unrelated["changed"])


def _show_two(folders: tuple[Path, Path], result: Mapping[str, Any]) -> None:
    table = Table("module", "first: change / weight", "second", "ranks", "cosine")
    for name, row in result["modules"].items():
        norms = ["-" if norm is None else _percent(norm) for norm in row["relative_norms"]]
        ranks = " and ".join("-" if rank is None else str(rank) for rank in row["ranks"])
        table.add_row(name, *norms, ranks, f"{row['cosine']:.2f}" if "cosine" in row else "-")
    print(printable(f"first: {folders[0]}, second: {folders[1]}"))
    Console().print(table, markup=False)
    if "said_by_both" not in result:
        print("One of the runs was not evaluated yet: the same `editenv edit` again does that.")
        return
    print(f"{result['said_by_both']} corrections are said by both, {result['said_by_none']} by none")
    for which in ("first", "second"):
        for words, rows in (("said by the", result[f"said_by_{which}"]), ("asked of the", result[f"asked_of_{which}"])):
            if rows:
                print(f"{len(rows)} {words} {which} alone")
                _list([f"{row['id']}: {summary.asked_as(row)} -> {row['target']}" for row in rows])
    unrelated = result["unrelated"]
    print(f"{len(unrelated['changed_by_both'])} unrelated answers changed by both")
    for which in ("first", "second"):
        print(f"{len(unrelated[f'changed_by_{which}'])} by the {which} alone")
        _list(unrelated[f"changed_by_{which}"])


def _list(texts: Sequence[str]) -> None:
    for text in texts[:LISTED]:
        print(printable(f"  {one_line(text)}"))
    if len(texts) > LISTED:
        print(f"  and {len(texts) - LISTED} more (--json has all)")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
