"""The page when things go wrong: refusals, failures, a server that goes away, keys."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright, which [dev] brings")
pytest.importorskip("fastapi", reason="needs [serve]")

from playwright.sync_api import expect

AWAY = ("Failed to load resource", "ERR_")  # what a browser says about a server that does not answer


def draw(page: Any, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Enter")


def test_refusals_and_failures_are_said(open_site: Callable[..., Any], open_page: Callable[..., Any]) -> None:
    from limner.serve.jobs import Failure

    site = open_site(queue=2)
    page = open_page(site, forgive=("429", "400"))
    refusal, cards = page.locator("#refusal"), page.locator(".job")
    draw(page, "  ")
    expect(refusal).to_have_text("Write what you want to see first.")
    page.locator("#details-open").click()
    page.locator("#count").fill("60")
    draw(page, "a fox")
    expect(refusal).to_contain_text("16 pictures are the most for one job")
    page.locator("#count").fill("1")
    expect(refusal).to_be_hidden()  # something was changed
    for count, prompt in ((1, "a fox"), (2, "a ghost")):
        draw(page, prompt)
        expect(cards).to_have_count(count)
    draw(page, "a crown")
    expect(refusal).to_contain_text("Try again in")
    expect(page.locator("#prompt")).to_have_value("a crown")
    assert len(site.store.listed("local")) == 2

    job = site.engine.begin()
    site.engine.fail(job, Failure(code="broken", message="the numbers broke down; take another seed"))
    expect(cards.last.get_by_role("alert")).to_have_text("the numbers broke down; take another seed")
    cards.last.get_by_role("button", name="Edit").click()
    expect(page.locator("#prompt")).to_have_value("a fox")

    page.locator("#to-queue").click()
    expect(page.locator("#waiting > li")).to_have_count(1)
    page.get_by_role("button", name="Cancel: a ghost").click()
    expect(page.locator("#waiting")).to_contain_text("Nothing waits.")
    page.locator("#to-draw").click()
    expect(cards.first.locator(".standing")).to_have_text("Cancelled")


def test_notices_and_a_running_job_that_is_stopped(site: Any, page: Any) -> None:
    draw(page, "a crimson dragonfruit")
    card = page.locator(".job").first
    card.wait_for()
    job = site.engine.begin()
    site.engine.show(job, 0.25)
    expect(card.locator(".standing")).to_have_text("Drawing, 25 %")
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".standing")).to_have_text("Stopping")
    site.engine.end(job)
    expect(card.locator(".standing")).to_have_text("Cancelled")
    expect(card.locator(".plates")).to_be_hidden()

    draw(page, "a crimson dragonfruit")
    expect(page.locator(".job")).to_have_count(2)
    job = site.engine.begin()
    seeds = site.engine._seeds(job)
    drawn = [site.engine._kept(job, index, seed) for index, seed in enumerate(seeds)]
    site.store.finish(
        job.id, job.attempts, drawn, seeds, ["crimson is drawn as red"], ["no word dragonfruit"]
    )
    site.engine._told(job)
    expect(page.locator(".job").first.locator(".remarks li")).to_have_text(
        ["no word dragonfruit", "crimson is drawn as red"]
    )


def test_the_server_restarts_under_the_page(site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site, forgive=AWAY)
    draw(page, "a fox")
    card = page.locator(".job").first
    card.wait_for()
    site.engine.show(site.engine.begin(), 0.5)
    expect(card.locator(".standing")).to_have_text("Drawing, 50 %")
    site.stop()
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    draw(page, "a ghost")
    expect(page.locator("#refusal")).to_contain_text("The server does not answer")
    site.start()
    expect(page.locator("#connection")).to_have_text("Connected again.")
    expect(card.locator(".standing")).to_have_text("Interrupted; back in the queue")
    page.locator("#submit").click()
    expect(page.locator(".job")).to_have_count(2)
    assert [job.request["prompt"] for job in site.store.listed("local")] == ["a ghost", "a fox"]
    site.draw()
    expect(page.locator(".job").last.locator("button.plate")).to_have_count(4)
    site.draw()
    expect(page.locator(".job button.plate")).to_have_count(8)


def test_an_answer_that_was_lost_makes_no_second_job(site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site, forgive=AWAY)
    lost = []

    def lose(route: Any) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch())  # the server has it, the page does not know
            route.abort()
        else:
            route.continue_()

    page.route("**/jobs", lose)
    draw(page, "a fox")
    expect(page.locator("#refusal")).to_contain_text("The server does not answer")
    page.locator("#submit").click()
    expect(page.locator("#refusal")).to_be_hidden()
    expect(page.locator(".job")).to_have_count(1)
    assert lost
    assert len(site.store.listed("local")) == 1


def test_a_server_with_keys_asks_for_one(
    open_site: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    site = open_site()
    _, secret = site.store.add_key("anna")
    page = open_page(site, forgive=("401",))
    asked = page.get_by_role("dialog", name="Who is there?")
    asked.get_by_label("Key").fill("limner-wrong")
    asked.get_by_role("button", name="Sign in").click()
    expect(asked.get_by_role("alert")).to_contain_text("no key of this server")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(asked).to_be_visible()  # there is no way around it
    asked.get_by_label("Key").fill(secret)
    asked.get_by_role("button", name="Sign in").click()
    expect(asked).to_be_hidden()
    draw(page, "a fox")
    expect(page.locator(".job")).to_have_count(1)
    page.reload()
    expect(page.locator(".job")).to_have_count(1)
    page.get_by_role("button", name="Sign out").click()
    expect(asked).to_be_visible()
    assert secret not in page.evaluate("JSON.stringify(localStorage)")


def test_many_jobs_open_few_connections(site: Any, page: Any) -> None:
    streams: set[str] = set()
    page.on("request", lambda one: streams.add(one.url) if one.url.endswith("/events") else None)
    for number in range(5):
        draw(page, f"fox {number}")
        expect(page.locator(".job")).to_have_count(number + 1)
    expect(page.locator(".job").first.locator(".standing")).to_have_text("5th in the queue")
    assert len(streams) == 2
    while site.engine.draw_all():
        pass
    expect(page.locator(".job button.plate")).to_have_count(20)


def test_a_server_that_is_still_opening_its_model(site: Any, open_page: Callable[..., Any]) -> None:
    known, site.engine.known = site.engine.known, ()
    page = open_page(site, forgive=("503",))
    expect(page.locator("#summary")).to_have_text("The model is being opened…")
    draw(page, "a fox")
    expect(page.locator("#refusal")).to_contain_text("no model")
    site.engine.known = known
    expect(page.locator("#summary")).to_have_text("4 pictures · 192 × 192")
    page.locator("#submit").click()
    expect(page.locator(".job")).to_have_count(1)
