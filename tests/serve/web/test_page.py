"""The page as people use it: write, watch, choose, change, find again."""

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("playwright", reason="needs playwright, which [dev] brings")
pytest.importorskip("fastapi", reason="needs [serve]")

from playwright.sync_api import expect


def ask(page: Any, prompt: str) -> Any:
    """Write a prompt and press Enter. Returns the card of the job, once the server has accepted it."""
    cards = page.locator("#feed .job")
    before = cards.count()
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Enter")
    expect(cards).to_have_count(before + 1)
    return cards.first


def until(page: Any, condition: str) -> None:
    """Wait for JavaScript to be true. (Playwright's own way is eval, which the page's policy forbids.)"""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def test_from_a_prompt_to_the_gallery(site: Any, page: Any) -> None:
    card = ask(page, "a fox on a green background")
    expect(card.locator(".standing")).to_have_text("Next in the queue")
    expect(page.locator("#queue-count")).to_have_text("1")

    job = site.engine.begin()
    site.engine.show(job, 0.5)
    forming = card.locator("img.forming:visible")
    expect(forming).to_have_count(4)
    assert forming.first.get_attribute("src").startswith("blob:")
    expect(card.locator(".standing")).to_have_text("Drawing, 50 %")
    site.engine.end(job)
    expect(card.locator("button.plate img")).to_have_count(4)
    until(page, "blobs.size === 0")  # no preview is kept in memory
    expect(page.locator("#live")).to_have_text("4 pictures ready: a fox on a green background")
    expect(page.locator("#queue-count")).to_be_hidden()

    card.locator("li").nth(1).locator("[data-act=vary_strong]").click()
    varied = page.locator(".job").first
    expect(varied.locator(".lineage")).to_have_text("Varied strongly from picture 2")
    made = site.draw()
    assert (made.action, made.index, made.parent) == ("vary_strong", 1, job.id)
    expect(varied.locator("button.plate")).to_have_count(4)

    varied.locator("button.plate").first.click()
    viewer = page.locator("#viewer")
    expect(viewer.locator(".facts")).to_contain_text("Seed")
    viewer.locator("[data-act=upscale]").click()
    expect(viewer).to_be_hidden()
    expect(page.locator(".job").first.locator(".lineage")).to_have_text("Upscaled from picture 1")
    site.draw()
    expect(page.locator(".job").first.locator("button.plate")).to_have_count(1)

    page.locator("#to-gallery").click()
    expect(page.locator("#wall li")).to_have_count(9)
    page.locator("#prompt").evaluate(
        "(box) => { box.value = 'half a thought'; box.dispatchEvent(new Event('input')) }"
    )
    page.reload()
    expect(page.locator("#wall li")).to_have_count(9)
    page.locator("#to-draw").click()
    expect(page.locator(".job")).to_have_count(3)
    expect(page.locator("#prompt")).to_have_value("half a thought")


def test_a_region_is_painted(site: Any, page: Any) -> None:
    card = ask(page, "a fox")
    site.draw()
    card.locator("button.plate").first.click()
    page.locator("#viewer [data-act=region]").click()
    editor = page.locator("#editor")
    canvas = editor.locator("canvas")
    expect(canvas).to_have_attribute("aria-label", "Nothing is marked yet")
    expect(editor.get_by_role("button", name="Draw the region")).to_be_disabled()
    box = canvas.bounding_box()

    def stroke(x: float, y: float, to_x: float, to_y: float) -> None:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + to_x * box["width"], box["y"] + to_y * box["height"], steps=4)
        page.mouse.up()

    stroke(0.1, 0.1, 0.9, 0.1)
    editor.get_by_role("button", name="Undo").click()
    expect(canvas).to_have_attribute("aria-label", "Nothing is marked yet")
    editor.get_by_role("radio", name="Rectangle").check()
    stroke(0.5, 0.5, 1.0, 1.0)
    expect(canvas).to_have_attribute("aria-label", "Marked: 25 % of the picture")
    editor.get_by_role("radio", name="Eraser").check()
    stroke(0.5, 0.5, 0.5, 0.5)
    editor.get_by_label("What belongs there").fill("a hat")
    editor.get_by_role("button", name="Draw the region").click()
    expect(page.locator(".job").first.locator(".lineage")).to_have_text("Region drawn anew from picture 1")

    job = site.draw()
    assert job.action == "region"
    assert job.request["prompt"] == "a hat"
    named = job.request["mask"]
    assert isinstance(named, dict)
    with Image.open(site.store.pictures / site.store.picture(named["picture"]).file) as file:
        mask = file.convert("L")
    assert mask.size == (192, 192)
    assert mask.getpixel((150, 150)) == 255  # in the rectangle
    assert mask.getpixel((40, 20)) == 0  # painted and undone
    assert mask.getpixel((98, 98)) == 0  # erased
    assert {value for _, value in mask.getcolors()} == {0, 255}


