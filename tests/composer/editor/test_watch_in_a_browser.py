"""The page of composer watch in a real browser."""

import shutil
import time

import pytest

from composer.editor.watch_look import Looker, Request
from tests.helpers.browser import browser
from tests.helpers.paths import CONFIGS
from tests.helpers.watching import served

pytestmark = pytest.mark.full

GOOD = "document.body.className === 'good'"
BAD = "document.body.className === 'bad'"
VIEW = "svg.getAttribute('viewBox')"
CHANGED = "[...document.querySelectorAll('g.changed')].map((box) => boxes[box.id].path).sort()"
NUMBER = "last.number"


def shape(path: str) -> str:
    """JavaScript for the box of a path."""
    return f"svg.getElementById(Object.keys(boxes).find((id) => boxes[id].path === '{path}'))"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(CONFIGS / "environments", folder / "environments")
    return folder


@pytest.fixture(scope="module")
def looker(folder):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(folder)
    request = Request(str(folder / "complex.yaml"), allow=("environments",))
    looker = Looker(request)
    yield looker
    looker.close()
    monkeypatch.undo()


@pytest.fixture
def spec(folder):
    spec = folder / "complex.yaml"
    shutil.copy(CONFIGS / "complex.yaml", spec)
    return spec


@pytest.fixture
def page(tab, spec, looker, tmp_path):
    """The page of configs/complex.yaml; a place that is opened makes a file of that name in ``tmp_path``."""
    with served(looker.look, spec, f"touch {tmp_path}/{{line}}-{{column}} {{file}}") as client:
        tab.events.clear()
        tab.size(1400, 900)
        tab("Page.navigate", url=f"http://{client.host}{client.path}")
        tab.wait(f"typeof last !== 'undefined' && last !== null && {GOOD} && svg !== null")
        yield tab
        assert tab.complaints() == []
        asked = [
            event["params"]["request"]["url"]
            for event in tab.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert [
            url for url in asked if not url.startswith((f"http://{client.host}/", "data:"))
        ] == []
        tab("Page.navigate", url="about:blank")


def save(tab, spec, before, after, then):
    """Replace a text of the spec, and wait for the page."""
    number = tab.run(NUMBER)
    text = spec.read_text()
    assert before in text
    spec.write_text(text.replace(before, after, 1))
    tab.wait(f"{NUMBER} > {number} && {then}")


def test_zoom_and_choice_stay_and_changed_boxes_are_marked(page, spec):
    whole = page.run(VIEW)
    x, y = page.middle(shape("policy/latent"))
    page.click(x, y)
    assert page.run("document.getElementById('title').textContent") == "latent"
    for _ in range(3):
        page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    page.wait(f"{VIEW} !== '{whole}'")
    assert page.middle(shape("policy/latent")) == pytest.approx(
        (x, y), abs=60
    )  # zoomed at the pointer
    view = page.run(VIEW)
    save(page, spec, "hidden: 128", "hidden: 96", GOOD)
    assert page.run(VIEW) == view
    changed = page.run(CHANGED)
    assert "policy/latent" in changed
    assert "policy/scaled" not in changed
    assert "policy/heads/move" not in changed
    assert (
        page.run("document.getElementById('state').textContent") == f"good, {len(changed)} changed"
    )
    assert page.run(f"{shape('policy/latent')}.classList.contains('chosen')")
    mark = f"getComputedStyle({shape('policy/latent')}.querySelector('polygon')).strokeWidth"
    assert page.run(mark) == "3.5px"
    page.wait(f"{mark} !== '3.5px'")  # it fades
    page.run("document.getElementById('all').click()")
    assert page.run(VIEW) == page.run("whole.join(' ')")


def test_who_has_not_zoomed_sees_all_of_the_next_picture(page, spec):
    save(
        page,
        spec,
        "latent: {block: dense",
        "more: {block: dense, in: both, hidden_units: 256}\n    latent: {block: dense",
        "true",
    )
    save(
        page,
        spec,
        'in: both, hidden_units: "${params.hidden}"',
        "in: more, hidden_units: 128",
        GOOD,
    )
    assert page.run(VIEW) == page.run("whole.join(' ')")
    assert page.run(CHANGED) == ["policy/latent", "policy/more"]


def test_while_something_is_wrong_the_picture_is_grey_and_problems_open_their_place(
    page, spec, tmp_path
):
    color = "getComputedStyle({}.querySelector('polygon')).fill"
    blue = page.run(color.format(shape("policy/latent_screen")))
    view = page.run(VIEW)
    save(page, spec, "block: dense, in: both", "block: dnse, in: both", BAD)
    assert page.run("document.title") == "✗ 1 · complex.yaml"
    assert page.run(color.format(shape("policy/latent_screen"))) == "rgb(241, 243, 245)"
    borders = f"[...{shape('policy/memory')}.querySelectorAll('polygon')]"
    assert page.run(f"{borders}.map((border) => getComputedStyle(border).fill)") == [
        "rgb(241, 243, 245)",
        "none",  # a box with memory has two
    ]
    assert page.run(
        "[...document.querySelectorAll('g.wrong')].map((box) => boxes[box.id].path)"
    ) == ["policy/latent"]
    button = "document.querySelector('#problems button')"
    assert (
        page.run(f"{button}.textContent")
        == "complex.yaml:14:21unknown block 'dnse'; did you mean 'dense'?"
    )
    page.click(*page.middle(button))
    page.wait("document.getElementById('said').textContent.startsWith('opened ')")
    wait_for(tmp_path / "14-21")
    save(page, spec, "block: dnse, in: both", "block: dense, in: both", GOOD)
    assert page.run(color.format(shape("policy/latent_screen"))) == blue
    assert page.run("document.querySelectorAll('#problems button, g.wrong, g.changed').length") == 0
    assert page.run(VIEW) == view
    page.click(*page.middle(shape("policy/both")), count=2)
    wait_for(tmp_path / "13-11")


def wait_for(file):
    end = time.monotonic() + 10
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_dragging_moves_and_the_keyboard_chooses(page):
    whole = page.run("whole")
    page.mouse("mousePressed", 300, 500, button="left", clickCount=1)
    page.mouse("mouseMoved", 400, 540, button="left", buttons=1)
    page.mouse("mouseReleased", 400, 540, button="left", clickCount=1)
    x, y, width, height = page.run("view")
    assert (x < whole[0], y < whole[1]) == (True, True)
    assert [width, height] == whole[2:]
    page.run(f"{shape('policy/memory')}.focus()")
    page("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    assert page.run("document.getElementById('title').textContent") == "memory"
    page("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert page.run("document.getElementById('title').textContent") == ""


@pytest.mark.parametrize("width", [400, 700, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off(page, width, scheme):
    page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.size(width, 800)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("document.documentElement.scrollHeight <= innerHeight")
    assert page.run("document.getElementById('drawing').getBoundingClientRect().height") > 300
    paper = page.run("getComputedStyle(document.getElementById('frame')).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 20, 20)"}[scheme]


def test_a_place_is_copied_where_no_command_opens_it(tab, spec, looker):
    with served(looker.look, spec) as client:
        origin = f"http://{client.host}"
        tab(
            "Browser.grantPermissions",
            origin=origin,
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        )
        tab("Page.navigate", url=f"{origin}{client.path}")
        tab.wait(f"typeof last !== 'undefined' && last !== null && {GOOD} && svg !== null")
        tab.click(*tab.middle(shape("policy/latent")))
        tab.click(*tab.middle("document.querySelector('button.place')"))
        tab.wait("document.getElementById('said').textContent.startsWith('copied ')")
        assert tab.run("navigator.clipboard.readText()") == f"{spec}:14:13"


def test_the_page_says_that_the_command_has_ended(tab, spec, looker):
    with served(looker.look, spec) as client:
        tab("Page.navigate", url=f"http://{client.host}{client.path}")
        tab.wait(f"typeof last !== 'undefined' && last !== null && {GOOD}")
    tab.wait("document.getElementById('state').textContent === 'composer watch has ended'")
