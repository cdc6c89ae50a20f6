"""What a record says of where it comes from, and what it lacks of that."""

from benchmarks.results.records import Record

MARK = "†"
"""Behind the names of rows in documents."""

NOTE = (
    f"{MARK} Of the records that the table is made of, one under this name does not say its commit and hardware, or its files\n"
    "differed from its commit (`python -m benchmarks.provenance` lists them).\n"
)


def lacking(record: Record) -> list[str]:
    """What of commit, versions and hardware a record does not say, and whether its code is in no commit."""
    gaps = [name for name in ("commit", "versions", "hardware") if not getattr(record, name)]
    if record.commit is not None and record.commit.endswith("-dirty"):
        gaps.append("commit of its very files (-dirty)")
    return gaps
