"""OpenAI's Images API, asked by the `openai` package."""

import base64
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import MINI
from house import Serve, Served, picture, served
from PIL import Image
from ported import ported, until

from limner.serve import links
from limner.serve.jobs import Failure, Job, State
from limner.serve.openai_asked import wish_of
from limner.serve.openai_schemas import GenerateIn

openai = pytest.importorskip("openai", reason="needs openai, which [dev] brings")


@dataclass(kw_only=True, slots=True)
class Site:
    """A served application, and OpenAI's client of it."""

    house: Served
    url: str
    client: Any
    plain: httpx.Client  # any other client

    def job(self, number: int = 0) -> Job:
        """A job, the newest first."""
        return self.house.store.listed(None)[number]


@contextmanager
def site_of(house: Served, url: str, retries: int) -> Iterator[Site]:
    """What is served at `url`. The clients read no certificates, which takes longer than all the rest."""
    with (
        openai.DefaultHttpxClient(verify=False, timeout=30) as inner,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries, http_client=inner) as client,
        httpx.Client(verify=False, timeout=30) as plain,
    ):
        yield Site(house=house, url=url, client=client, plain=plain)


@pytest.fixture
def serve(sqlite: Callable[[], str], tmp_path: Path) -> Iterator[Serve]:
    """Makes sites; they are closed after the test."""
    with ExitStack() as stack:

        def made(*, retries: int = 0, **settings: Any) -> Site:
            house = stack.enter_context(served(sqlite(), tmp_path, **settings))
            url = stack.enter_context(ported(house.app))
            return stack.enter_context(site_of(house, url, retries))

        yield made


