import contextlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_records import RECORD

from benchmarks.report import Args, as_markdown, differing, file_names, main
from benchmarks.results import figures
from benchmarks.results.charts import draw, save, short_name
from benchmarks.results.leaderboard import RANKED, Leaderboard, Task, entries
from benchmarks.results.page import PAPER, embedded, page, page_data
from benchmarks.results.records import append
from benchmarks.results.styles import REST, style_of

EVIL = "</script><script>alert('x')</script> $x_{ | `\"&<!--"


def scores(value):
    return {"efficacy": value, "generalization": value, "specificity": value}


def run(agent, seed=0, value=50.0, **changes):
    points = [{"edits": 20.0, **scores(value)}, {"edits": 40.0, **scores(value / 2)}]
    changes.setdefault(
        "floor_ratio", 1000 * changes.get("edit_seconds", RECORD.edit_seconds)
    )  # the floor is a millisecond
    return replace(RECORD, agent=agent, seed=seed, generation=scores(value), retention=points, **changes)


RUNS = [
    run("no-edit", value=1.0, edit_seconds=0.0005),
    run("joint-fine-tune", value=90.0, setup_seconds=20.0),
    run("rledit", 0, 60.0, edit_seconds=0.004, setup_seconds=30.0),
    run("rledit", 1, 70.0, edit_seconds=0.004, setup_seconds=30.0),
    run(EVIL, 0, 40.0, failures=2),
    run("rledit", 0, 50.0, suite="longer", edits=80, edit_seconds=0.004),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of results with its report, and what the command said."""
    folder = tmp_path_factory.mktemp("run")
    for record in RUNS:
        append(folder / "results.jsonl", record)
    failed = folder / "cells" / "micro-v1" / "b-seed0.failed.json"
    failed.parent.mkdir(parents=True)
    failed.write_text(json.dumps({"suite": "micro-v1", "agent": "b", "seed": 0, "error": "ValueError: <b>boom</b>"}))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(Args((folder,)))
    return folder, said.getvalue()


@pytest.fixture
def folder(made):
    return made[0]


class Scripts(HTMLParser):
    """The script elements of a page, as a browser would cut them."""

    def __init__(self, text):
        super().__init__()
        self.found, self._inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag == "script"
        if self._inside:
            self.found.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.found[-1] += data


def test_one_command_writes_everything(made):
    folder, said = made
    names = {path.name for path in folder.iterdir()}
    drawn = {f"{kind}-{suite}" for kind in ("retention", "pareto", "bars") for suite in ("micro", "longer")}
    drawn |= {"by-edits-1"}
    assert names == {"results.jsonl", "cells", "LEADERBOARD.md", "index.html"} | {
        f"{name}.{ending}" for name in drawn for ending in ("png", "svg")
    }
    assert "5 rows from 6 runs" in said
    assert "failed: micro-v1, b, seed 0: ValueError" in said


def test_the_same_records_give_the_same_files(folder, tmp_path):
    main(Args((folder,), tmp_path / "again"))
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_the_markdown_holds_figures_images_and_nothing_live(folder):
    from markdown_it import MarkdownIt

    text = (folder / "LEADERBOARD.md").read_text()
    assert "## By number of edits: atlas/test in atlas, batches of 20\n" in text
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in html
    assert "<b>boom" not in html
    micro, longer = html.index("<h2>micro</h2>"), html.index("<h2>longer</h2>")
    why = "b: - (ValueError: &lt;b&gt;boom&lt;/b&gt;)"
    assert why in html[micro:longer], "a row that is not there, and the reason"
    assert why not in html[longer:]
    assert "65.0 [60.0, 70.0]" in html, "interquartile mean and interval of two seeds"
    assert "0.72 [0.66, 0.78]" in html, "normalised: (60 - 1) / 89 and (70 - 1) / 89"
    assert "91.75 / 62.40 / 52.38" in html, "the paper's"
    for line in html.split('src="')[1:]:
        assert (folder / line.split('"')[0]).stat().st_size > 1000


def test_figures_are_whole_pictures(folder):
    from matplotlib import image

    for path in folder.glob("*.png"):
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 200, path
        assert pixels.std() > 0.02, path
    for path in folder.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert not [e for e in ElementTree.parse(path).iter() if e.tag.endswith("script")]


def test_a_failed_write_leaves_the_old_figure(tmp_path, monkeypatch):
    (row,) = entries([run("a")])
    path = tmp_path / "retention.png"
    save(figures.retention([row]), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("editenv.atomic_files.os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save(figures.retention([row]), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["retention.png"]


def test_a_name_cannot_leave_the_page_data():
    found = entries(RUNS)
    text = page(found, {protocol: Leaderboard(found, protocol) for protocol in RANKED}, [])
    data, program = Scripts(text).found
    assert EVIL in json.loads(data)["agents"]
    assert "{{data}}" not in text
    assert EVIL not in program


def test_embedded_json_is_the_same_data_without_markup():
    data = {"a": ["</script>", "<!--", "&amp;", "é", None, 1.5]}
    text = embedded(data | {"b": "\u2028"})
    assert json.loads(text) == data | {"b": "\\u2028"}
    assert not set("<>&\u2028") & set(text)


def test_the_page_names_no_address_but_those_of_papers():
    """Which are links; nothing is fetched: the page's own rules forbid it."""
    found = entries(RUNS)
    text = page(found, {protocol: Leaderboard(found, protocol) for protocol in RANKED}, [])
    addresses = {word for word in text.split('"') if word.startswith(("http", "//"))}
    papers = {address for address in addresses if address.startswith("https://arxiv.org/abs/")}
    assert PAPER in papers
    assert addresses - papers == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    assert not re.findall(r"<(?:link|img|script|iframe)[^>]+(?:src|href)=(?!\"data:)", text)


def test_of_a_pair_of_agents_one_direction_is_in_the_data():
    rows = entries(RUNS[:4])
    boards = {protocol: Leaderboard(rows, protocol) for protocol in RANKED}
    improvements = page_data(rows, boards, [])["boards"]["generation"]["improvements"]
    assert [pair[:3] for pair in improvements] == [
        ["no-edit", "joint-fine-tune", [0.0]],
        ["no-edit", "rledit", [0.0]],
        ["joint-fine-tune", "rledit", [1.0]],
    ]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"results\.jsonl"):
        main(Args((tmp_path / "nothing",)))
    with pytest.raises(SystemExit, match="at least one folder"):
        main(Args(()))
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match="line 1: missing fields"):
        main(Args((tmp_path,)))
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    failed = tmp_path / "failed/cells/smoke-v1/rledit-seed0.failed.json"
    failed.parent.mkdir(parents=True)
    failed.write_text(json.dumps({"suite": "smoke-v1", "agent": "rledit", "seed": 0, "error": "no room"}))
    with pytest.raises(SystemExit, match="failed: smoke-v1, rledit, seed 0: no room"):
        main(Args((tmp_path / "failed",)))


