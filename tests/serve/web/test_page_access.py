"""The page for everybody: without a mouse, without eyes, on a phone, in the dark."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright, which [dev] brings")
pytest.importorskip("fastapi", reason="needs [serve]")

from playwright.sync_api import expect

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def drawn(site: Any, page: Any, *prompts: str) -> None:
    """Jobs that are done, and one that waits."""
    for number, prompt in enumerate((*prompts, "a crown"), 1):
        page.locator("#prompt").fill(prompt)
        page.locator("#prompt").press("Enter")
        expect(page.locator(".job")).to_have_count(number)
        if number <= len(prompts):
            site.draw()
    expect(page.locator("button.plate")).to_have_count(4 * len(prompts))


def audit(page: Any, rules: list[str]) -> Callable[[], list[str]]:
    """What axe calls serious or critical in the page as it is when asked; without `rules`, by all of them."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python, of [dev]")
    page.evaluate(axe.Axe().axe_script)
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})

    def found() -> list[str]:
        return [
            f"{one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary'][:300]}"
            for one in page.evaluate("(options) => axe.run(options)", options)["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"][:2]
        ]

    return found


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_serious(colours: str, site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site, color_scheme=colours)
    drawn(site, page, "a fox")
    faults = audit(page, [] if colours == "light" else ["color-contrast"])
    page.locator("#words-open").click()
    page.locator("#word-search").fill("cat")
    expect(page.locator(".chips")).not_to_contain_text("purple")  # fewer, for axe looks at each
    assert faults() == []
    page.locator("#details-open").click()
    page.locator("#size").select_option("custom")
    page.locator("#prompt").fill("")
    page.locator("#submit").click()  # a refusal
    assert faults() == []
    page.locator("#to-queue").click()
    assert faults() == []
    page.locator("#to-gallery").click()
    page.locator("#wall img").first.wait_for()
    page.locator("#wall button").first.focus()
    assert faults() == []
    page.locator("#help-open").click()
    assert faults() == []
    page.keyboard.press("Escape")
    page.locator("#wall button").first.click()
    page.locator(".facts dd").first.wait_for()
    assert faults() == []
    page.locator("#viewer [data-act=region]").click()
    page.locator(".numbers summary").click()
    page.get_by_role("button", name="Add the rectangle").click()
    assert faults() == []
    page.keyboard.press("Escape")
    page.locator("#viewer [data-act=remix]").click()
    assert faults() == []