def test_markup_in_a_prompt_stays_text(site: Any, page: Any) -> None:
    prompt = '<img src=x onerror="window.hit = true"><script>window.hit = true</script> & a fox'
    card = ask(page, prompt)
    page.locator("#to-queue").click()
    expect(page.locator("#waiting .said")).to_have_text(prompt)
    job = site.draw()
    page.locator("#to-draw").click()
    expect(card.locator("h2")).to_have_text(prompt)
    card.locator("button.plate").first.click()
    expect(page.locator("#viewer-prompt")).to_have_text(prompt)
    page.keyboard.press("Escape")
    page.locator("#to-gallery").click()
    expect(page.locator("#wall .caption").first).to_have_text(prompt)
    assert job.request["prompt"] == prompt
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x], #feed script").count() == 0


def test_the_gallery_is_searched_and_starred(site: Any, page: Any) -> None:
    for prompt in ("a fox", "a ghost"):
        ask(page, prompt)
        site.draw()
    card = page.locator(".job").first
    star = card.locator("li").first.get_by_role("button", name="Star")
    star.click()
    expect(star).to_have_attribute("aria-pressed", "true")
    page.locator("#to-gallery").click()
    wall = page.locator("#wall button")
    expect(wall).to_have_count(8)
    expect(page.locator("#wall .is-starred")).to_have_count(1)
    page.locator("#search").fill("fox")
    expect(wall).to_have_count(4)
    page.locator("#search").fill("")
    expect(wall).to_have_count(8)
    page.locator("#starred").click()
    expect(wall).to_have_count(1)
    expect(wall.first).to_have_attribute("aria-label", "a ghost, starred")
    wall.first.click()
    page.locator("#viewer").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog", name="Delete this picture?").get_by_role("button", name="Delete").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#wall-end")).to_have_text("No picture fits.")
    assert len(site.store.gallery("local")) == 7


def test_the_wall_goes_on(site: Any, page: Any) -> None:
    for number in range(5):
        asked = {"prompt": f"fox {number}", "count": 16, "size": [64, 64]}
        assert page.request.post(f"{site.url}jobs", data=asked).ok
        site.draw()
    page.locator("#to-gallery").click()
    wall = page.locator("#wall button")
    expect(wall).to_have_count(60)
    wall.last.scroll_into_view_if_needed()
    expect(wall).to_have_count(80)
    assert len(set(wall.evaluate_all("(all) => all.map((one) => one.dataset.id)"))) == 80


def test_details_become_the_request(site: Any, page: Any) -> None:
    page.locator("#details-open").click()
    page.get_by_role("button", name="One picture fewer").click()
    page.locator("#size").select_option("256x256")
    page.locator("#seed").fill("7")
    page.locator("#style").select_option("glossy")
    page.locator("#steps").fill("9")
    page.locator("#guidance").fill("3.5")
    page.locator("#sampler").select_option("euler")
    page.locator("#negative").fill("tree")
    expect(page.locator("#summary")).to_have_text("3 pictures · 256 × 256 · glossy · seed 7 · 9 steps")
    page.locator("#words-open").click()
    page.locator("#word-search").fill("fox")
    page.locator(".chip", has_text="fox").first.click()
    page.locator(".chip", has_text="fox").first.click()
    expect(page.locator("#prompt")).to_have_value("fox fox")
    page.locator("#submit").click()
    card = page.locator(".job").first
    expect(card).to_contain_text("mini · 256 × 256 · glossy · 9 steps · guidance 3.5 · euler · seed 7")
    request = site.draw().request
    wanted = {"count": 3, "size": [256, 256], "seed": 7, "style": "glossy", "steps": 9, "guidance": 3.5}
    wanted |= {"sampler": "euler", "negative_prompt": "tree", "prompt": "fox fox"}
    assert request.items() >= wanted.items()
    page.reload()  # a draft is the settings, too
    expect(page.locator("#summary")).to_have_text("3 pictures · 256 × 256 · glossy · seed 7 · 9 steps")
    card.get_by_role("button", name="Edit").click()
    expect(page.locator("#summary")).to_have_text("3 pictures · 256 × 256 · glossy · 9 steps")