@pytest.fixture(scope="module")
def site(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that leave nothing behind that another would see."""
    with (
        served(sqlite(), tmp_path_factory.mktemp("site"), burst=10_000) as house,
        ported(house.app) as url,
        site_of(house, url, 0) as site,
    ):
        yield site


def opened(data: str | bytes) -> Image.Image:
    """A picture out of base64 or bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
    image.load()
    return image


def cut(size: tuple[int, int] = (96, 96), hole: tuple[int, int, int, int] | None = (0, 0, 48, 96)) -> bytes:
    """A PNG with a transparent part: left, top, right, bottom."""
    image = Image.new("RGBA", size, (20, 30, 40, 255))
    if hole is not None:
        image.paste((0, 0, 0, 0), hole)
    kept = io.BytesIO()
    image.save(kept, "PNG")
    return kept.getvalue()


# -- generations


def test_pictures_come_as_links_which_need_no_key(serve: Serve) -> None:
    site = serve()
    _, secret = site.house.store.add_key("anna")
    client = site.client.with_options(api_key=secret)
    said = client.images.generate(prompt="a red cat", model="dall-e-3", n=2, size="512x512")
    assert [one.b64_json for one in said.data] == [None, None]
    assert (said.size, said.output_format, said.background) == ("512x512", "png", "opaque")
    for one in said.data:
        assert one.url.startswith(f"{site.url}/pictures/")
        found = site.plain.get(one.url)
        assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
        assert opened(found.content).size == (512, 512)
        assert found.headers["cross-origin-resource-policy"] == "cross-origin"
    url = said.data[0].url
    for changed in (
        url.replace("as=png", "as=webp"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        f"{url}&side=64",
        url.replace(said.data[0].url[len(site.url) + 10 :][:32], said.data[1].url[len(site.url) + 10 :][:32]),
        url.replace("expires=", "expires=9"),
    ):
        assert changed != url
        assert site.plain.get(changed).status_code == 403, changed
    assert site.plain.get(url.partition("?")[0]).status_code == 401
    assert site.plain.delete(url).status_code == 401


def test_links_end_after_an_hour(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve()
    url = site.client.images.generate(prompt="a red cat", model="dall-e-2").data[0].url
    assert site.plain.get(url).status_code == 200
    now = links.time.time()
    monkeypatch.setattr(links.time, "time", lambda: now + 3590)
    assert site.plain.get(url).status_code == 200
    monkeypatch.setattr(links.time, "time", lambda: now + 3610)
    assert site.plain.get(url).status_code == 403


@pytest.mark.parametrize(
    ("asked", "linked"),
    [
        ({}, True),
        ({"model": "mini"}, True),
        ({"model": "dall-e-2"}, True),
        ({"model": "gpt-image-1"}, False),
        ({"model": "chatgpt-image-latest"}, False),
        ({"output_format": "png"}, False),
        ({"model": "dall-e-3", "response_format": "b64_json"}, False),
        ({"model": "gpt-image-2", "response_format": "url"}, True),
    ],
)
def test_answers_are_those_of_the_model_that_was_named(
    site: Site, asked: dict[str, Any], linked: bool
) -> None:
    one = site.client.images.generate(prompt="a red cat", **asked).data[0]
    assert (one.url is not None, one.b64_json is None) == (linked, linked)


def test_every_field_of_theirs_and_ours_is_heard(site: Site) -> None:
    said = site.client.images.generate(
        prompt="a red cat",
        model="gpt-image-1",
        n=3,
        size="256x256",
        quality="high",
        background="opaque",
        moderation="low",
        output_format="webp",
        output_compression=50,
        style="vivid",
        user="anna",
        extra_body={
            "seed": 7,
            "steps": 9,
            "negative_prompt": "dogs",
            "guidance": 3,
            "sampler": "heun",
            "no_such_field": {"a": 1},
        },
    )
    asked = site.job().request
    expected = {
        "prompt": "a red cat", "seed": 7, "steps": 9, "negative_prompt": "dogs", "guidance": 3.0,
        "sampler": "heun", "count": 3, "size": [256, 256], "model": "mini",
    }  # fmt: skip
    assert {name: asked[name] for name in expected} == expected
    images = [opened(one.b64_json) for one in said.data]
    assert [(image.format, image.size) for image in images] == [("WEBP", (256, 256))] * 3
    assert (said.quality, said.output_format, said.size) == ("high", "webp", "256x256")
    assert said.usage.input_tokens == said.usage.input_tokens_details.text_tokens == 4
    assert said.usage.output_tokens == 3 * 16 * 16
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    assert said.limner["seeds"] == [7, 8, 9]
    assert said.limner["job"] == site.job().id
    assert "vivid" in said.limner["warnings"][0]


def test_compression_makes_files_smaller(site: Site) -> None:
    sizes = []
    for kind, compression in (("jpeg", 100), ("jpeg", 10), ("webp", 100), ("webp", 0)):
        said = site.client.images.generate(
            prompt="a cat", output_format=kind, output_compression=compression, extra_body={"seed": 1}
        )
        image = opened(said.data[0].b64_json)
        assert image.format == kind.upper()
        sizes.append(len(said.data[0].b64_json))
    assert sizes[0] > sizes[1]
    assert sizes[2] >= sizes[3]
    url = site.client.images.generate(
        prompt="a cat", output_format="jpeg", output_compression=10, response_format="url"
    ).data[0].url  # fmt: skip
    assert site.plain.get(url).headers["content-type"] == "image/jpeg"


def test_auto_is_the_models_choice_and_a_style_may_be_its_own(site: Site) -> None:
    said = site.client.images.generate(prompt="a cat", size="auto", quality="auto", style="glossy")
    assert (said.size, said.quality, len(said.data)) == ("192x192", "medium", 1)
    assert (site.job().request["style"], site.job().request["steps"]) == ("glossy", 16)


@pytest.mark.parametrize(
    ("quality", "steps", "level"),
    [
        ("low", 8, "low"),
        ("standard", 16, "medium"),
        ("hd", 24, "high"),
        ("xhigh", 32, "xhigh"),
        ("max", 48, "max"),
    ],
)
def test_quality_is_a_number_of_steps(site: Site, quality: str, steps: int, level: str) -> None:
    said = site.client.images.generate(prompt="a cat", quality=quality)
    assert (site.job().request["steps"], said.quality) == (steps, level)


def test_a_model_of_few_steps_says_that_quality_means_nothing(site: Site) -> None:
    few = replace(MINI, defaults={**MINI.defaults, "steps": 4})
    wish = wish_of(GenerateIn(prompt="x", quality="high"), (few,), site.house.settings)
    assert ("steps" in wish.told, wish.level) == (False, "medium")
    assert "quality high" in wish.warnings[0]


def test_sizes_that_the_model_cannot_draw_are_told_with_those_it_can(serve: Serve) -> None:
    site = serve()
    site.house.engine.known = (replace(MINI, defaults={**MINI.defaults, "square": True}),)
    for size in ("1536x1024", "1024x1792", "2048x2048", "32x32"):
        with pytest.raises(openai.BadRequestError) as found:
            site.client.images.generate(prompt="a cat", size=size)
        error = found.value
        assert (error.param, error.code, error.type) == ("size", "invalid_value", "invalid_request_error")
        for word in (size, "squares", "64 to 1024", "192x192", "256x256", "512x512", "1024x1024"):
            assert word in error.message
        assert "1536x1024," not in error.message
    assert site.client.images.generate(prompt="a cat", size="1024x1024").size == "1024x1024"
    assert len(site.house.store.listed(None)) == 1


# -- edits and variations


def test_an_edit_draws_where_the_mask_is_transparent(site: Site) -> None:
    said = site.client.images.edit(
        image=("x.png", picture((96, 96))),
        mask=("m.png", cut()),
        prompt="a red hat",
        n=2,
        size="256x256",
        extra_body={"seed": 3, "steps": 9},
    )
    assert len(said.data) == 2
    asked = site.job().request
    assert (asked["strength"], asked["size"], asked["seed"], asked["steps"]) == (1.0, [256, 256], 3, 9)
    store = site.house.store
    with Image.open(store.pictures / store.picture(asked["mask"]["picture"]).file) as mask:
        assert [mask.convert("L").getpixel(at) for at in ((10, 50), (80, 50))] == [255, 0]
    with Image.open(store.pictures / store.picture(asked["image"]["picture"]).file) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (46, 139, 87)
    assert said.usage.input_tokens_details.image_tokens == 36


def test_an_image_may_come_as_a_list_and_without_a_mask(site: Site) -> None:
    for given in ([picture((96, 96), "JPEG")], picture((96, 96), "WEBP")):
        site.client.images.edit(image=given, prompt="a hat", model="gpt-image-1", quality="low")
        asked = site.job().request
        assert ("mask" in asked, asked.get("strength", 0.75), asked["steps"]) == (False, 0.75, 8)
    site.client.images.edit(image=picture((96, 96)), prompt="a hat", input_fidelity="high")
    assert site.job().request["strength"] == 0.5
    site.client.images.edit(image=picture((96, 96)), prompt="a hat", extra_body={"strength": 0.3})
    assert site.job().request["strength"] == 0.3


def test_a_transparent_part_of_the_image_is_a_mask(site: Site) -> None:
    site.client.images.edit(image=cut(), prompt="a hat")
    assert site.job().request["mask"]
    site.client.images.edit(image=cut(hole=None), prompt="a hat")
    assert "mask" not in site.job().request


@pytest.mark.parametrize(
    ("asked", "param", "word"),
    [
        ({"image": picture((96, 96)), "mask": cut((64, 64))}, "mask", "64x64"),
        ({"image": picture((96, 96)), "mask": picture((96, 96))}, "mask", "marks nothing"),
        ({"image": picture((96, 96)), "mask": cut(hole=None)}, "mask", "marks nothing"),
        ({"image": [picture(), picture()]}, "image", "one image"),
        ({"image": picture(), "n": 11}, "n", "10"),
        ({"image": picture(), "size": "big"}, "size", "pattern"),
        ({"image": picture(), "background": "transparent"}, "background", "opaque"),
        ({"image": picture(), "output_compression": 50}, "output_compression", "png"),
    ],
)
def test_edits_that_cannot_be(site: Site, asked: dict[str, Any], param: str, word: str) -> None:
    before = len(list(site.house.store.pictures.rglob("*.png")))
    with pytest.raises(openai.BadRequestError) as found:
        site.client.images.edit(prompt="a hat", **asked)
    assert found.value.param == param
    assert word in found.value.message
    assert len(list(site.house.store.pictures.rglob("*.png"))) == before


def test_a_file_that_is_no_picture_is_refused(site: Site) -> None:
    for data, status in ((b"GIF89a", 415), (b"", 415), (picture()[:60], 400)):
        with pytest.raises(openai.APIStatusError) as found:
            site.client.images.edit(image=("../../x.png", data), prompt="a hat")
        assert found.value.status_code == status


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of theirs: OpenAI itself has retired it
def test_variations_begin_with_the_picture(site: Site) -> None:
    said = site.client.images.create_variation(image=picture((96, 96)), n=2, size="256x256", model="dall-e-2")
    assert len(said.data) == 2
    assert said.data[0].url
    asked = site.job().request
    assert (asked["prompt"], asked["strength"], asked["size"]) == ("", 0.6, [256, 256])
    site.client.images.create_variation(
        image=picture(), extra_body={"prompt": "a cat"}, response_format="b64_json"
    )
    assert site.job().request["prompt"] == "a cat"


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_model_that_sees_varies_what_it_sees(serve: Serve) -> None:
    site = serve()
    site.house.engine.known = (replace(MINI, can=frozenset({"vary"})),)
    site.client.images.create_variation(image=picture())
    asked = site.job().request
    assert ("vary" in asked, "image" in asked) == (True, False)


# -- streams


def test_pictures_are_shown_as_they_form(serve: Serve) -> None:
    site = serve(at_once=False)
    stream = site.client.images.generate(
        prompt="a red cat", model="gpt-image-1", size="128x128", stream=True, partial_images=2, n=2,
        output_format="jpeg",
    )  # fmt: skip
    with stream:
        events = iter(stream)
        running = site.house.engine.begin()
        assert running is not None
        found = []
        for progress in (0.4, 0.7):
            site.house.engine.show(running, progress)
            found += [next(events), next(events)]
        site.house.engine.end(running)
        found += list(events)
    assert [event.type for event in found] == [
        *["image_generation.partial_image"] * 4,
        *["image_generation.completed"] * 2,
    ]
    assert [event.partial_image_index for event in found[:4]] == [0, 0, 1, 1]
    assert [event.image_index for event in found] == [0, 1] * 3
    for event in found:
        image = opened(event.b64_json)
        assert (image.format, image.size, event.size) == ("JPEG", (128, 128), "128x128")
        assert (event.output_format, event.background, event.quality) == ("jpeg", "opaque", "medium")
        assert event.created_at > 1_600_000_000
    assert found[-1].usage.output_tokens == 64
    assert site.house.app.state.house.streams == {}


def test_a_stream_without_partials_is_its_end(site: Site) -> None:
    events = list(site.client.images.generate(prompt="a red cat", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]
    edited = list(site.client.images.edit(image=picture(), prompt="a hat", stream=True, partial_images=1))
    assert edited[-1].type == "image_edit.completed"
    assert opened(edited[-1].b64_json).format == "PNG"


def test_what_goes_wrong_in_a_stream_is_an_error_of_the_client(serve: Serve) -> None:
    site = serve(at_once=False, heartbeat=0.05)
    for failure in (Failure(code="memory", message="too large for /srv/x/gpu0"), None):
        stream = site.client.images.generate(prompt="a red cat", stream=True)
        running = site.house.engine.begin()
        assert running is not None
        if failure is None:
            site.house.store.cancel(running.id)
            site.house.engine.end(running)
        else:
            site.house.engine.fail(running, failure)
        with stream, pytest.raises(openai.APIError) as found:
            list(stream)
        assert found.value.code == ("cancelled" if failure is None else "memory")
        assert "/srv" not in found.value.message


def test_whoever_leaves_a_stream_wants_nothing_more(serve: Serve) -> None:
    site = serve(at_once=False, heartbeat=0.05)
    stream = site.client.images.generate(prompt="a red cat", stream=True)
    assert site.job().state is State.QUEUED
    stream.close()
    until(lambda: site.job().state is State.CANCELLED)
    until(lambda: site.house.app.state.house.streams == {})
    named = site.client.images.generate(
        prompt="a red cat", stream=True, extra_headers={"Idempotency-Key": "once"}
    )
    named.close()
    until(lambda: site.house.app.state.house.streams == {})
    assert site.job().state is State.QUEUED


def test_streams_of_one_owner_are_counted(serve: Serve) -> None:
    site = serve(at_once=False, streams=1)
    with site.client.images.generate(prompt="a", stream=True):
        with pytest.raises(openai.RateLimitError):
            site.client.images.generate(prompt="b", stream=True)
        assert site.job().state is State.CANCELLED


# -- models


def test_models_are_listed_and_theirs_stand_for_the_default(site: Site) -> None:
    assert [model.id for model in site.client.models.list()] == ["mini"]
    for name in ("mini", "dall-e-2", "gpt-image-1", "gpt-image-2-2026-04-21", "chatgpt-image-latest"):
        model = site.client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "limner")
    with pytest.raises(openai.NotFoundError) as found:
        site.client.models.retrieve("gpt-4")
    assert found.value.code == "model_not_found"


def test_the_model_of_a_name_draws(serve: Serve) -> None:
    site = serve()
    site.house.engine.known = (MINI, replace(MINI, name="dall-e-2"), replace(MINI, name="other"))
    for name, drawn in (("other", "other"), ("dall-e-2", "dall-e-2"), ("dall-e-3", "mini")):
        said = site.client.images.generate(prompt="x", model=name)
        assert said.limner["model"] == site.job().model == drawn


# -- errors


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": "nul \x00"}, "prompt"),
        ({"n": 0}, "n"),
        ({"size": "0x0"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"style": "cubist"}, "style"),
        ({"response_format": "xml"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"steps": 10**30}}, "steps"),
        ({"extra_body": {"sampler": "nix"}}, None),
    ],
)
def test_what_is_wrong_is_a_bad_request_with_the_field(
    site: Site, asked: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        site.client.images.generate(**{"prompt": "a cat", **asked})
    error = found.value
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.code
    assert error.request_id.startswith("req-")


def test_errors_have_the_classes_of_the_client(serve: Serve) -> None:
    site = serve(at_once=False)
    _, secret = site.house.store.add_key("anna")
    for key in ("wrong", "limner-wrong"):
        with pytest.raises(openai.AuthenticationError) as found:
            site.client.with_options(api_key=key).images.generate(prompt="x")
        assert found.value.code == "invalid_api_key"
    client = site.client.with_options(api_key=secret)
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="x", model="sdxl")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "mini" in missing.value.message


