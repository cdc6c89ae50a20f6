"""The page in a real browser, from a file: Debian's chromium, driven by playwright."""

import os
import re
import shutil
from dataclasses import replace

import pytest
from test_records import RECORD

from benchmarks.results.leaderboard import RANKED, FailedCell, Leaderboard, entries
from benchmarks.results.page import page as page_of

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
    run("no-edit", 0, 1.0, 0.5, commit="c0ffee" * 20, dataset="counterfact:" + "x" * 90),
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
    rows = page.locator("#board > tbody > tr:not(.runs)")
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
    assert column(page, "edit") == ["0.50", "2.00", "4.00", "9.00", "20.00", "50.00"]
    assert (sorting(page, "edit"), sorting(page, "mean")) == ("ascending", None)
    page.locator('#board th[data-key="edit"] button').click()
    assert column(page, "edit") == ["50.00", "20.00", "9.00", "4.00", "2.00", "0.50"]
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
    page.locator("#suite").select_option("all")
    assert len(column(page, "mean")) == 7
    assert f"other-{'x' * 60} on atlas" in column(page, "suite")


def test_a_name_opens_its_seeds(open_page):
    page = open_page()
    page.get_by_role("button", name="fast").first.click()
    seeds = page.locator("#board tr.runs tbody tr").evaluate_all("rows => rows.map(row => row.textContent)")
    assert [text[:5] for text in seeds] == ["030.0", "140.0", "95% i"]
    page.get_by_role("button", name="fast").first.click()
    assert page.locator("#board tr.runs").count() == 0


def test_failures_are_shown(open_page):
    page = open_page()
    assert column(page, "failures")[2] == "3"
    assert "<i>boom</i>" in page.locator("#failed").inner_text(), "as text"
    assert "1 failed" in page.locator("#summary").inner_text()


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
    assert "at 2.00 x floor per edit" in points(page)["trained"]
    page.locator("#setup").check()
    front = {agent for agent, label in points(page).items() if label.endswith("on the Pareto front")}
    assert front == {"fast", "slow", "trained"}
    assert "at 5,002.00 x floor per edit" in points(page)["trained"], "4 ms and 400 s over 40 edits, the floor 2 ms"
    page.locator('#pareto g.dot[data-agent="slow"]').focus()
    assert page.locator("#pareto .read").inner_text().startswith("slow: 61.0 at 4.50 x floor")


def test_names_in_the_pareto_plot_do_not_overlap(open_page):
    page = open_page(viewport={"width": 360, "height": 800})
    boxes = page.locator("#pareto text.name").evaluate_all(
        "texts => texts.map(text => { const b = text.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height]; })"
    )
    assert len(boxes) >= 3
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 1 and b[1] < a[3] - 1)


def test_pointing_at_a_curve_says_its_figures(open_page):
    page = open_page()
    page.locator("#agent").fill("fast")
    chart = page.locator("#curves svg").first
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 16, "y": box["height"] / 2})
    assert page.locator("#curves .read").inner_text() == "fast, 40 edits: efficacy 35.0 (seeds 30.0 to 40.0)"


def test_choosing_a_name_brings_it_forward(open_page):
    page = open_page()
    page.locator(".legend button", has_text="slow").click()
    page.mouse.move(0, 0)
    assert (
        page.locator("#curves .line:not(.faded)").evaluate_all("lines => lines.map(line => line.dataset.agent)")
        == ["slow"] * 3
    )


def test_of_a_crowd_the_best_come_forward_until_a_name_is_chosen(browser, tmp_path):
    found = entries([run("no-edit", 0, 99.0, 1.0), *(run(f"agent-{i:02}", 0, 10.0 + i, 2.0) for i in range(12))])
    (tmp_path / "crowd.html").write_text(
        page_of(found, {p: Leaderboard(found, p) for p in RANKED}, []), encoding="utf-8"
    )
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "crowd.html").as_uri())
    forward = "lines => [...new Set(lines.map(line => line.dataset.agent))].sort()"
    lines = page.locator("#curves .line:not(.faded)")
    assert lines.evaluate_all(forward) == [f"agent-{i:02}" for i in range(6, 12)], "references aside"
    assert page.locator("#pareto g.dot.faded").count() == 0
    page.locator(".legend button", has_text="agent-01").click()
    page.mouse.move(0, 0)
    assert lines.evaluate_all(forward) == ["agent-01"]
    context.close()


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
    found = open_page(color_scheme=scheme).evaluate(CONTRAST)
    assert len(found) > 200
    assert [entry for entry in found if entry[0] < 4.5] == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_fits_its_window(open_page, width):
    page = open_page(viewport={"width": width, "height": 800}, has_touch=width == 360)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator("#curves svg, #pareto svg").all():
        box = chart.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] > 150
    assert float(page.locator("#board").evaluate("table => parseFloat(getComputedStyle(table).fontSize)")) >= 13


def test_charts_follow_the_window(open_page):
    page = open_page()
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.querySelector('#pareto svg').getBoundingClientRect().right <= 400")
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
    shown = page.locator("#paper details").first.inner_text()
    for text in ("Ours", "Theirs (Li et al. 2025, arXiv 2502.05759)", "Llama-3-8B", "95.34 / 93.58 / 70.36"):
        assert text in shown
    assert page.locator("#board", has_text="95.34").count() == 0
