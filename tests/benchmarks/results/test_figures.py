import itertools
import json
import re
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_records import RECORD

from agents.rows import ROWS
from benchmarks.figures import DOCS, RESULTS, Args, chart_of, figures_in, is_current, main, page_is_current
from benchmarks.results import figures
from benchmarks.results.charts import (
    MOST_LINES,
    Chart,
    Panel,
    Series,
    choose_highlighted,
    digest,
    draw,
    save,
    saved_digest,
)
from benchmarks.results.leaderboard import entries
from benchmarks.results.page import DOCUMENTS, METHOD, OTHER, OWN, SUFFIX
from benchmarks.results.styles import FAMILIES, REST, Style, style_of

FIGURES = figures_in(RESULTS)

LINES = Chart(
    "Lines",
    "a note",
    (Panel("Efficacy", "edits", (Series("a", (10.0, 100.0), (90.0, 80.0), ((85.0, 95.0), None)),), "%"),),
    1,
    highlighted=("a",),
)


@cache
def chart_named(name):
    (figure,) = [figure for figure in FIGURES if figure.name == name]
    return chart_of(figure)


# ---- the figures of docs/results


@pytest.mark.parametrize("name", [figure.name for figure in FIGURES])
def test_a_documents_figure_shows_what_the_records_say(name):
    assert saved_digest(RESULTS / name) == digest(chart_named(name)), f"python -m benchmarks.figures {name}"


def test_all_figures_of_the_folder_are_drawn_from_records_and_shown():
    assert {path.name for path in RESULTS.glob("*.png")} == {figure.name for figure in FIGURES}
    documents = "".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md"))
    assert [figure.name for figure in FIGURES if f"]({figure.name})" not in documents] == []


@pytest.mark.slow
def test_the_leaderboard_page_is_what_the_records_say():
    assert page_is_current(), "python -m benchmarks.figures leaderboard/index.html"


def test_what_the_leaderboard_page_links_to_is_there():
    folder = (RESULTS / "leaderboard" / DOCS).resolve()
    for path in (*DOCUMENTS.values(), METHOD, SUFFIX, OWN, OTHER):
        name, _, anchor = path.partition("#")
        text = (folder / name).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, path


def test_a_figure_older_than_its_records_is_named(tmp_path, capsys):
    (figure,) = [figure for figure in FIGURES if figure.name == "capacity.png"]
    for name in (figure.source, figure.name):
        shutil.copy(RESULTS / name, tmp_path)
    names = (figure.name,)
    assert main(Args(names, tmp_path, check=True)) == 0
    lines = (tmp_path / figure.source).read_text().splitlines()
    record = json.loads(lines[0])
    record["teacher_forced"]["efficacy"] -= 0.05
    (tmp_path / figure.source).write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    before = (tmp_path / figure.name).read_bytes()
    assert main(Args(names, tmp_path, check=True)) == 1
    assert "capacity.png: is not what its records say" in capsys.readouterr().out
    assert (tmp_path / figure.name).read_bytes() == before, "--check draws nothing"
    assert main(Args(names, tmp_path)) == 0
    assert is_current(figure, tmp_path)
    (tmp_path / figure.name).unlink()
    assert not is_current(figure, tmp_path)
    with pytest.raises(SystemExit, match=r"no figure else\.png; there are atlas-50x20\.png"):
        main(Args(("else.png",), tmp_path))


def test_a_suite_that_is_not_in_the_records_is_named():
    with pytest.raises(ValueError, match="holds no record of elsewhere"):
        chart_of(replace(FIGURES[0], suites="elsewhere"))
    with pytest.raises(ValueError, match="no row nobody"):
        chart_of(replace(FIGURES[0], agents="nobody"))


@pytest.mark.parametrize("name", [figure.name for figure in FIGURES])
def test_figures_have_titles_and_labels_and_nothing_is_cut_off_or_covered(name):
    chart = chart_named(name)
    figure = draw(chart)
    figure.draw_without_rendering()
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for axis in [axis for axis in figure.axes if axis.get_visible()]:
        assert axis.get_title()
        assert axis.get_xlabel()
        low, high = axis.get_xlim()
        labels = [label for x, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True) if low <= x <= high]
        boxes = [label.get_window_extent() for label in labels]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), "ticks' labels stand apart"
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *labels]
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for row in range(0, len(chart.panels), chart.columns):
        assert chart.panels[row].y_label, "the first of each row"
    (title,) = figure.texts[-1:]
    assert title.get_text() == chart.title
    assert len(figure.legends[0].get_texts()) == len(chart.highlighted) <= MOST_LINES


@pytest.mark.parametrize("name", [figure.name for figure in FIGURES])
def test_lines_in_colour_are_told_apart(name):
    looks = [style_of(agent) for agent in chart_named(name).highlighted]
    for a, b in itertools.combinations(looks, 2):
        assert a.dashes != b.dashes or np.linalg.norm(oklab(a.colour) - oklab(b.colour)) > 0.08


# ---- styles


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(colour):
    """Ottosson 2020: distances in it are about those that one sees."""
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(to_cones @ linear(colour))


def contrast_on_white(colour):
    return 1.05 / (linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05)