def test_a_record_without_a_curve_has_all_but_the_curve(tmp_path):
    """And what newer records say of their making is shown."""
    made_with = {"hardware": {"processor": "A processor", "accelerator": None}, "commit": "c0ffee" * 6 + "c0ff"}
    append(tmp_path / "results.jsonl", replace(RECORD, retention=[], **made_with))
    main(Args((tmp_path,)))
    assert {path.stem for path in tmp_path.glob("*.png")} == {"pareto-micro", "bars-micro"}
    data = json.loads(Scripts((tmp_path / "index.html").read_text()).found[0])
    assert data["made"] == [{"with": "python 3, A processor, commit " + "c0ffee" * 6 + "c0ff", "runs": 1}]


def test_each_suite_has_files_of_its_own():
    tasks = [Task("a", "m"), Task("b/..", "m"), Task("a", "../n"), Task("b -..", "m")]
    names = file_names(tasks)
    assert len(set(names)) == 4
    assert names[0] == "a-m"
    assert not [name for name in names if "/" in name or name.startswith(".")]


def test_suites_are_compared_if_they_differ_in_one_thing():
    def suite(name, edits, size, agent="a", **changes):
        return (
            entries([run(agent, suite=name, edits=edits, **changes)])
            if size == 20
            else entries(
                [
                    replace(
                        run(agent, suite=name, edits=edits, **changes),
                        retention=[{"edits": float(size), **scores(1.0)}],
                    )
                ]
            )
        )

    def ahead(name, size):  # PRUNE has no curve but its end, and is the suite's first row
        told = {"suite": {"edits_per_step": size}}
        end = replace(
            run("prune", suite=name, edits=40, configuration=told), retention=[{"edits": 40.0, **scores(1.0)}]
        )
        return entries([end, run("a", suite=name, edits=40, configuration=told)])

    fine, rough = ahead("f", 10), ahead("r", 5)
    assert differing([fine, rough], "batch size") == [[fine, rough]]
    assert differing([fine, rough], "edits") == []
    short, long, coarse = suite("s", 40, 20), suite("l", 80, 20), suite("c", 40, 40)
    other, alone = suite("o", 160, 20, dataset="else"), suite("b", 320, 20, agent="b")
    wide = suite("w", 640, 20, configuration={"suite": {"modules": ["x"]}})
    ends = suite("e", 320, 20, configuration={"suite": {"end_of_answer": True}})
    tasks = [short, long, coarse, other, wide, ends]
    assert differing(tasks, "edits") == [[short, long]]
    assert differing(tasks, "batch size") == [[short, coarse]]
    assert differing([short, alone], "edits") == [], "no row is in both"


