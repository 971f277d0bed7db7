"""The page, in a real browser: what is dropped on it, written in it, and how it is walked through."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from educe.serve import ModelSource
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.serve.models import write_embedder, write_transcriber
from tests.serve.test_openai_chat import chat_source

CHROMIUM = shutil.which("chromium")
ZOO = ROOT / "zoo"
KEY = "a-key-for-the-tests"
DONE = ".result .facts, .result .alert"
FORBIDDEN = ("Content Security Policy", "TrustedHTML", "TrustedScript")
MODELS = (
    *("mobilenet_v2", "yolox_nano", "silero_vad", "breast_cancer", "comment_spam", "magika", "stories260K"),
    "transliteration_int8",
)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("models")
    made = (
        chat_source(),
        ModelSource("embedder", write_embedder(folder / "embedder")),
        ModelSource("transcriber", write_transcriber(folder / "transcriber")),
    )
    with serving(*MODELS, *made) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any, server: Client) -> Iterator[Callable[..., Any]]:
    """Open a model's page; at the end of the test there is no fault in any page's console."""
    contexts, faults = [], []

    def open_at(model: str, url: str = server.url, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None
        )
        page.goto(f"{url}/#{model}")
        page.wait_for_selector("main h1, main .alert")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert faults == []


def give(page: Any, path: Path) -> None:
    page.set_input_files("main input[type=file]", path)
    page.wait_for_selector(DONE)


def drop(page: Any, path: Path, media_type: str) -> None:
    """Drop a file on the page's zone for it, as a hand does."""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name, type]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            return transfer;
        }""",
        [content, path.name, media_type],
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(DONE)


def has_no_overflow(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def lightness(page: Any, selector: str, kind: str) -> float:
    """Return the lightness of a colour, 0 to 1, as the browser computes it."""
    colour = page.eval_on_selector(selector, f"each => getComputedStyle(each).{kind}")
    return sum(int(each) for each in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 765


def test_a_picture_that_is_dropped_is_named(open_page: Callable[..., Any]) -> None:
    page = open_page("mobilenet_v2")
    drop(page, ZOO / "images" / "zebra.jpeg", "image/jpeg")
    assert page.inner_text(".labels li:first-child .label") == "zebra"
    assert page.locator(".labels .bar").count() >= 5
    assert [each.inner_text() for each in page.locator(".facts dt").all()] == [
        *("Queue", "Run", "Round trip", "Rows in the run")
    ]


def test_boxes_are_drawn_on_a_photo_of_a_street(open_page: Callable[..., Any], server: Client) -> None:
    photo = ZOO / "detection" / "000000423617.jpg"
    found = server.json("POST", "/v1/models/yolox_nano/predict", photo.read_bytes())["predictions"]
    page = open_page("yolox_nano")
    drop(page, photo, "image/jpeg")
    boxes = page.locator(".boxes rect.box").all()
    assert len(boxes) == len(found) == page.locator(".found li").count() > 4
    left, top, right, bottom = found[0]["box"]
    drawn = [float(boxes[0].get_attribute(name)) for name in ("x", "y", "width", "height")]
    assert drawn == pytest.approx([left, top, right - left, bottom - top])
    picture, layer = (page.locator(each).bounding_box() for each in (".picture img", ".boxes"))
    assert layer == pytest.approx(picture, abs=1)
    page.focus(".found li:nth-child(2) button")
    assert page.locator(".boxes g.dim").count() == len(found) - 1


def labels_drawn(page: Any) -> list[tuple[float, float, float, float]]:
    """Return where the labels of boxes are, each with its text, in pixels of the picture."""
    drawn = page.eval_on_selector_all(
        ".boxes g",
        """groups => groups.map((group) => [group, group.querySelector("rect")].map((each) => each.getBBox()))
            .map((pair) => pair.map(({ x, y, width, height }) => [x, y, x + width, y + height]))""",
    )
    assert all(whole == pytest.approx(shade, abs=0.01) for whole, shade in drawn)
    return [tuple(whole) for whole, _ in drawn]


def assert_apart(labels: list[tuple[float, float, float, float]]) -> None:
    """No label covers another, and all are inside a picture of 640 × 480 pixels."""
    for left, top, right, bottom in labels:
        assert -0.01 <= left < right <= 640.01
        assert -0.01 <= top < bottom <= 480.01
    for one, other in combinations(labels, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("photo", ["000000423617.jpg", "000000255165.jpg", "000000126107.jpg"])
def test_labels_of_close_boxes_do_not_cover_each_other(open_page: Callable[..., Any], photo: str) -> None:
    page = open_page("yolox_nano")
    give(page, ZOO / "detection" / photo)
    labels = labels_drawn(page)
    assert len(labels) == page.locator(".found li").count() > 4
    assert_apart(labels)


def test_labels_of_a_crowd_find_room_inside_the_picture(open_page: Callable[..., Any]) -> None:
    corners = ([-9, -4, 60, 50], [610, -3, 650, 80], [-5, 440, 30, 490], [600, 450, 641, 481])
    crowd = [[300 + 7 * at, 200 + 3 * at, 330 + 7 * at, 260 + 3 * at] for at in range(12)]
    found = [
        {"box": box, "label": "WWWWW" if at % 2 else "illi", "score": 0.9 - at / 50}
        for at, box in enumerate([*corners, *crowd, *corners, [0, 0, 640, 480], [0, 0, 640, 480]])
    ]
    page = open_page("yolox_nano")
    page.route("**/predict", lambda route: route.fulfill(json={"predictions": found}))
    give(page, ZOO / "detection" / "000000423617.jpg")
    labels = labels_drawn(page)
    assert len(labels) == len(found)
    assert_apart(labels)
    # The most certain of a crowd has the place just above its box.
    assert labels[4][0] == pytest.approx(crowd[0][0], abs=0.01)
    assert labels[4][3] == pytest.approx(crowd[0][1], abs=0.01)
    # No box's line crosses a label.
    kinds = page.eval_on_selector_all(".boxes > *", "all => all.map((each) => each.tagName)")
    assert kinds == ["rect"] * len(found) + ["g"] * len(found)


def test_boxes_are_drawn_on_each_frame_of_a_video(open_page: Callable[..., Any]) -> None:
    page = open_page("yolox_nano")
    give(page, ZOO / "video" / "traffic_frames.mp4")
    assert page.inner_text(".result .summary >> nth=0") == "20 frames"
    assert page.locator(".boxes rect.box").count() == page.locator(".found li").count() > 1
    page.eval_on_selector("video", "player => { player.currentTime = player.duration; }")
    page.wait_for_selector(".summary:has-text('Frame 19')")


def test_segments_of_a_sound_stand_on_its_wave(open_page: Callable[..., Any]) -> None:
    page = open_page("silero_vad")
    give(page, ZOO / "silero_vad" / "inputs" / "jfk.wav")
    assert page.locator(".wave .segment").count() == page.locator(".segments li").count() == 5
    page.click(".segments li:nth-child(3) button")
    assert page.eval_on_selector("audio", "player => player.currentTime") >= 3.9


def test_rows_of_a_table_and_lines_of_a_text_have_answers(open_page: Callable[..., Any]) -> None:
    table = ZOO / "breast_cancer" / "inputs" / "patients.csv"
    page = open_page("breast_cancer")
    assert page.input_value("main textarea.rows").startswith("mean radius,")
    give(page, table)
    assert page.locator(".result tbody tr").count() == len(table.read_text("utf-8").splitlines()) - 1
    page = open_page("comment_spam")
    page.fill("main textarea >> nth=0", "buy cheap pills now\nI like this article")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(DONE)
    assert page.locator(".result tbody tr").count() == 2


def test_any_file_has_its_kind(open_page: Callable[..., Any]) -> None:
    page = open_page("magika")
    give(page, ZOO / "magika" / "inputs" / "orbit.py")
    assert "python" in page.inner_text(".labels li:first-child .label").lower()


def test_tensors_run_from_an_example_made_of_the_signature(open_page: Callable[..., Any]) -> None:
    page = open_page("breast_cancer")
    page.get_by_role("tab", name="Tensors").click()
    page.click("[role=tabpanel]:not([hidden]) button.primary")
    page.wait_for_selector(DONE)
    assert page.inner_text(".result tbody td >> nth=0") == "probabilities"
    page.fill("[role=tabpanel]:not([hidden]) textarea", "{")
    page.click("[role=tabpanel]:not([hidden]) button.primary")
    assert "no JSON" in page.inner_text("[role=alert]")


def test_zeros_of_a_large_tensor_need_not_be_written_out(open_page: Callable[..., Any]) -> None:
    page = open_page("yolox_nano")
    page.get_by_role("tab", name="Tensors").click()
    panel = "[role=tabpanel]:not([hidden])"
    assert '"data": []' in page.input_value(f"{panel} textarea")
    page.click(f"{panel} button.primary")
    page.wait_for_selector(f"{panel} {DONE}")
    assert page.locator(f"{panel} .result tbody tr").count() == 1
    assert page.locator("[role=alert]").count() == 0
    assert '"data": [0] * 519168\n' in page.inner_text(f"{panel} .code")
    assert page.get_by_role("tab", name="curl").count() == 0


def test_what_takes_long_tells_so_and_can_be_stopped(open_page: Callable[..., Any]) -> None:
    page = open_page("mobilenet_v2")
    # The server answers quickly, so that the request is held where it is sent.
    held: list[Any] = []
    page.route("**/predict", lambda route: held.append(route))
    page.set_input_files("main input[type=file]", ZOO / "images" / "zebra.jpeg")
    page.wait_for_selector(".result .busy:has-text('s')")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".result:has-text('Stopped.')")
    assert page.locator("[role=alert]").count() == page.locator(".busy").count() == 0
    held[0].abort()
    page.unroute("**/predict")
    give(page, ZOO / "images" / "zebra.jpeg")
    assert page.inner_text(".labels li:first-child .label") == "zebra"


def test_a_chat_streams_and_can_be_stopped(open_page: Callable[..., Any]) -> None:
    page = open_page("writer")
    page.click("summary:has-text('Sampling')")
    page.get_by_label("Most tokens").fill("30")
    page.get_by_label("Message").fill("Once upon a time")
    page.evaluate(
        """() => {
            window.sizes = new Set();
            const note = () => sizes.add(document.querySelector(".turn:last-child .said")?.innerText.length);
            const log = document.querySelector(".log");
            new MutationObserver(note).observe(log, { childList: true, subtree: true });
        }"""
    )
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn:nth-child(2):not([aria-busy])")
    assert page.evaluate("sizes.size") > 5
    facts = page.inner_text(".status")
    assert "30" in facts
    assert "First token" in facts
    page.get_by_label("Most tokens").fill("400")
    page.get_by_label("Message").fill("And then")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn:nth-child(4) .said:not(:empty)")
    page.keyboard.press("Escape")
    page.wait_for_selector(".status dd:has-text('by you'), .status dd:has-text('at ')")


def test_a_text_is_continued(open_page: Callable[..., Any]) -> None:
    page = open_page("stories260K")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector(".status dd:has-text('at ')")
    assert page.inner_text(".said").startswith("Once upon a time")
    assert len(page.inner_text(".said")) > 60


def test_vectors_translations_and_transcripts(open_page: Callable[..., Any], server: Client) -> None:
    page = open_page("embedder")
    page.fill("main textarea", "abc\nabd\nxyz")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(DONE)
    assert page.inner_text(".shaded >> nth=0") == "1.00"
    assert page.locator(".shaded").count() == 9
    page = open_page("transliteration_int8")
    page.fill("main textarea", "abc")
    page.get_by_role("button", name="Translate").click()
    page.wait_for_selector(DONE)
    assert page.inner_text(".transcript")
    page = open_page("transcriber")
    give(page, ZOO / "kws" / "inputs" / "go.wav")
    assert page.locator(".transcript").count() == 1


def test_everything_can_be_done_with_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page("mobilenet_v2")
    # Playwright begins to watch for choosers without waiting until the browser knows it.
    page.on("filechooser", lambda chooser: None)
    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip to the model"
    page.keyboard.press("Enter")
    assert page.evaluate("[document.activeElement.id, location.hash]") == ["work", "#mobilenet_v2"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(":focus") == "Tensors"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(ZOO / "images" / "zebra.jpeg")
    page.wait_for_selector(DONE)
    names = []
    for _ in range(3):
        page.keyboard.press("Tab")
        names.append(page.inner_text(":focus"))
        assert page.eval_on_selector(":focus", "each => getComputedStyle(each).outlineStyle") != "none"
    assert "Copy" in names


def test_all_that_is_asked_for_has_a_name(open_page: Callable[..., Any]) -> None:
    nameless = """() => [...document.querySelectorAll("input, textarea, select, button, a, img, svg")]
        .filter((each) => each.checkVisibility() && !each.closest("[aria-hidden]"))
        .filter((each) => !(each.labels?.length || each.innerText?.trim() || each.hasAttribute("aria-label")
            || each.hasAttribute("alt"))).map((each) => each.outerHTML)"""
    for model in (*MODELS, "writer", "embedder", "transcriber"):
        page = open_page(model)
        assert page.evaluate(nameless) == []
        assert page.evaluate("document.querySelectorAll('h1').length") == 1


@pytest.mark.parametrize("model", [*MODELS, "writer", "embedder", "transcriber"])
def test_a_phone_needs_no_scrolling_to_the_side(open_page: Callable[..., Any], model: str) -> None:
    page = open_page(model, viewport={"width": 360, "height": 740}, has_touch=True)
    assert has_no_overflow(page)
    assert page.locator("#model-select").is_visible()
    assert not page.locator("#model-list").is_visible()
    if model == "yolox_nano":
        give(page, ZOO / "detection" / "000000423617.jpg")
    elif model == "breast_cancer":
        give(page, ZOO / "breast_cancer" / "inputs" / "patients.csv")
    page.locator("summary").first.click()
    assert has_no_overflow(page)


def test_dark_mode_and_reduced_motion_are_heeded(open_page: Callable[..., Any]) -> None:
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = open_page("mobilenet_v2", color_scheme=scheme, reduced_motion="reduce")
        paper, ink = lightness(page, "body", "backgroundColor"), lightness(page, "h1", "color")
        assert (paper < 0.2, ink > 0.8) == (is_dark, is_dark)
        assert page.eval_on_selector(".drop", "each => getComputedStyle(each).transitionDuration") == "0s"


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any) -> None:
    with serving("mnist", api_keys=(KEY,)) as client:
        context = browser.new_context(http_credentials={"username": "", "password": KEY})
        page = context.new_page()
        page.goto(client.url)
        page.wait_for_selector("[role=alert]")
        assert "key is needed" in page.inner_text("[role=alert]")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("main h1")
        give(page, ZOO / "mnist" / "inputs" / "7.png")
        assert page.inner_text(".labels li:first-child .label") == "7"
        assert "$EDUCE_API_KEY" in page.inner_text(".code:not([hidden])")
        assert KEY not in page.content()
        page.reload()
        page.wait_for_selector("main h1")
        page.get_by_role("link", name="OpenAPI").click()
        assert '"openapi":"3.1.0"' in page.inner_text("body")
        context.close()


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("text.png", 0, "is no picture"),
        ("head.jpg", 700, "broken picture"),
        ("half.jpg", 100_000, "broken picture"),
    ],
)
def test_a_broken_picture_has_its_name_in_place_of_a_preview(
    browser: Any, server: Client, tmp_path: Path, name: str, size: int, told: str
) -> None:
    photo = (ZOO / "detection" / "000000423617.jpg").read_bytes()
    broken = tmp_path / name
    broken.write_bytes(photo[:size] or b"a text that is called a picture")
    page = browser.new_page()
    page.goto(f"{server.url}/#yolox_nano")
    give(page, broken)
    assert page.locator(".picture").count() == 0
    assert page.inner_text(".result .file").startswith(name)
    assert "the browser cannot show it" in page.inner_text(".result .file")
    assert told in page.inner_text("[role=alert]")
    page.close()


def test_a_picture_that_only_the_server_reads_has_its_answer(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    scan = tmp_path / "street.tiff"
    with Image.open(ZOO / "detection" / "000000423617.jpg") as photo:
        photo.save(scan)
    page = open_page("yolox_nano")
    give(page, scan)
    assert page.locator(".picture").count() == page.locator("[role=alert]").count() == 0
    assert "the browser cannot show it" in page.inner_text(".result .file")
    assert page.locator(".found li").count() > 4


def test_a_fault_is_told_in_words(browser: Any, server: Client) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/#mobilenet_v2")
    give(page, ZOO / "breast_cancer" / "inputs" / "patients.csv")
    assert "That did not work." in page.inner_text("[role=alert]")
    page.close()


def test_the_page_asks_nobody_else_and_runs_nothing_else(browser: Any, server: Client) -> None:
    page = browser.new_page()
    asked, lines = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda line: lines.append(line.text))
    page.goto(f"{server.url}/#mobilenet_v2")
    give(page, ZOO / "images" / "zebra.jpeg")
    assert all(url.startswith((server.url, "blob:")) for url in asked)
    assert not [line for line in lines if any(each in line for each in FORBIDDEN)]
    page.evaluate("""() => {
        const image = new Image();
        image.src = "https://example.org/";
        document.body.append(image);
    }""")
    page.wait_for_timeout(200)
    assert [line for line in lines if FORBIDDEN[0] in line]
    page.close()


def test_files_are_sent_once(server: Client) -> None:
    status, fields, content = server.ask("GET", "/page/app.js")
    assert (status, fields["cache-control"]) == (200, "no-cache")
    assert content
    status, _, content = server.ask("GET", "/page/app.js", headers={"if-none-match": fields["etag"]})
    assert (status, content) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/page/style.css", "/page/app.js", "/page/icon.svg"])
def test_each_file_has_the_headers_of_safety(server: Client, path: str) -> None:
    _, fields, _ = server.ask("GET", path)
    policy = fields["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["x-frame-options"] == "DENY"
    assert fields["referrer-policy"] == "no-referrer"
    assert "application/octet-stream" not in fields["content-type"]