def tab_to(page: Any, kind: str) -> None:
    """Press Tab until something of this class has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(kind) => document.activeElement.classList.contains(kind)", kind):
            return
    raise AssertionError(f"Tab never comes to .{kind}")


def test_without_a_mouse(site: Any, page: Any) -> None:
    keys = page.keyboard
    focus = page.locator(":focus")
    keys.press("Tab")
    expect(focus).to_have_text("Skip to the prompt")
    keys.press("Enter")
    expect(focus).to_have_id("prompt")
    keys.type("a fox")
    keys.press("Enter")
    page.locator(".job").wait_for()
    site.draw()
    tiles = page.locator(".job button.plate")
    expect(tiles).to_have_count(4)

    tab_to(page, "plate")
    expect(focus).to_have_attribute("aria-label", "Picture 1 of 4, open")
    keys.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    for _ in range(40):  # the focus stays inside
        keys.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('#viewer')"
        )
    before = page.locator("#viewed").get_attribute("src")
    keys.press("ArrowRight")
    expect(page.locator("#viewed")).not_to_have_attribute("src", before)
    keys.press("s")
    expect(viewer.get_by_role("button", name="Starred")).to_be_visible()
    keys.press("Escape")
    expect(viewer).to_be_hidden()
    expect(focus).to_have_attribute("aria-label", "Picture 1 of 4, open")

    keys.press("g")
    wall = page.locator("#wall button")
    expect(wall).to_have_count(4)
    tab_to(page, "plate")
    keys.press("End")
    expect(wall.nth(3)).to_be_focused()
    keys.press("ArrowLeft")
    keys.press("ArrowLeft")
    expect(wall.nth(1)).to_be_focused()
    keys.press("s")
    expect(wall.nth(1)).to_have_attribute("aria-label", "a fox, starred")
    keys.press("Enter")
    keys.press("ArrowRight")
    keys.press("Escape")
    expect(wall.nth(2)).to_be_focused()  # where one had got to

    keys.press("Enter")
    keys.press("e")
    editor = page.locator("#editor")
    expect(editor).to_be_visible()
    page.get_by_text("A rectangle by numbers").focus()
    keys.press("Enter")
    page.get_by_label("From the left").focus()
    keys.press("ControlOrMeta+a")
    keys.type("50")
    page.get_by_role("button", name="Add the rectangle").focus()
    keys.press("Enter")
    expect(editor.locator("canvas")).to_have_attribute("aria-label", "Marked: 25 % of the picture")
    keys.press("ControlOrMeta+z")
    expect(editor.locator("canvas")).to_have_attribute("aria-label", "Nothing is marked yet")
    keys.press("Escape")
    expect(editor).to_be_hidden()
    keys.press("Escape")
    keys.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    keys.press("End")
    keys.type("g?")
    expect(page.locator("#prompt")).to_have_value("a foxg?")  # text, not a shortcut


def test_single_keys_can_be_turned_off(site: Any, page: Any) -> None:
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.get_by_label("Single-key shortcuts are on").uncheck()
    page.keyboard.press("Escape")
    page.reload()
    page.locator("#welcome").wait_for()
    page.keyboard.press("g")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_hidden()
    expect(page.locator("#draw")).to_be_visible()


def test_on_a_phone_everything_fits_and_can_be_hit(site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site, **PHONE)
    long = "averyveryveryveryveryveryveryveryveryveryverylongword " * 3
    drawn(site, page, long)

    def check() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        small = page.evaluate(
            """[...document.querySelectorAll("button, nav a, select, input, summary")]
              .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest(".hidden"))
              .filter((one) => !one.matches(".link, .chip"))
              .map((one) => one.matches("[type=radio], [type=checkbox]") ? one.closest("label") : one)
              .map((one) => [one, one.getBoundingClientRect()])
              .filter(([, box]) => box.width && (box.width < 44 || box.height < 44))
              .map(([one, box]) => `${one.outerHTML.slice(0, 120)} ${box.width} x ${box.height}`)"""
        )
        assert small == []

    check()
    page.locator("#details-open").tap()
    page.locator("#size").select_option("custom")
    check()
    page.locator("#words-open").tap()
    page.locator(".chip").first.wait_for()
    check()
    for view in ("gallery", "queue", "draw"):
        page.locator(f"#to-{view}").tap()
        expect(page.locator(f"#{view}")).to_be_visible()
        check()
    page.locator(".job button.plate").first.tap()
    expect(page.locator("#viewer")).to_be_visible()
    check()
    page.locator("#viewer [data-act=region]").tap()
    canvas = page.locator("#editor canvas")
    canvas.tap()
    expect(canvas).not_to_have_attribute("aria-label", "Nothing is marked yet")
    check()


def test_colours_follow_the_system_or_the_switch(site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    switch = page.locator("#theme")
    expect(switch).to_have_accessible_name("Colours: as the system has them")
    switch.click()
    expect(switch).to_have_accessible_name("Colours: light")
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    page.locator("#welcome").wait_for()
    assert page.evaluate(ground) == light
    switch.click()
    assert page.evaluate(ground) == dark
    switch.click()
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == light


def test_less_motion_is_none(site: Any, page: Any) -> None:
    moving = """[...document.querySelectorAll("*")].filter((one) => {
      const { animationName, transitionProperty } = getComputedStyle(one);
      return animationName !== "none" || !["none", "all"].includes(transitionProperty);
    }).length"""
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0
