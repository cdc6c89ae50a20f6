import errno
import json
import multiprocessing
import resource
from contextlib import closing

import pytest
import torch
from safetensors.torch import save

from editenv.journal import Journal, JournalError

HEADER = {"model": "abc", "guard": {"max": 2.0}}


def batch(i):
    return {"edits": i, "reason": None}, {"left": torch.full((3, 2), float(i)), "right": torch.randn(2, 4)}


@pytest.fixture
def three(tmp_path):
    journal = Journal(tmp_path, HEADER)
    written = [batch(i) for i in range(3)]
    for entry, tensors in written:
        journal.append(entry, tensors)
    journal.close()
    return tmp_path, written


def test_what_was_written_is_read(three):
    folder, written = three
    journal = Journal(folder, HEADER)
    assert [entry["edits"] for entry in journal.entries] == [0, 1, 2]
    for i, (_, tensors) in enumerate(written, start=1):
        read = journal.tensors(i)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_an_unfinished_line_is_cleared_away(three, cut):
    folder, _ = three
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[: len(whole) - min(cut, last - 1)])
    journal = Journal(folder, HEADER)
    assert [entry["edits"] for entry in journal.entries] == [0, 1]
    journal.append(*batch(2))
    journal.close()
    assert len(Journal(folder, HEADER).entries) == 3


def test_a_last_line_without_its_newline_is_a_whole_one(three):
    folder, _ = three
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    journal = Journal(folder, HEADER)
    assert [entry["edits"] for entry in journal.entries] == [0, 1, 2]
    assert path.read_bytes() == whole
    journal.append(*batch(3))
    journal.close()
    assert len(Journal(folder, HEADER).entries) == 4


@pytest.mark.parametrize("bit", range(8))
def test_a_changed_last_newline_is_not_taken_for_a_line_that_was_not_finished(three, bit):
    folder, _ = three
    path = folder / "journal.jsonl"
    changed = path.read_bytes()[:-1] + bytes([ord("\n") ^ 1 << bit])
    path.write_bytes(changed)
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 4: its end was changed"):
        Journal(folder, HEADER)
    assert path.read_bytes() == changed


def test_files_that_a_killed_writer_left_are_cleared_away(three):
    folder, _ = three
    (folder / "batches/000004.safetensors.0123456789ab.partial").write_bytes(b"half")
    Journal(folder, HEADER).close()
    assert [path.name for path in sorted((folder / "batches").iterdir())] == [
        f"00000{i}.safetensors" for i in (1, 2, 3)
    ]


def test_an_entry_may_be_compared_in_a_way_of_its_own(three):
    folder, _ = three
    said = {"guard": lambda there, here: [] if there["max"] <= here["max"] else ["smaller now"]}
    journal = Journal(folder, HEADER | {"guard": {"max": 3.0}}, compare=said)
    assert journal.begun_with["guard"] == {"max": 2.0}
    journal.close()
    with pytest.raises(JournalError, match=r"another run \(smaller now\)"):
        Journal(folder, HEADER | {"guard": {"max": 1.0}}, compare=said)
    older = {"new": lambda there, here: [] if there is None else ["another"]}
    Journal(folder, HEADER | {"new": 1}, compare=older).close()


@pytest.mark.parametrize("foreign", [b"my notes", b"my notes\nand", b'{"mine": 1}\n{"half', b'{"chain": 3}\nx'])
def test_a_foreign_file_of_that_name_is_left_as_it_is(tmp_path, foreign):
    (tmp_path / "journal.jsonl").write_bytes(foreign)
    with pytest.raises(JournalError, match=r"not a|was changed"):
        Journal(tmp_path, HEADER)
    assert (tmp_path / "journal.jsonl").read_bytes() == foreign