def test_a_model_is_picked(open_site: Callable[..., Any], open_page: Callable[..., Any]) -> None:
    from dataclasses import replace

    from fakes import MINI

    plain = replace(
        MINI,
        name="plain",
        family="sdxl",
        default_size=(1024, 1024),
        sizes=(512, 2048),
        styles=(),
        can=frozenset(),
    )
    site = open_site(models=(MINI, plain))
    page = open_page(site)
    page.locator("#details-open").click()
    page.get_by_role("radio", name="plain").check()
    expect(page.locator("#summary")).to_have_text("4 pictures · 1024 × 1024 · plain")
    expect(page.locator("#words-open")).to_be_hidden()  # the words are those of the built-in model
    expect(page.locator("#negative")).to_have_count(0)
    page.locator("#size").select_option("832x1280")
    card = ask(page, "a fox")
    request = site.draw().request
    assert (request["model"], request["size"]) == ("plain", [1280, 832])
    expect(card.locator("[data-act=vary_strong]").first).to_be_disabled()  # it cannot begin with a picture


def picture(settings: str | None = None) -> dict[str, Any]:
    """A file as the browser is given it, with an infotext or without."""
    from PIL.PngImagePlugin import PngInfo

    encoded = io.BytesIO()
    told = PngInfo()
    if settings:
        told.add_text("parameters", settings)
    Image.new("RGB", (96, 64), "teal").save(encoded, "PNG", pnginfo=told)
    return {"name": "mine.png", "mimeType": "image/png", "buffer": encoded.getvalue()}


def test_a_picture_is_brought_to_start_from(site: Any, page: Any) -> None:
    page.locator("#file").set_input_files(picture())
    expect(page.locator("#start")).to_contain_text("96 × 64")
    page.locator("#strength").fill("40")
    page.reload()
    expect(page.locator("#start output")).to_have_text("40 %")
    card = ask(page, "a fox")
    expect(card).to_contain_text("strength 0.4")
    job = site.engine.begin()
    named = job.request["image"]
    assert isinstance(named, dict)
    assert site.store.picture(named["picture"]).width == 96
    assert job.request["strength"] == 0.4
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#start")).to_be_hidden()


def test_a_picture_is_dropped_for_its_settings(site: Any, page: Any) -> None:
    told = "a castle\nNegative prompt: rain\nSteps: 12, Sampler: Euler, CFG scale: 4, Seed: 99, Size: 192x192"
    files = page.evaluate_handle(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "old.png", { type: "image/png" }));
          return data;
        }""",
        list(picture(told)["buffer"]),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": files})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": files})
    expect(page.locator("#drop")).to_be_hidden()
    page.get_by_role("button", name="Use its settings").click()
    expect(page.locator("#prompt")).to_have_value("a castle")
    expect(page.locator("#summary")).to_have_text("4 pictures · 192 × 192 · seed 99 · 12 steps")
    page.locator("#details-open").click()
    expect(page.locator("#negative")).to_have_value("rain")
    expect(page.locator("#sampler")).to_have_value("euler")
    expect(page.locator("#start")).to_be_hidden()


@pytest.mark.slow
def test_what_can_be_done_with_one_picture(site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site, permissions=["clipboard-read", "clipboard-write"])
    card = ask(page, "a fox")
    site.draw()
    viewer = page.locator("#viewer")

    def look() -> None:
        page.locator(".job").last.locator("button.plate").nth(2).click()
        expect(viewer).to_be_visible()

    look()
    seed = int(viewer.locator(".facts div", has_text="Seed").locator("dd").inner_text())
    viewer.get_by_role("button", name="Copy settings").click()
    expect(viewer.get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("a fox\nSteps: 16, Sampler: ddpm, CFG scale: 2.5, Seed: ")
    with page.expect_download() as saved:
        viewer.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename.endswith(".png")
    with Image.open(saved.value.path()) as file:
        assert file.size == (192, 192)
    viewer.get_by_role("button", name="Use its seed").click()
    expect(page.locator("#summary")).to_contain_text(f"seed {seed}")

    look()
    viewer.get_by_role("button", name="Start from it").click()
    expect(page.locator("#start")).to_contain_text("192 × 192")
    look()
    viewer.get_by_role("button", name="Remix").click()
    remix = page.get_by_role("dialog", name="Remix")
    remix.get_by_label("Prompt").fill("a fox with a hat")
    remix.get_by_role("button", name="Draw").click()
    expect(page.locator(".job").first.locator("h2")).to_have_text("a fox with a hat")
    expect(page.locator(".job").first.locator(".lineage")).to_have_text("Remixed from picture 3")
    site.draw()
    for name, action in (("Zoom out 2×", "zoom"), ("Pan left", "pan")):
        look()
        viewer.get_by_role("button", name=name).click()
        expect(viewer).to_be_hidden()
        assert site.draw().action == action
    page.locator(".job").last.get_by_role("button", name="Again").click()
    expect(page.locator(".job").first.locator(".lineage")).to_have_text("Drawn again")
    assert card.count()