def test_a_failed_job_is_an_error_that_is_not_repeated(serve: Serve) -> None:
    site = serve(at_once=False, retries=2)
    for code, kind in (
        ("refused", openai.BadRequestError),
        ("memory", openai.InternalServerError),
        (None, openai.ConflictError),
    ):
        errors: list[Exception] = []

        def ask(told: list[Exception] = errors) -> None:
            with pytest.raises(openai.APIError) as found:
                site.client.images.generate(prompt="x")
            told.append(found.value)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: site.house.store.counts()[State.QUEUED])
        running = site.house.engine.begin()
        assert running is not None
        if code is None:
            site.house.store.cancel(running.id)
            site.house.engine.end(running)
        else:
            site.house.engine.fail(running, Failure(code=code, message="no"))
        thread.join(30)
        assert [type(error) for error in errors] == [kind]
    assert len(site.house.store.listed(None)) == 3


def test_a_server_that_stops_says_so_to_those_who_wait(serve: Serve) -> None:
    site = serve(at_once=False)
    errors: list[openai.APIStatusError] = []

    def ask() -> None:
        with pytest.raises(openai.APIStatusError) as found:
            site.client.images.generate(prompt="x")
        errors.append(found.value)

    thread = threading.Thread(target=ask)
    thread.start()
    until(site.house.engine.hub.watched)
    site.house.app.state.house.draining = True
    site.house.engine.stop(drain=0)
    thread.join(30)
    assert (errors[0].status_code, errors[0].code) == (503, "stopping")
    assert errors[0].response.headers["retry-after"] == "10"
    assert site.job().state is State.CANCELLED  # it will be sent again