def test_an_unfinished_header_begins_anew(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"chain": "12')
    journal = Journal(tmp_path, HEADER)
    journal.append(*batch(1))
    journal.close()
    assert len(Journal(tmp_path, HEADER).entries) == 1


def test_another_run_is_refused_and_said_how_it_differs(three):
    folder, _ = three
    before = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(JournalError, match="model was 'abc', is 'xyz'"):
        Journal(folder, HEADER | {"model": "xyz"})
    assert (folder / "journal.jsonl").read_bytes() == before
    Journal(folder, HEADER).close()


def test_a_run_that_came_to_nothing_may_be_begun_anew(tmp_path):
    Journal(tmp_path, HEADER).close()
    again = Journal(tmp_path, HEADER | {"model": "xyz"})
    again.append(*batch(0))
    again.close()
    assert len(Journal(tmp_path, HEADER | {"model": "xyz"}).entries) == 1


def test_tensors_that_share_memory_are_written(tmp_path):
    """As the keys of a single token and the delta that is made of them do."""
    keys = torch.randn(1, 5)
    with pytest.raises(RuntimeError, match="share memory"):
        save({"keys": keys, "left": keys.T})
    journal = Journal(tmp_path, HEADER)
    journal.append({"edits": 1}, {"keys": keys, "left": keys.T})
    assert torch.equal(journal.tensors(1)["left"], keys.T)
    assert torch.equal(journal.tensors(1)["keys"], keys)


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_a_changed_line_is_named(three, line):
    folder, _ = three
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[line - 1])
    row["edits"] = 77
    lines[line - 1] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(JournalError, match=f"line {line}: was changed"):
        Journal(folder, HEADER)


@pytest.mark.parametrize("change", ["drop", "swap", "junk"])
def test_lost_and_foreign_lines_are_found(three, change):
    folder, _ = three
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    lines = {
        "drop": [lines[0], lines[2], lines[3]],
        "swap": [lines[0], lines[2], lines[1], lines[3]],
        "junk": [lines[0], "hello", *lines[1:]],
    }[change]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(JournalError, match="line 2"):
        Journal(folder, HEADER)


def test_tensors_that_are_gone_or_changed_are_named(three):
    folder, _ = three
    path = folder / "batches" / "000002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    journal = Journal(folder, HEADER)
    journal.tensors(1)
    with pytest.raises(JournalError, match=r"000002.safetensors is not what the journal says"):
        journal.tensors(2)
    path.unlink()
    with pytest.raises(JournalError, match=r"000002.safetensors is missing"):
        journal.tensors(2)


def _try_to_open(folder, queue):
    try:
        Journal(folder, HEADER)
        queue.put("opened")
    except JournalError as error:
        queue.put(str(error))


def test_a_second_process_is_refused(tmp_path):
    journal = Journal(tmp_path, HEADER)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for both
    queue = context.Queue()
    for expected in ("is being written by another process", "opened"):
        process = context.Process(target=_try_to_open, args=(tmp_path, queue))
        process.start()
        assert expected in queue.get(timeout=60)
        process.join()
        journal.close()


