"""The page in a real browser, from a file: Debian's chromium, driven by playwright."""

import os
import re
import shutil
from dataclasses import replace

import pytest
from test_records import RECORD

from benchmarks.figures import RESULTS
from benchmarks.results.leaderboard import RANKED, FailedCell, Leaderboard, entries
from benchmarks.results.page import DOCUMENTS, PAPER
from benchmarks.results.page import page as page_of
from benchmarks.results.styles import style_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium, or name one in CHROMIUM"
)
OFFLINE = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
EVIL = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"


def scores(value):
    return {"efficacy": value, "generalization": value, "specificity": value}


def run(agent, seed, value, milliseconds, setup=0.0, **changes):
    points = [{"edits": 20.0, **scores(100.0)}, {"edits": 40.0, **scores(value)}]
    return replace(
        RECORD,
        agent=agent,
        seed=seed,
        generation=scores(value),
        teacher_forced=scores(100 - value),
        retention=points,
        edit_seconds=milliseconds / 1000,
        floor_ratio=milliseconds / 2,
        setup_seconds=setup,
        **changes,
    )


RUNS = [
    run("no-edit", 0, 1.0, 0.5, commit=("c0ffee" * 7)[:40], dataset="counterfact:" + "x" * 90),
    run("joint-fine-tune", 0, 91.0, 50.0),
    run("fast", 0, 30.0, 2.0),
    run("fast", 1, 40.0, 2.0),
    run("slow", 0, 61.0, 9.0, failures=3),
    run("trained", 0, 62.0, 4.0, setup=400.0),
    run(EVIL, 0, 10.0, 20.0),
    run("fast", 0, 80.0, 2.0, suite="other-" + "x" * 60),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *OFFLINE])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    found = entries(RUNS)
    path = tmp_path_factory.mktemp("page") / "index.html"
    boards = {protocol: Leaderboard(found, protocol) for protocol in RANKED}
    path.write_text(
        page_of(found, boards, [FailedCell("micro-v1", "lost", 2, "ValueError: <i>boom</i>")]), encoding="utf-8"
    )
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the page; at the end nothing may have gone to the console, failed, or asked for another address."""
    contexts, troubles, requests = [], [], []

    def opened(**options):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
    assert {url for url in requests if not url.startswith("data:")} == {address}


def column(page, key):
    """The texts of a column of the leaderboard, without what stands small beneath."""
    keys = page.locator("#board thead th").evaluate_all("cells => cells.map(cell => cell.dataset.key)")
    rows = page.locator("#board > tbody > tr:not(.runs)")  # without what is small
    return rows.evaluate_all(
        "(rows, i) => rows.map(row => { const cell = row.children[i].cloneNode(true);"
        "  cell.querySelectorAll('small').forEach(small => small.remove()); return cell.textContent; })",
        keys.index(key),
    )


def sorting(page, key):
    return page.locator(f'#board th[data-key="{key}"]').get_attribute("aria-sort")


def test_rows_are_sorted_by_the_mean_at_first(open_page):
    page = open_page()
    assert column(page, "mean") == ["91.0", "62.0", "61.0", "35.0", "10.0", "1.0"]
    assert column(page, "normalized") == ["1.00", "0.68", "0.67", "0.38", "0.10", "0.00"]
    assert sorting(page, "mean") == "descending"
    assert "[30.0, 40.0]" in page.locator("#board tr", has_text="fast").inner_text()


def test_a_heading_sorts_and_sorts_the_other_way(open_page):
    page = open_page()
    page.locator('#board th[data-key="edit"] button').click()
    assert column(page, "edit") == ["0.50", "2.00", "4.00", "9.00", "20.0", "50.0"]
    assert (sorting(page, "edit"), sorting(page, "mean")) == ("ascending", None)
    page.locator('#board th[data-key="edit"] button').click()
    assert column(page, "edit") == ["50.0", "20.0", "9.00", "4.00", "2.00", "0.50"]
    page.locator('#board th[data-key="agent"] button').click()
    assert column(page, "agent") == [EVIL, "fast", "joint-fine-tune", "no-edit", "slow", "trained"]


def test_a_heading_is_sorted_by_the_keyboard(open_page):
    page = open_page()
    page.locator("#agent").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('th')?.dataset.key") == "setup":
            break
    page.keyboard.press("Enter")
    assert sorting(page, "setup") == "ascending"
    assert page.evaluate("document.activeElement.closest('th').dataset.key") == "setup", "the focus stays"
    page.keyboard.press("Space")
    assert sorting(page, "setup") == "descending"
    assert column(page, "setup")[0] == "400"


def test_filters_by_agent_protocol_and_suite(open_page):
    page = open_page()
    page.locator("#agent").fill("FAST")
    assert column(page, "agent") == ["fast"]
    assert page.locator("#curves .line").count() == 3, "one line in each of three panels"
    page.locator("#agent").fill("nobody")
    assert column(page, "agent") == []
    assert page.locator("#none").inner_text() == "No row has this name."
    page.locator("#agent").fill("")
    page.locator("#protocol").select_option("teacher_forced")
    assert column(page, "mean") == ["99.0", "90.0", "65.0", "39.0", "38.0", "9.0"]
    page.locator("#protocol").select_option("generation")
    page.locator("#suite").select_option("1")
    assert column(page, "mean") == ["80.0"]
    assert f"other-{'x' * 60} on atlas" in page.locator("#suite").inner_text()


def test_the_arrow_before_a_name_opens_its_seeds(open_page):
    page = open_page()
    arrow = page.get_by_role("button", name="Seeds of fast")
    arrow.click()
    seeds = page.locator("#board tr.runs tbody tr").evaluate_all("rows => rows.map(row => row.textContent)")
    assert [text[:5] for text in seeds] == ["030.0", "140.0", "95% i"]
    arrow.click()
    assert page.locator("#board tr.runs").count() == 0


def test_failures_are_shown(open_page):
    page = open_page()
    assert column(page, "failures")[2] == "3"
    assert "1 failed" in page.locator("#summary").inner_text()
    page.locator("#s-failed summary").click()
    assert "<i>boom</i>" in page.locator("#failed").inner_text(), "as text"


def test_names_are_text(open_page):
    page = open_page()
    assert EVIL in column(page, "agent")
    assert page.evaluate("window.broken") is None
    assert page.locator("main img").count() == 0


def points(page):
    """Of the Pareto plot: label by agent."""
    labels = page.locator("#pareto g.dot").evaluate_all("dots => dots.map(dot => dot.getAttribute('aria-label'))")
    return {label.split(": ")[0]: label for label in labels}


def test_the_pareto_front_with_and_without_setup(open_page):
    page = open_page()
    front = {agent for agent, label in points(page).items() if label.endswith("on the Pareto front")}
    assert front == {"fast", "trained"}
    assert "at 2.00 \u00d7 floor per edit" in points(page)["trained"]
    assert names(page) == {"fast", "trained", "no-edit", "joint-fine-tune"}, "those in colour have names"
    page.locator("#setup").check()
    front = {agent for agent, label in points(page).items() if label.endswith("on the Pareto front")}
    assert front == {"fast", "slow", "trained"}
    assert "at 5,002.00 \u00d7 floor per edit" in points(page)["trained"], (
        "4 ms and 400 s over 40 edits, the floor 2 ms"
    )
    page.locator('#pareto g.dot[data-agent="slow"]').focus()
    assert page.locator("#tip").inner_text().startswith("slow: 61.0 at 4.50 \u00d7 floor")
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def names(page):
    return set(page.locator("#pareto text.name").all_text_contents())


def test_points_behind_the_front_are_grey_until_they_are_pointed_at(open_page):
    page = open_page()
    colour = "dot => getComputedStyle(dot.querySelector('.mark')).fill"
    front, behind = (page.locator(f'#pareto g.dot[data-agent="{name}"]') for name in ("fast", "slow"))
    grey = behind.evaluate(colour)
    assert front.evaluate(colour) != grey
    behind.hover()
    assert behind.evaluate(colour) != grey
    assert page.locator("#tip").inner_text().startswith("slow: 61.0")


def test_names_in_the_pareto_plot_do_not_overlap(open_page):
    page = open_page()
    boxes = page.locator("#pareto text.name").evaluate_all(
        "texts => texts.map(text => { const b = text.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height]; })"
    )
    assert len(boxes) == 4
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 1 and b[1] < a[3] - 1)


def test_on_a_small_screen_points_have_numbers_and_the_names_are_below(open_page):
    page = open_page(viewport={"width": 360, "height": 800})
    assert names(page) == {"1", "2", "3", "4"}
    listed = page.locator("#pareto .names li").all_inner_texts()
    assert listed[:2] == ["fast", "trained"], "along the front"
    assert set(listed[2:]) == {"no-edit", "joint-fine-tune"}


def test_pointing_at_a_curve_says_its_figures(open_page):
    page = open_page()
    page.locator("#agent").fill("fast")
    chart = page.locator("#curves svg").first
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 16, "y": box["height"] / 2})
    assert page.locator("#tip").inner_text() == "fast, 40 edits: efficacy 35.0 (seeds 30.0 to 40.0)"
    page.mouse.move(0, 0)
    assert not page.locator("#tip").is_visible()


IN_COLOUR = "lines => [...new Set(lines.map(line => line.dataset.agent))].sort()"


def test_choosing_a_name_brings_it_forward(open_page):
    page = open_page()
    page.locator(".legend button", has_text="slow").click()
    page.mouse.move(0, 0)
    page.locator("#agent").focus()
    assert (
        page.locator("#curves .line.near").evaluate_all("lines => lines.map(line => line.dataset.agent)")
        == ["slow"] * 3
    )
    page.get_by_role("button", name="back to the best").click()
    assert len(page.locator("#curves .line.near").evaluate_all(IN_COLOUR)) == 6, "all, as they are few"


@pytest.fixture
def page_with(browser, tmp_path):
    """Opens a page of these runs."""
    contexts = []

    def opened(runs):
        rows = entries(runs)
        boards = {protocol: Leaderboard(rows, protocol) for protocol in RANKED}
        (tmp_path / "page.html").write_text(page_of(rows, boards, []), encoding="utf-8")
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def crowd(page_with):
    """A page of many rows."""
    return page_with([run("no-edit", 0, 99.0, 1.0), *(run(f"agent-{i:02}", 0, 10.0 + i, 2.0) for i in range(16))])


def test_a_column_says_what_rows_change_where_that_is_not_weights_alone(page_with, open_page):
    page = page_with([run("fine-tune", 0, 30.0, 1.0), run("grace@mine", 0, 20.0, 1.0), run("my.py:Mine", 0, 10.0, 1.0)])
    assert column(page, "changes") == ["weights", "side memory", "not said"]
    page.locator('#board th[data-key="changes"] button').click()
    assert column(page, "changes") == ["not said", "side memory", "weights"]
    assert open_page().locator('#board th[data-key="changes"]').count() == 0


def test_of_a_crowd_eight_lines_are_in_colour_until_a_name_is_chosen(crowd):
    lines = crowd.locator("#curves .line.near")
    best = [*(f"agent-{i:02}" for i in range(9, 16)), "no-edit"]
    assert lines.evaluate_all(IN_COLOUR) == best
    assert sorted(crowd.locator(".legend .chip").all_inner_texts()) == best
    assert crowd.locator("#curves .line").count() == 3 * 17, "the others are grey"
    crowd.locator(".legend select").select_option("agent-01")
    assert lines.evaluate_all(IN_COLOUR) == ["agent-01"]
    assert crowd.locator('.legend .chip[aria-pressed="true"]').all_inner_texts() == ["agent-01"]


def test_of_a_crowd_the_first_rows_are_shown_and_the_others_on_demand(crowd):
    assert len(column(crowd, "agent")) == 12
    crowd.get_by_role("button", name="Show all 17 rows").click()
    assert len(column(crowd, "agent")) == 17
    crowd.get_by_role("button", name="Show the first 12 only").click()
    assert column(crowd, "mean")[0] == "99.0"
    crowd.locator("#s-matrix summary").click()
    assert crowd.locator("#matrix tbody tr").count() == 12
    crowd.get_by_label("all 17 agents").check()
    assert crowd.locator("#matrix tbody tr").count() == 17


def test_colours_are_those_of_the_figures(open_page):
    page = open_page()
    drawn = page.locator("#curves .panels figure:first-child .line").evaluate_all(
        "lines => Object.fromEntries(lines.map(line => [line.dataset.agent, line.style.getPropertyValue('--own')]))"
    )
    assert drawn == {agent: style_of(agent).colour for agent in drawn}
    assert len(drawn) == 6


# ---- what words mean


def test_columns_say_what_they_mean(open_page):
    page = open_page()
    page.locator('#board th[data-key="floor"] button').hover()
    assert "plain forward and partial backward" in page.locator("#tip").inner_text()
    page.locator("summary", has_text="What the columns mean").click()
    headings = page.locator("#board thead th").evaluate_all("cells => cells.map(cell => cell.textContent)")
    terms = page.locator("#columns dt").evaluate_all("terms => terms.map(term => term.textContent)")
    assert [term for term in terms if term != "Changes"] == headings, "which only stands where a row changes a memory"
    assert all(page.locator("#columns dd").all_inner_texts())


def test_a_tap_on_a_heading_sorts_and_says_what_it_means(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.locator('#board th[data-key="efficacy"] button').tap()
    assert sorting(page, "efficacy") == "descending"
    assert "Percent of all edits" in page.locator("#tip").inner_text()
    tip, head = page.locator("#tip").bounding_box(), page.locator('#board th[data-key="efficacy"]').bounding_box()
    assert tip["y"] + tip["height"] <= head["y"] + head["height"], "beside the heading"
    assert tip["y"] > head["y"] - 120
    page.locator("h1").tap()
    assert not page.locator("#tip").is_visible()


def test_rows_without_a_paper_or_page_are_no_links_and_others_lead_to_their_papers(open_page):
    page = open_page()
    assert page.locator("#board tbody a").count() == 0, "no row of the registry has a paper here"
    assert page.locator("#links a").evaluate_all("links => links.map(link => link.href)") == [PAPER]


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A page with rows of the registry, beside documentation."""
    rows = entries(
        [run(agent, 0, 50.0, 1.0) for agent in ("rledit", "rledit-p", "memit@base", "no-edit", "mine.py:Mine")]
    )
    boards = {protocol: Leaderboard(rows, protocol) for protocol in RANKED}
    folder = tmp_path_factory.mktemp("linked")
    (folder / "docs.html").write_text(page_of(rows, boards, [], "../.."), encoding="utf-8")
    (folder / "alone.html").write_text(page_of(rows, boards, []), encoding="utf-8")
    site = page_of(rows, boards, [], "../..").replace('data-docs-ending=".md"', 'data-docs-ending=".html"')
    (folder / "site.html").write_text(site, encoding="utf-8")
    return folder


