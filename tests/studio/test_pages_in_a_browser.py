"""What a person does on each page, in a real browser: nothing is fetched from elsewhere, nothing complains, nothing
sticks out. The pictures of the documentation are made here when COCOMIX_PICTURES names their folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from cocomix.studio.app import launch

PICTURES = os.environ.get("COCOMIX_PICTURES")
TEXT = "The economy of the country depends on oil and natural gas. <b>Agriculture</b> {{x}} is small."
PROMPT = "The country exports"
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def url(studio):
    app = launch(studio)
    yield app.local_url
    app.close(verbose=False)


@pytest.fixture(params=[1280, 390])
def page(request, browser, url):
    """A window of this width; at its end nothing may have been complained of, fetched from elsewhere or stuck out."""
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    assert page.evaluate(
        """() => [...document.querySelectorAll('.studio *')].filter(e => !e.closest('.scroll') && !e.closest('svg'))
            .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + ' ' + e.className)"""
    ) == []  # fmt: skip
    assert complaints == []
    assert [found for found in requests if not found.startswith((url, "data:", "blob:"))] == []
    page.close()


def opened(page, url: str, tab: str, **asked: str):
    page.goto(f"{url}?" + "&".join(f"{key}={quote(value)}" for key, value in {"tab": tab, **asked}.items()))
    page.wait_for_function("window.studio?.isRestored")
    return page


def address(page) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(page.url).query).items()}


def picture(page, name: str) -> None:
    if PICTURES and page.viewport_size["width"] == 1280:
        page.mouse.move(0, 0)
        page.screenshot(path=Path(PICTURES) / f"studio-{name}.png", full_page=True)


def test_read_a_text_choose_a_token_with_the_keys_measure_and_come_back(page, url, studio) -> None:
    opened(page, url, "read")
    page.fill("#read-text textarea", TEXT)
    page.click("#read-button")
    page.wait_for_selector("#read-shown .token")
    assert "".join(page.locator("#read-shown .token").all_inner_texts()) == TEXT
    page.focus("#read-shown .token >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#read-panel td")
    assert page.inner_text("#read-panel h3").startswith("Token 2:")
    assert page.locator("#read-panel tbody tr").count() == 8
    page.click("#read-measure")
    page.wait_for_selector("#read-panel th:text-is('teacher')")
    cells = page.locator("#read-panel tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.innerText))"
    )
    doing = studio.measure(TEXT, 2)
    assert page.locator("#read-panel .concept >> nth=0").bounding_box()["width"] >= 100
    assert [float(row[4]) for row in cells] == pytest.approx(doing.alone, abs=6e-4)
    assert [row[5] != "–" for row in cells] == [strength > 0 for strength in doing.teacher]
    picture(page, "read")
    page.wait_for_function("location.search.includes('text=')")
    page.reload()
    page.wait_for_selector("#read-shown .token")
    assert "".join(page.locator("#read-shown .token").all_inner_texts()) == TEXT


@pytest.mark.parametrize("page", [390], indirect=True)
def test_what_is_chosen_and_measured_is_of_the_text_that_was_read(page, url, studio) -> None:
    opened(page, url, "read", text=TEXT)
    page.fill("#read-text textarea", PROMPT)
    page.click("#read-shown .token >> nth=9")
    page.wait_for_selector("#read-panel h3 >> text=Token 9:")
    page.click("#read-measure")
    page.wait_for_selector("#read-panel th:text-is('effect')")
    assert f"log p {studio.measure(TEXT, 9).log_probability:.2f}" in page.inner_text("#read-panel")
    page.click("#read-button")
    page.wait_for_selector("#read-panel >> text=Choose a token")
    page.click("#read-measure")
    page.wait_for_selector("[role=alert] >> text=choose a token of the text first")


def test_a_click_on_a_token_and_its_concept_leads_to_the_card_and_to_colours(page, url) -> None:
    opened(page, url, "read", text=TEXT)
    page.click("#read-shown .token >> nth=5")
    page.click("#read-panel .concept >> nth=0")
    page.wait_for_selector("#concept-card article")
    page.wait_for_function("location.search.includes('concept=')")
    concept = address(page)["concept"]
    assert page.inner_text("#concept-card h2 small") == f"concept {concept}"
    page.click("#concept-colour")
    page.wait_for_selector(f"text=strength of concept {concept} where it is mixed")
    assert page.input_value("#read-colour input, #read-colour textarea") == concept
    coloured = page.locator("#read-shown .token").nth(5).get_attribute("style")
    assert float(re.search(r"--v:\s*([\d.]+)", coloured)[1]) > 0


def test_search_a_concept_and_rename_it(page, url, studio) -> None:
    concept = studio.search("")[2]
    word = concept["promoted"][0]["token"].strip()
    opened(page, url, "concept")
    page.fill("#concept-search input, #concept-search textarea", word)
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('search=')")
    page.click(f"#concept-found [data-concept='{concept['id']}']")
    page.wait_for_selector("#concept-card article")
    assert page.inner_text("#concept-card h2 small") == f"concept {concept['id']}"
    picture(page, "concept")
    try:
        page.fill("#concept-name input, #concept-name textarea", HOSTILE)
        page.click("#concept-rename")
        page.wait_for_function("document.querySelector('#concept-card h2').innerText.includes('<img')")
        assert page.locator("#concept-card img").count() == 0
        assert studio.card(concept["id"])["name"] == HOSTILE
        page.reload()
        page.wait_for_selector("#concept-card article")
        assert HOSTILE in page.inner_text("#concept-card h2")
        assert page.title() != "1"
    finally:
        studio.rename(concept["id"], "")


def test_move_a_slider_watch_both_texts_and_come_back(page, url, studio) -> None:
    concept = studio.read(PROMPT).tokens[-1].concepts[0].id
    opened(page, url, "concept", concept=str(concept))
    page.wait_for_selector("#concept-card article")
    page.click("#concept-steer")
    page.fill("#steer-prompt textarea", PROMPT)
    slider = page.locator("#steer-value-0 input[type=range]")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "2.3"
    page.fill("#steer-value-0 input[type=number]", "10")
    page.keyboard.press("Tab")
    page.evaluate(
        """() => { window.lengths = []; new MutationObserver(() => {
            const texts = [...document.querySelectorAll('#steer-shown .written p')].map(p => p.innerText.length);
            if (texts.length) lengths.push(texts); }).observe(document.querySelector('#steer-shown'),
            {subtree: true, childList: true, characterData: true}); }"""
    )
    page.click("#steer-go")
    page.wait_for_selector("#steer-shown .state >> text=done")
    lengths = page.evaluate("lengths")
    assert len({lengths[0] for lengths in lengths}) > 2
    assert len({lengths[1] for lengths in lengths}) > 2
    unsteered, steered = page.locator("#steer-shown .written p").all_inner_texts()
    assert unsteered.startswith(PROMPT)
    assert steered.startswith(PROMPT)
    assert unsteered != steered
    page.click("text=The same by command line and in Python")
    assert f"--steer {concept}=set:10u -- '{PROMPT}'" in page.input_value(
        "#steer-command textarea, #steer-command input"
    )
    page.click("text=The same by command line and in Python")
    page.click("#steer-dose")
    page.wait_for_function("document.querySelectorAll('#steer-doses circle').length == 9")
    picture(page, "steer")
    page.wait_for_function("location.search.includes('edits=')")
    page.reload()
    page.wait_for_function("window.studio?.isRestored")
    page.wait_for_function(f"document.querySelector('#steer-prompt textarea')?.value == '{PROMPT}'")
    assert page.input_value("#steer-value-0 input[type=number]") == "10"
    assert page.input_value("#steer-concept-0 input, #steer-concept-0 textarea") == str(concept)


@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_text_too_long_for_the_address_takes_the_one_before_out_of_it(page, url) -> None:
    opened(page, url, "read", text=TEXT)
    page.evaluate("text => studio.remember({text, colour: '5'})", "x" * 6000)
    assert address(page) == {"tab": "read"}
    page.evaluate("studio.remember({colour: '7'})")
    assert address(page) == {"tab": "read", "colour": "7"}


@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_new_prompt_that_is_sent_by_the_keys_is_kept_in_the_address(page, url) -> None:
    opened(page, url, "steer", prompt=PROMPT, edits="5=off", tokens="2")
    page.fill("#steer-prompt textarea", "The island")
    page.press("#steer-prompt textarea", "Shift+Enter")
    page.wait_for_function("location.search.includes('prompt=The+island')")
    page.wait_for_selector("#steer-shown .state >> text=done")
    page.fill("#steer-prompt textarea", "The coast")
    page.press("#steer-prompt textarea", "Shift+Enter")
    page.wait_for_function("location.search.includes('prompt=The+coast')")


@pytest.mark.parametrize("page", [390], indirect=True)
@pytest.mark.parametrize(("concept", "alerts"), [("7", 0), ("9", 1)])
def test_a_concept_to_steer_with_finds_its_row_or_is_told(page, url, concept: str, alerts: int) -> None:
    opened(page, url, "concept", edits="5=off\n6=off\n7=off\n8=off", concept=concept)
    page.wait_for_selector(f"#concept-card h2 small >> text=concept {concept}")
    page.click("#concept-steer")
    page.wait_for_selector("#steer-go >> visible=true")
    page.wait_for_function("location.search.includes('tab=steer')")
    assert page.locator("[role=alert] >> text=no row is free for concept 9").count() == alerts
    fields = [page.input_value(f"#steer-concept-{n} input, #steer-concept-{n} textarea") for n in range(4)]
    assert fields == ["5", "6", "7", "8"]


@pytest.mark.parametrize("page", [390], indirect=True)
def test_a_card_is_filled_once_its_usual_strength_is_measured(page, url, studio) -> None:
    studio._usual = None
    with studio._usual_lock:
        opened(page, url, "concept", concept="7")
        page.wait_for_selector("#concept-card dd >> text=measuring …")
    page.wait_for_selector("#concept-card dd >> text=measuring … >> visible=true", state="detached")
    assert page.inner_text("#concept-card h2 small") == "concept 7"


def test_stop_ends_a_text(page, url, studio) -> None:
    opened(page, url, "steer", prompt=PROMPT, tokens="40", edits="5=set:3")
    page.wait_for_selector("#steer-go")
    handle = studio.model.register_forward_pre_hook(lambda *_: __import__("time").sleep(0.1))
    try:
        page.click("#steer-go")
        page.wait_for_selector("#steer-shown .state >> text=writing")
        page.click("#steer-stop")
        page.wait_for_selector("#steer-shown .state >> text=stopped")
    finally:
        handle.remove()
    page.click("#steer-go")
    page.wait_for_selector("#steer-shown .state >> text=done")


def test_compare_runs_and_come_back(page, url) -> None:
    opened(page, url, "runs")
    page.wait_for_selector("#runs-shown svg")
    assert page.locator("#runs-shown tbody tr").count() == 2
    picture(page, "runs")
    page.click("#runs-axis >> text=FLOPs")
    page.wait_for_selector("#runs-shown >> text=training FLOPs")
    page.click("#runs-chosen >> text=ntp")
    page.click("#runs-go")
    page.wait_for_function("document.querySelectorAll('#runs-shown tbody tr').length == 1")
    page.wait_for_function("location.search.includes('runs=cocomix')")
    assert address(page)["axis"] == "flops"


@pytest.mark.parametrize("page", [390], indirect=True)
@pytest.mark.parametrize(
    ("tab", "asked", "sentence"),
    [
        ("read", {"text": TEXT, "colour": "9999"}, "there is no concept '9999'"),
        ("concept", {"concept": HOSTILE}, "there is no concept '<img'"),
        ("runs", {"runs": "../../etc\ncocomix"}, "ntp"),
        ("nowhere", {"tokens": "NaN", "seed": "-1", "axis": HOSTILE, "edits": HOSTILE}, "Text"),
    ],
)
def test_an_address_that_somebody_made_up_is_told_or_passed_over(page, url, tab, asked, sentence: str) -> None:
    opened(page, url, tab, **asked)
    page.wait_for_selector(f"text={sentence} >> visible=true")
    assert page.title() != "1"


@pytest.mark.parametrize("page", [390], indirect=True)
def test_mistakes_are_told_beside_the_text(page, url) -> None:
    opened(page, url, "steer", prompt=PROMPT, edits=f"999=off\n{HOSTILE}")
    page.wait_for_selector("#steer-go")
    page.click("#steer-go")
    page.wait_for_selector("[role=alert]")
    assert "no edit" in page.inner_text("[role=alert]")


def test_a_dark_page_can_be_read(browser, url) -> None:
    page = browser.new_page(color_scheme="dark")
    opened(page, url, "read", text=TEXT)
    page.wait_for_selector("#read-shown .token")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for text in (".studio h1", "#read-shown .token", ".studio .quiet"):
        ink = page.evaluate("text => getComputedStyle(document.querySelector(text)).color", text)
        assert brightness(ink) - brightness(ground) > 0.4, (text, ink, ground)
    page.close()


def brightness(colour: str) -> float:
    """Of 0 to 1, the mean of the three, of what a browser says a colour is."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour.partition("(")[2].removeprefix("srgb"))]
    return sum(numbers[:3]) / (3 * (1 if "srgb" in colour else 255))