def test_all_rows_of_the_registry_look_different():
    rows = [name for name in ROWS if not name.startswith("demo-")]
    looks = {name: style_of(name) for name in rows}
    assert len(set(looks.values())) == len(rows)
    assert looks["no-edit"].colour == looks["joint-fine-tune"].colour
    assert looks["memit"].colour == looks["memit-seq"].colour == style_of("memit-seq@base").colour
    assert looks["rledit-p"].colour == looks["rledit-p-long-fixed"].colour != looks["rledit"].colour
    assert looks["mend"].colour == looks["mend-rledit"].colour
    assert style_of("joint-fine-tune@base") == looks["joint-fine-tune"]
    assert style_of("ppo") == looks["sb3-ppo"], "as benchmarks.rl and the registry name it"


def test_an_agent_of_ones_own_has_a_style_that_stays():
    assert style_of("mine.py:Mine") == Style("#0b93ad", (1.2, 1.4), "v")
    assert len({style_of(f"mine.py:Number{i}") for i in range(40)}) > 25
    assert style_of("lone \ud800 surrogate")


def test_colours_are_seen_on_white():
    """WCAG's 3:1 for graphics."""
    for family, (colour, _) in FAMILIES.items():
        assert contrast_on_white(colour) >= 3, family


# ---- charts


def test_the_digest_is_of_all_that_is_shown_and_of_no_more():
    (panel,) = LINES.panels
    (series,) = panel.series

    def shows(**changes):
        return replace(LINES, panels=(replace(panel, series=(replace(series, **changes),)),))

    same = [LINES, shows(y=(90.0 + 1e-9, 80.0))]
    others = [
        shows(y=(90.001, 80.0)),
        shows(x=(10.0, 101.0)),
        shows(spread=((85.0, 95.0), (70.0, 90.0))),
        shows(cross=(50.0, 85.0)),
        shows(agent="b"),
        replace(LINES, title="Else"),
        replace(LINES, note="else"),
        replace(LINES, highlighted=()),
        replace(LINES, kind="steps"),
    ]
    assert len({digest(chart) for chart in same}) == 1
    assert len({digest(chart) for chart in [LINES, *others]}) == 1 + len(others)


def test_the_digest_is_of_the_colours_too(monkeypatch):
    before = digest(LINES)
    monkeypatch.setattr("benchmarks.results.charts.style_of", lambda agent: Style("#000000", (), "o"))
    assert digest(LINES) != before


def test_a_picture_carries_its_digest_and_is_the_same_file_each_time(tmp_path):
    save(LINES, tmp_path / "a.png")
    save(LINES, tmp_path / "b.png")
    assert saved_digest(tmp_path / "a.png") == digest(LINES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_at_most_eight_lines_are_in_colour_and_in_the_legend():
    def points(value):
        scores = {"efficacy": value, "generalization": value, "specificity": value}
        return {"retention": [{"edits": 20.0, **scores}, {"edits": 40.0, **scores}], "generation": scores}

    rows = [replace(RECORD, agent="no-edit", **points(1.0))]
    rows += [replace(RECORD, agent=f"agent-{i:02}", **points(10.0 + i)) for i in range(12)]
    figure = draw(figures.retention(entries(rows)))
    best = ["no-edit", *(f"agent-{i:02}" for i in range(11, 4, -1))]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == best
    for axis in figure.axes:
        colours = [to_hex(line.get_color()) for line in axis.lines]
        assert colours.count(REST) == 5
        assert colours[5:] == [style_of(f"agent-{i:02}").colour if i >= 0 else style_of("no-edit").colour
                               for i in (-1, *range(5, 12))]  # fmt: skip
    chosen = figures.retention(entries(rows), ["agent-00", "no-edit"])
    assert chosen.highlighted == ("agent-00", "no-edit")
    assert "grey: the other 11 rows" in draw(chosen).get_suptitle()


def test_more_rows_than_can_be_told_apart_are_refused():
    agents = [f"agent-{i}" for i in range(10)]
    assert choose_highlighted(agents) == tuple(agents[:8])
    assert choose_highlighted(agents, ["agent-9"]) == ("agent-9",)
    with pytest.raises(ValueError, match="at most 8 rows in colour, not 9"):
        choose_highlighted(agents, agents[:9])
    with pytest.raises(ValueError, match="no row else; there are agent-0"):
        choose_highlighted(agents, ["else"])


def test_ticks_are_at_the_points_or_at_round_numbers():
    def ticks(*points):
        series = Series("a", tuple(map(float, points)), tuple(50.0 for _ in points))
        (axis,) = draw(replace(LINES, panels=(replace(LINES.panels[0], series=(series,)),))).axes
        return list(axis.get_xticks())

    assert ticks(2000, 3000, 5000, 8000) == [2000, 3000, 5000, 8000]
    assert ticks(20, 40, 80, 160, 320, 640, 1000, 1001) == [20, 50, 100, 200, 500, 1000]
    assert ticks(5) == [5]
    assert ticks(1.5, 90_000) == [3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000]


def test_crosses_intervals_and_steps_are_drawn():
    (panel,) = LINES.panels
    (series,) = panel.series
    chart = replace(LINES, bands=False, panels=(replace(panel, series=(replace(series, cross=(50.0, 85.0)),)),))
    (axis,) = draw(chart).axes
    line, interval, cross = (line.get_xydata().tolist() for line in axis.lines)
    assert line == [[10, 90], [100, 80]]
    assert interval == [[10, 85], [10, 95]]
    assert cross == [[50, 85]]
    (axis,) = draw(replace(LINES, kind="steps", bands=True)).axes
    assert [line.get_drawstyle() for line in axis.lines] == ["steps-post"]
    assert len(axis.collections) == 1, "the band"