def links(browser, path):
    """Of the table: where each name leads."""
    page = browser.new_page()
    page.goto(path.as_uri())
    found = page.locator("#board tbody th[scope=row] a").evaluate_all(
        "links => Object.fromEntries(links.map(link => [link.textContent, link.getAttribute('href')]))"
    )
    head = page.locator("#links a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    page.close()
    return found, head


def test_names_lead_to_what_the_rows_are(browser, linked):
    found, head = links(browser, linked / "docs.html")
    assert found == {
        "rledit": "../../reference/methods.md#the-methods",
        "rledit-p": "../../reference/rows.md#suffixes",
        "memit@base": "../../reference/rows.md#names-of-your-own",
        "no-edit": "../../reference/rows.md#names-that-are-not-a-method-with-suffixes",
    }
    assert head == [*(f"../../{path}" for path in DOCUMENTS.values()), PAPER]
    on_site, head = links(browser, linked / "site.html")
    assert on_site == {name: href.replace(".md", ".html") for name, href in found.items()}
    assert head[0] == "../../index.html", "the site has no page of the repository itself"
    assert head[-2] == "../../results/index.html"
    alone, head = links(browser, linked / "alone.html")
    assert alone == {
        "rledit": PAPER,
        "rledit-p": PAPER,
        "memit@base": "https://arxiv.org/abs/2210.07229",
    }
    assert head == [PAPER]


# ---- looks


def brightness(page, name):
    return sum(
        map(int, re.findall(r"\d+", page.locator("body").evaluate(f"body => getComputedStyle(body).{name}"))[:3])
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_by_the_system_and_by_the_button(open_page, scheme):
    page = open_page(color_scheme=scheme)
    bright = brightness(page, "backgroundColor") > 384
    assert bright == (scheme == "light")
    page.locator("#theme").click()
    assert (brightness(page, "backgroundColor") > 384) != bright
    assert (brightness(page, "color") > 384) == bright
    page.locator("#theme").click()
    assert (brightness(page, "backgroundColor") > 384) == bright


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    const found = pixel(getComputedStyle(element).backgroundColor);
    return found[3] > 250 ? found : ground(element.parentElement);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.textContent.trim() || !element.getClientRects().length || ["SCRIPT", "OPTION"].includes(element.tagName)) continue;
    const [a, b] = [luminance(pixel(element.closest("svg") ? style.fill : style.color)), luminance(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName + ": " + node.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    found = page.evaluate(CONTRAST)
    assert len(found) > 200
    assert [entry for entry in found if entry[0] < 4.5] == []


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_fits_its_window(open_page, width, folded):
    page = open_page(viewport={"width": width, "height": 800}, has_touch=width == 360)
    page.evaluate("folded => document.querySelectorAll('details').forEach(fold => { fold.open = !folded; })", folded)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator("#curves svg, #pareto svg").all():
        box = chart.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] > 150
    assert float(page.locator("#board").evaluate("table => parseFloat(getComputedStyle(table).fontSize)")) >= 13


def test_a_large_page_is_a_few_screens_on_a_phone(browser):
    """The page of all results."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((RESULTS / "leaderboard" / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") < 4 * 844
    page.close()


def test_charts_follow_the_window(open_page):
    page = open_page()
    page.set_viewport_size({"width": 400, "height": 800})
    # Playwright's `wait_for_function` polls with `eval` inside the page, which the page's own content policy forbids.
    for _ in range(100):
        if page.evaluate("document.querySelector('#pareto svg').getBoundingClientRect().right") <= 400:
            break
        page.wait_for_timeout(50)
    else:
        pytest.fail("the chart is still wider than the window after five seconds")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_tables_have_headers_and_controls_have_names(open_page):
    page = open_page()
    for table in page.locator("main table").all():
        assert table.locator("thead th:not([scope])").count() == 0
        for row in table.locator(":scope > tbody > tr").all():
            assert row.locator(':scope > th[scope="row"]').count() == 1
    unnamed = "controls => controls.filter(c => !(c.labels?.length || c.textContent.trim() || c.getAttribute('aria-label'))).length"
    assert page.locator("button, input, select").evaluate_all(unnamed) == 0
    for region in page.locator(".scroll").all():
        assert region.get_attribute("tabindex") == "0", "a keyboard can scroll it"
        assert region.get_attribute("aria-label")


def test_the_papers_numbers_have_a_section_of_their_own(open_page):
    page = open_page()
    page.locator("#s-paper > summary").click()
    shown = page.locator("#paper").inner_text()
    for text in ("Ours", "Theirs (Li et al. 2025, arXiv 2502.05759)", "Llama-3-8B", "95.34 / 93.58 / 70.36"):
        assert text in shown
    assert page.locator("#board", has_text="95.34").count() == 0


def test_what_an_edit_changes_is_readable_on_a_phone(browser):
    """In words of which none is broken over lines."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((RESULTS / "leaderboard" / "index.html").as_uri())
    cell = page.get_by_role("cell", name="side memory and context", exact=True).first
    size = cell.evaluate("cell => [cell.clientHeight, parseFloat(getComputedStyle(cell).lineHeight)]")
    assert size[0] < 4 * size[1], "four words take three lines at most"
    page.close()