def test_a_full_disk_leaves_the_journal_whole(three, monkeypatch):
    folder, _ = three
    before = (folder / "journal.jsonl").read_bytes()
    journal = Journal(folder, HEADER)
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == fails[0]:
            raise OSError(28, "No space left on device")

    fails = []
    for when in (1, 3):  # the tensors, the line
        calls.clear()
        fails[:] = [when]
        monkeypatch.setattr("editenv.journal.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append(*batch(3))
        monkeypatch.undo()
        assert (folder / "journal.jsonl").read_bytes() == before
    journal.append(*batch(3))
    journal.close()
    assert [entry["edits"] for entry in Journal(folder, HEADER).entries] == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_line_that_does_not_fit_whole_leaves_nothing(tmp_path, room):
    """A limit on the size of files takes part of a write, as a disk that fills up does."""
    journal = Journal(tmp_path, HEADER)
    for i in range(8):
        journal.append({"edits": i, "content": "x" * 200}, {"none": torch.zeros(0)})
    path = tmp_path / "journal.jsonl"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(OSError, match="large"):
            journal.append({"edits": 8, "content": "x" * 200}, {"none": torch.zeros(0)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    journal.append(*batch(8))
    journal.close()
    assert [entry["edits"] for entry in Journal(tmp_path, HEADER).entries] == list(range(9))


def test_a_read_only_folder_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(PermissionError):
        Journal(tmp_path / "new", HEADER)


def test_a_file_system_that_cannot_lock_says_so_itself(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=r"No locks available: .*journal\.lock"):
        Journal(tmp_path, HEADER)


def test_a_line_that_is_interrupted_leaves_nothing(three, monkeypatch):
    folder, _ = three
    before = (folder / "journal.jsonl").read_bytes()

    def interrupted(file):
        raise KeyboardInterrupt

    with closing(Journal(folder, HEADER)) as journal:
        monkeypatch.setattr("os.fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.undo([3], {})
        assert (folder / "journal.jsonl").read_bytes() == before
        monkeypatch.undo()
        journal.append(*batch(3))
        assert len(journal.entries) == 4


def test_text_that_cannot_be_written_is_named_before_anything_is(three):
    folder, _ = three
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with closing(Journal(folder, HEADER)) as journal:
        with pytest.raises(ValueError, match=r"journal\.jsonl: .* half a character .*Kepler \\udce9'"):
            journal.append({"edits": ["Kepler \udce9"]}, batch(3)[1])
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_of_an_entry_that_versions_tell_differently_what_both_say_must_agree(tmp_path):
    header = HEADER | {"agent": {"steps": 3, "learns": False}}
    journal = Journal(tmp_path, header)
    journal.append({"batch": 1}, {})
    journal.close()
    newer = HEADER | {"agent": {"steps": 3, "rate": 0.1}}
    with pytest.raises(JournalError, match="agent was"):
        Journal(tmp_path, newer)
    Journal(tmp_path, newer, in_common=("agent",)).close()
    with pytest.raises(JournalError, match=r"agent was \{'steps': 3\}, is \{'steps': 4\}"):
        Journal(tmp_path, HEADER | {"agent": {"steps": 4}}, in_common=("agent",))


UNDOING = {"time": "now", "ids": [], "content": []}


def test_undone_batches_are_gone_and_their_numbers_are_not_given_again(three):
    folder, written = three
    for _ in range(2):  # the second time it is read
        journal = Journal(folder, HEADER)
        if len(journal.entries) == 3:
            journal.undo([2, 3], UNDOING)
            journal.append(*batch(7))
        assert [entry["batch"] for entry in journal.entries] == [1, 4]
        assert [line.get("batch", line.get("undone")) for line in journal.lines] == [1, 2, 3, [2, 3], 4]
        assert sorted(path.name[5] for path in (folder / "batches").iterdir()) == ["1", "4"]
        assert torch.equal(journal.tensors(4)["left"], torch.full((3, 2), 7.0))
        assert torch.equal(journal.tensors(1)["left"], written[0][1]["left"])
        assert journal.size == sum(path.stat().st_size for path in (folder / "batches").iterdir())
        with pytest.raises(JournalError, match=r"000002\.safetensors is missing"):
            journal.tensors(2)
        journal.close()


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_an_undoing_is_done_or_not_whenever_it_is_killed(three, monkeypatch, cut):
    """Killed with a part of its line on the disk, nothing is undone; with all of it, what is left is done on opening."""
    folder, _ = three
    journal = Journal(folder, HEADER)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_remove_undone_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.undo([3], UNDOING)
    journal.close()
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[: -cut or None])
    stands = [1, 2, 3] if cut > 1 else [1, 2]  # a whole line lacks but its newline
    journal = Journal(folder, HEADER)
    assert [entry["batch"] for entry in journal.entries] == stands
    assert [path.name[5] for path in sorted((folder / "batches").iterdir())] == [str(number) for number in stands]