def test_a_long_name_keeps_its_end():
    assert short_name("short") == "short"
    assert short_name("x" * 40 + "file.py:Mine") == "…" + "x" * 25 + "file.py:Mine"
    assert short_name("two\nlines") == "two lines"


def test_the_retention_picture_shows_the_curve():
    """The drawn line goes through the figures, and the band spans the seeds."""
    (row,) = entries([run("a", 0, 60.0), run("a", 1, 80.0)])
    for axis in draw(figures.retention([row])).axes:
        np.testing.assert_allclose(axis.lines[0].get_xydata(), [[20, 70], [40, 35]])
        (band,) = axis.collections
        corners = {(round(x), round(y)) for x, y in band.get_paths()[0].vertices}
        assert corners == {(20, 60), (20, 80), (40, 30), (40, 40)}


def test_bars_are_as_long_as_the_figures_say():
    rows = entries([run("a", 0, 60.0), run("a", 1, 80.0), run("no-edit", value=5.0)])
    for axis in draw(figures.bars(rows, "generation")).axes:
        assert [bar.get_width() for bar in axis.patches] == [70.0, 5.0]
        assert [list(line.get_xdata()) for line in axis.lines] == [[60.0, 80.0]], "of one seed there is no interval"
        assert {to_hex(bar.get_facecolor()) for bar in axis.patches} == {
            style_of("a").colour,
            style_of("no-edit").colour,
        }


def test_suites_of_different_size_are_one_line():
    tasks = [entries([run("a", suite=f"s{edits}", edits=edits, value=float(edits))]) for edits in (80, 40)]
    for axis in draw(figures.by_size(tasks, "generation", "edits")).axes:
        np.testing.assert_allclose(axis.lines[0].get_xydata(), [[40, 40], [80, 80]])


def test_the_pareto_picture_has_a_point_for_each_row_and_the_front():
    board = Leaderboard(entries(RUNS[:4]), "generation")
    figure = draw(figures.pareto(board, board.tasks[0]))
    for axis, seconds in zip(figure.axes, ((0.0005, 0.001, 0.004), (0.0005, 0.501, 0.754)), strict=True):
        points = {
            (round(x, 6), round(y, 6))
            for line in axis.lines
            if len(line.get_xdata()) == 1
            for x, y in line.get_xydata()
        }
        assert points == set(zip([round(1000 * s, 6) for s in seconds], (1.0, 90.0, 65.0), strict=True))
        names = [text.get_text() for text in axis.texts]
        assert sorted(names) == ["joint-fine-tune", "no-edit", "rledit"], "no point in colour without its name"
        front = [line.get_xydata().tolist() for line in axis.lines if line.get_drawstyle() == "steps-post"]
        assert front == [[[pytest.approx(1000 * seconds[2]), 65.0]]], "the references are not on it"


def test_rows_behind_the_front_are_grey_and_have_no_name():
    rows = [run(f"agent-{i}", value=50.0 - i, edit_seconds=0.001 * (i + 1)) for i in range(4)]
    board = Leaderboard(entries(rows), "generation")
    for axis in draw(figures.pareto(board, board.tasks[0])).axes:
        assert [text.get_text() for text in axis.texts] == ["agent-0"]
        colours = [to_hex(line.get_color()) for line in axis.lines if len(line.get_xdata()) == 1]
        assert sorted(colours.count(colour) for colour in (REST, style_of("agent-0").colour))[-1] == 3


def test_the_best_row_is_compared_with_the_others_on_the_same_streams():
    runs = [run("rledit", seed, value) for seed, value in enumerate((60.0, 70.0, 80.0))]
    runs += [run("memit", seed, value) for seed, value in enumerate((58.0, 69.0, 77.0))]
    runs += [run("no-edit", 0, 1.0), run("joint-fine-tune", 0, 99.0), run("joint-fine-tune", 1, 99.0)]
    rows = entries(runs)
    text = as_markdown(rows, Leaderboard(rows, "generation"), [], [])
    # Differences 2, 1 and 3: mean 2, standard error 1 / sqrt(3), and t(0.975; 2) = 4.302653.
    assert "| rledit - memit | 3 |" in text
    assert "| +2.0 [-0.5, +4.5] |" in text
    assert "| rledit - joint-fine-tune | 2 |" in text
    assert "rledit - no-edit" not in text, "one stream has no interval"
    alone = entries(runs[:3])
    assert "on the same streams: means" not in as_markdown(alone, Leaderboard(alone, "generation"), [], [])