def test_whoever_hangs_up_wants_nothing_more_unless_the_job_has_a_name(serve: Serve) -> None:
    site = serve(at_once=False)
    host, port = site.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x"})
    for once, state in (("", State.CANCELLED), ("Idempotency-Key: once\r\n", State.QUEUED)):
        with socket.create_connection((host, int(port))) as line:
            line.sendall(
                f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"{once}Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            until(site.house.engine.hub.watched)
        until(lambda: not site.house.engine.hub.watched())
        until(lambda state=state: site.job().state is state)
    site.house.engine.draw_all()
    again = site.client.images.generate(prompt="x", extra_headers={"Idempotency-Key": "once"})
    assert again.limner["job"] == site.job().id


# -- retries


def test_a_full_queue_is_tried_again_and_makes_one_job(serve: Serve) -> None:
    site = serve(at_once=False, queue=1, retries=3)
    before = site.house.job()
    answers: list[int] = []
    send = site.client._client.send

    def counted(request: Any, **said: Any) -> Any:
        answer = send(request, **said)
        answers.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            answer.headers["retry-after"] = "0.01"
            site.house.engine.at_once = True
            site.house.engine.draw_all()
        return answer

    site.client._client.send = counted
    said = site.client.images.generate(prompt="a red cat", extra_headers={"Idempotency-Key": "once"})
    assert answers == [429, 200]
    again = site.client.images.generate(prompt="a red cat", extra_headers={"Idempotency-Key": "once"})
    assert again.limner["job"] == said.limner["job"] != before["id"]
    other = site.client.images.generate(prompt="a red cat", extra_headers={"Idempotency-Key": "twice"})
    assert other.limner["job"] != said.limner["job"]
    with pytest.raises(openai.ConflictError):
        site.client.with_options(max_retries=0).images.generate(
            prompt="a dog", extra_headers={"Idempotency-Key": "once"}
        )
    assert len(site.house.store.listed(None)) == 3


def test_a_repeated_edit_is_the_same_job_and_keeps_its_pictures_once(serve: Serve) -> None:
    site = serve()
    once = {"Idempotency-Key": "once"}
    jobs, kept = set(), set()
    for _ in range(2):
        said = site.client.images.edit(
            image=picture((96, 96)), mask=cut(), prompt="a hat", extra_headers=once
        )
        jobs.add(said.limner["job"])
        kept.add(len(list(site.house.store.pictures.rglob("uploads/*.png"))))
    assert (len(jobs), kept) == (1, {2})
    with pytest.raises(openai.ConflictError):
        site.client.images.edit(image=picture((48, 48)), prompt="a hat", extra_headers=once)


def test_forms_are_taken_from_any_client(site: Site) -> None:
    """Numbers as text, empty fields, `image[]` once, an unknown field, and no file at all."""
    fields = {"prompt": "a hat", "n": "2", "size": "", "stream": "false", "seed": "5", "what": "ever"}
    said = site.plain.post(
        f"{site.url}/v1/images/edits", data=fields, files={"image[]": ("x.png", picture(), "image/png")}
    )
    assert said.status_code == 200, said.text
    assert len(said.json()["data"]) == 2
    assert site.job().request["seed"] == 5
    missing = site.plain.post(f"{site.url}/v1/images/edits", data=fields, files={"other": b"x"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "image")
    asjson = site.plain.post(f"{site.url}/v1/images/edits", json=fields)
    assert (asjson.status_code, asjson.json()["error"]["param"]) == (400, "prompt")
    assert site.plain.get(f"{site.url}/v1/nix").json()["error"]["code"] == "not_found"
