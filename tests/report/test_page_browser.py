"""The report page in headless Chromium: `make test-browser`. Skipped if Chromium is missing.

$COMPRESSKV_AXE names axe-core's axe.min.js, which the make target fetches; without it, the checks by hand remain.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from evals.report.html.writing import write
from tests.support.trees import efficiency, line, longbench, needles, setting

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)
THEMES = ("light", "dark")
UNFOLD = "for (const details of document.querySelectorAll('details')) details.open = true"
HOSTILE = "</script><script>document.title = 'hacked'</script>\x1b[31m [bold]x[/bold] [d9676eeb]"


def lacking():
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return names + ([] if find_spec("selenium") else ["selenium"])


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. Without it the tests are skipped, or fail if COMPRESSKV_REQUIRE_BROWSER is set."""
    if names := lacking():
        refuse = pytest.fail if os.environ.get("COMPRESSKV_REQUIRE_BROWSER") else pytest.skip
        refuse(f"not installed: {', '.join(names)}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(240)  # axe takes a minute on a busy machine
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    needles(folder, "smollm2-135m")
    longbench(folder, "mistral-7b-instruct-v0.3")
    lines = [line(f"{n}{HOSTILE}", 10 * n, 64, prediction=f"answer-{n} {HOSTILE}", answers=[HOSTILE]) for n in range(3)]
    setting(folder, lines, "snapkv", 64, model="tiny[bold]", eval="jsonl", task="mine")
    for number in range(60):
        place = {"model": "tiny[bold]", "eval": "jsonl", "task": "other"}
        setting(folder, [line("1", number, 64)], "cake", 64 + number, **place)
    efficiency(folder, "smollm2-135m")
    return write(folder, tmp_path_factory.mktemp("out"))


@pytest.fixture
def opened(browser, path):
    """Open the page with a window width and a system theme."""

    def open_(width=1280, theme="light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(path.as_uri())
        return browser

    return open_


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent.trim())", selector
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_it_opens_without_errors_and_fits(opened, width, theme):
    browser = opened(width, theme)
    assert browser.get_log("browser") == []
    assert browser.title == "Results of mistral-7b-instruct-v0.3, smollm2-135m, tiny[bold]"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script(UNFOLD)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(253, 253, 252)") == (theme == "light")


def test_the_theme_can_be_chosen(opened):
    browser = opened(theme="dark")
    button = browser.find_element("id", "theme")
    colours = []
    for _ in range(3):
        colours.append((button.text, browser.execute_script("return getComputedStyle(document.body).backgroundColor")))
        button.click()
    assert colours == [
        ("Theme: system", "rgb(21, 24, 28)"),
        ("Theme: light", "rgb(253, 253, 252)"),
        ("Theme: dark", "rgb(21, 24, 28)"),
    ]


def test_tables_sort(opened):
    browser = opened()
    head = "#longbench table:not(.apart) thead th:nth-child(4)"  # the average, which comes first, has its interval

    def column():
        cells = texts(browser, "#longbench table:not(.apart) tbody td:nth-child(4)")
        return [float(text.split("†")[0]) for text in cells]

    before = column()
    button = find(browser, f"{head} button")[0]
    button.send_keys("\n")  # by keyboard
    assert column() == sorted(before, reverse=True)
    assert find(browser, head)[0].get_attribute("aria-sort") == "descending"
    button.click()
    assert column() == sorted(before)


def test_heatmaps_are_picked(opened):
    browser = opened()
    titles = texts(browser, "#panels figcaption")
    assert titles[0].startswith("FullKV mean")
    assert len(titles) == 7
    boxes = find(browser, "#panel-controls fieldset:last-of-type input")
    boxes[1].click()
    left = texts(browser, "#panels figcaption")
    assert [title.split(" mean")[0] for title in left] == ["FullKV", "StreamingLLM 64", "SnapKV 64", "CompressKV 64"]
    assert texts(browser, "#panel-note") == ["4 of 7 settings are chosen."]
    assert len(find(browser, "#panels figure:first-child tbody td")) == 10


def test_samples_are_searched_and_are_text(opened):
    from selenium.webdriver.support.select import Select

    browser = opened()
    search = browser.find_element("css selector", "#sample-controls input")
    search.send_keys("answer-2 </script>")
    assert texts(browser, "#sample-note")[0].startswith("1 of ")
    assert texts(browser, "#sample article .text") == [
        "answer-2 </script><script>document.title = 'hacked'</script>␛[31m [bold]x[/bold] [d9676eeb]"
    ]
    assert browser.title.startswith("Results")
    search.clear()
    search.send_keys(" ")
    task = Select(find(browser, "#sample-controls select")[0])
    task.select_by_visible_text("smollm2-135m · niah · needle · corrected")
    names = texts(browser, "#sample article h3 span:first-child")
    assert names[0] == "FullKV"
    assert len(names) == 7
    assert texts(browser, "#sample .tail") == ["…the end of the prompt of L1000-D0-N0"]
    assert texts(browser, "#sample article:nth-child(2) details > summary")[0].startswith("KL by token: up to 0.45")
    assert len(find(browser, "#sample article:nth-child(2) svg.bars")) == 2
    first = texts(browser, "#sample article .text")
    find(browser, "#sample-controls button")[1].click()
    assert texts(browser, "#sample article .text") != first


def test_settings_are_searched_and_explained(opened):
    browser = opened()
    assert texts(browser, "#setting-note") == ["1 to 50 of 80 settings"]
    find(browser, "#setting-controls button")[1].click()
    assert texts(browser, "#setting-note") == ["51 to 80 of 80 settings"]
    find(browser, "#setting-controls input")[0].send_keys("tiny[bold] snapkv")
    assert texts(browser, "#setting-note") == ["1 to 1 of 1 settings"]
    find(browser, "#setting-table tbody button")[0].click()
    detail = texts(browser, "#setting-detail")[0]
    for part in ("runs/tiny[bold]/jsonl/mine/corrected/snapkv/64-abcd1234", "0123456789abcdef", "torch 2.13.0"):
        assert part in detail
    assert browser.execute_script("return document.activeElement.id") == "setting-detail"
    find(browser, "#setting-table thead button")[5].click()
    assert find(browser, "#setting-table thead th")[5].get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("theme", THEMES)
def test_names_headings_landmarks_and_contrast(opened, theme):
    browser = opened(theme=theme)
    browser.execute_script(UNFOLD)
    checks = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")
    assert browser.execute_script(f"{checks}; return structure()") == []
    assert browser.execute_script(f"{checks}; return lowContrast()") == []


def test_focus_is_visible_and_follows_the_page(opened):
    from selenium.webdriver.common.keys import Keys

    browser = opened()
    seen = []
    for _ in range(14):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        style = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
        assert style != "none", focused.get_attribute("outerHTML")
        seen.append(focused.text)
    assert seen[0] == "To the results"
    assert "Overview" in seen
    assert "Theme: system" in seen


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe(opened, theme, width):
    axe = os.environ.get("COMPRESSKV_AXE")
    if not axe or not Path(axe).is_file():
        pytest.skip("no axe-core: set COMPRESSKV_AXE to its axe.min.js, as `make test-browser` does where npm is")
    browser = opened(width, theme)
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    browser.refresh()
    browser.execute_script(UNFOLD)
    browser.execute_script(Path(axe).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    violations = []
    for violation in found["violations"]:
        targets = [node["target"] for node in violation["nodes"][:3]]
        violations.append((violation["id"], violation["help"], targets))
    assert violations == []
