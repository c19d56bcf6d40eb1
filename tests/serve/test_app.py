"""Jobs, pictures and actions over HTTP, with an engine that draws plain colours."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from house import Serve, Served, picture, served
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.serve.jobs import Failure


@pytest.fixture
def serve(sqlite: Callable[[], str], tmp_path: Path) -> Iterator[Serve]:
    """Makes applications; they are closed after the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(served(sqlite(), tmp_path, **settings))


@pytest.fixture
def house(serve: Serve) -> Served:
    """One with the usual settings."""
    return serve()


@pytest.fixture(scope="module")
def shared(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests that leave nothing behind."""
    with served(sqlite(), tmp_path_factory.mktemp("shared"), burst=10_000) as house:
        yield house


# -- jobs


def test_a_job_is_accepted_drawn_and_fetched(house: Served) -> None:
    said = house.post("/jobs", {"prompt": "a red cat", "count": 2, "seed": 7})
    assert said.status_code == 202
    assert said.headers["location"] == f"/jobs/{said.json()['id']}"
    job = house.get(said.headers["location"]).json()
    assert (job["state"], job["progress"], job["seeds"]) == ("done", 1.0, [7, 8])
    assert not {"owner", "shape", "file", "sha256"} & (set(job) | set(job["pictures"][0]))
    file = house.get(job["pictures"][1]["url"])
    assert file.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(file.content)).size == (192, 192)


def test_every_choice_is_made_before_a_job_waits(serve: Serve) -> None:
    house = serve(at_once=False)
    request = house.job()["request"]
    assert isinstance(request["seed"], int)
    settled = {name: request[name] for name in ("steps", "guidance", "sampler", "size", "model", "count")}
    assert settled == {
        "steps": 16,
        "guidance": 2.5,
        "sampler": "ddpm",
        "size": [192, 192],
        "model": "mini",
        "count": 4,
    }


def test_the_names_that_others_use_are_understood(serve: Serve) -> None:
    house = serve(at_once=False)
    request = house.job(num_inference_steps=9, guidance_scale=3, n=1, size="96x64")["request"]
    assert (request["steps"], request["guidance"], request["count"], request["size"]) == (9, 3, 1, [64, 96])


def test_a_repeat_is_the_same_job_and_another_body_a_conflict(house: Served) -> None:
    once = {"Idempotency-Key": "a-name"}
    first = house.post("/jobs", {"prompt": "a red cat"}, headers=once).json()
    assert house.post("/jobs", {"prompt": "a red cat"}, headers=once).json()["id"] == first["id"]
    other = house.post("/jobs", {"prompt": "a dog"}, headers=once)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    assert len(house.get("/jobs").json()["items"]) == 1


def test_many_equal_submissions_at_once_are_one_job(house: Served) -> None:
    async def all_at_once() -> set[str]:
        asked = [
            house.client.post("/jobs", json={"prompt": "x"}, headers={"Idempotency-Key": "k"})
            for _ in range(30)
        ]
        return {answer.json()["id"] for answer in await asyncio.gather(*asked)}

    assert len(house.runner.run(all_at_once())) == 1


def test_lists_go_on_where_they_stopped(serve: Serve) -> None:
    house = serve(at_once=False)
    made = [house.job()["id"] for _ in range(5)]
    found, before = [], ""
    while True:
        page = house.get(f"/jobs?limit=2{before}").json()
        found += [job["id"] for job in page["items"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert found == made[::-1]
    assert house.get("/jobs?state=done").json()["items"] == []
    assert len(house.get("/jobs?state=queued").json()["items"]) == 5


def test_a_waiting_job_is_cancelled_at_once_and_stays_so(serve: Serve) -> None:
    house = serve(at_once=False)
    job = house.job()
    assert (job["state"], job["position"]) == ("queued", 1)
    for _ in range(2):
        assert house.post(f"/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    house.engine.draw_all()
    assert house.get(f"/jobs/{job['id']}").json()["state"] == "cancelled"


def test_the_queue_says_what_waits(serve: Serve) -> None:
    house = serve(at_once=False)
    ids = [house.job()["id"] for _ in range(2)]
    told = house.get("/queue").json()
    assert (told["waiting"], told["running"]) == (2, 0)
    assert {job["id"] for job in told["items"]} == set(ids)


def test_a_failure_says_why_and_names_no_folder(serve: Serve) -> None:
    house = serve(at_once=False)
    job = house.job()
    running = house.engine.begin()
    assert running is not None
    house.engine.fail(running, Failure(code="weights", message="/srv/models/secret/base.safetensors is torn"))
    failure = house.get(f"/jobs/{job['id']}").json()["failure"]
    assert failure == {"code": "weights", "message": "base.safetensors is torn"}


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": 3},
        {"prompt": "x" * 10_001},
        {"prompt": "nul \x00"},
        {"count": 0},
        {"count": 65},
        {"count": True},
        {"count": 1.5},
        {"steps": 10**30},
        {"seed": -1},
        {"seed": 2**63},
        {"guidance": 31},
        {"size": [0, 192]},
        {"size": [192]},
        {"size": "big"},
        {"sampler": "nix"},
        {"strength": 0},
        {"extend": [0, 0, 0, 5000]},
        {"image": "a/path.png"},
        {"image": {"picture": "../../etc/passwd"}},
        {"image": {"file": "/etc/passwd"}},
        {"unknown": 1},
        {"controls": [{"image": {"picture": "0" * 32}, "model": "../x"}]},
        {"refiner": "/etc/passwd"},
    ],
)
def test_what_is_no_request_is_told_with_the_field(shared: Served, asked: dict[str, Any]) -> None:
    said = shared.post("/jobs", {"prompt": "x", **asked})
    assert said.status_code == 422
    error = said.json()["error"]
    assert error["code"] == "invalid"
    assert error["param"].split(".")[0] == next(iter(asked))
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"model": "sdxl"}, "no model"),
        ({"style": "cubist"}, "no style"),
        ({"vary": True}, "vary"),
        ({"size": [2048, 2048]}, "sides"),
        ({"count": 17}, "most"),
        ({"steps": 251}, "steps"),
        ({"mask": True}, "image"),
        ({"size": [1024, 1024], "count": 16, "steps": 250, "enlarge": 2}, "megapixel-steps"),
    ],
)
def test_what_the_model_or_the_server_cannot_do(shared: Served, asked: dict[str, Any], word: str) -> None:
    own = {"picture": shared.bring(picture()).json()["id"]}
    asked = {name: own if value is True else value for name, value in asked.items()}
    said = shared.post("/jobs", {"prompt": "x", **asked})
    assert said.status_code == 400, said.text
    assert word in said.json()["error"]["message"]


def test_numbers_that_are_none_are_refused(shared: Served) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000):
        body = f'{{"prompt": "x", "guidance": {number}}}'
        said = shared.ask("POST", "/jobs", content=body, headers={"content-type": "application/json"})
        assert said.status_code in (400, 422), number
        json.loads(said.text, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


def test_deep_and_broken_json_is_a_bad_request(shared: Served) -> None:
    for body in ("[" * 100_000, "{", '{"prompt": "\ud800"}'.encode("utf-8", "surrogatepass"), b"\xff"):
        said = shared.ask("POST", "/jobs", content=body, headers={"content-type": "application/json"})
        assert said.status_code in (400, 422)
    said = shared.ask(
        "POST", "/jobs", content=b'{"prompt": "\\ud800"}', headers={"content-type": "application/json"}
    )
    assert said.status_code == 422


def test_no_model_yet_is_not_the_fault_of_the_request(house: Served) -> None:
    house.engine.known = ()
    said = house.post("/jobs", {"prompt": "x"})
    assert (said.status_code, said.headers["retry-after"]) == (503, "5")


# -- limits


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    house = serve(at_once=False, queue=2)
    house.job(), house.job()
    said = house.post("/jobs", {"prompt": "x"})
    assert (said.status_code, said.json()["error"]["code"]) == (429, "queue_full")
    assert int(said.headers["retry-after"]) >= 1


def test_an_owner_has_so_many_jobs_and_so_much_to_spend(serve: Serve) -> None:
    house = serve(at_once=False)
    _, few = house.store.add_key("few", waiting=1)
    _, poor = house.store.add_key("poor", budget=5.0)
    bearer = {"Authorization": f"Bearer {few}"}
    small = {"prompt": "x", "size": [192, 192], "count": 1, "steps": 16}  # 1.18 megapixel-steps
    assert house.post("/jobs", small, headers=bearer).status_code == 202
    assert house.post("/jobs", small, headers=bearer).json()["error"]["code"] == "too_many"
    bearer = {"Authorization": f"Bearer {poor}"}
    assert [house.post("/jobs", small, headers=bearer).status_code for _ in range(5)] == [202] * 4 + [429]
    said = house.post("/jobs", {**small, "count": 16}, headers=bearer)
    assert (said.status_code, "budget" in said.json()["error"]["message"]) == (400, True)


def test_jobs_that_come_too_fast_are_slowed(serve: Serve) -> None:
    house = serve(at_once=False, rate=0.01, burst=2)
    codes = [house.post("/jobs", {"prompt": "x"}).status_code for _ in range(3)]
    assert codes == [202, 202, 429]


def test_a_server_about_to_stop_takes_no_jobs_but_answers(house: Served) -> None:
    job = house.job()
    house.app.state.house.draining = True
    said = house.post("/jobs", {"prompt": "x"})
    assert (said.status_code, said.headers["retry-after"]) == (503, "10")
    assert house.get(f"/jobs/{job['id']}").status_code == 200
    assert house.get("/health").json()["status"] == "stopping"


# -- events


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_events_end_with_the_job(serve: Serve) -> None:
    house = serve(at_once=False)
    job = house.job(count=2)

    async def watched() -> str:
        watching = asyncio.ensure_future(house.client.get(f"/jobs/{job['id']}/events"))
        while not house.engine.hub.watched():
            await asyncio.sleep(0.01)
        running = house.engine.begin()
        assert running is not None
        await asyncio.sleep(0)
        house.engine.show(running, 0.5)
        await asyncio.sleep(0.05)
        house.engine.end(running)
        return (await asyncio.wait_for(watching, 30)).text

    events = events_of(house.runner.run(watched()))
    assert events[0][1]["state"] == "queued"
    previews = [data for name, data in events if name == "preview"]
    assert {data["index"] for data in previews} == {0, 1}
    assert events[-1][0] == "end"
    assert events[-1][1]["job"]["state"] == "done"
    assert house.app.state.house.streams == {}


def test_events_of_an_ended_job_are_its_end(house: Served) -> None:
    job = house.job()
    said = house.get(f"/jobs/{job['id']}/events")
    assert said.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events_of(said.text)] == ["progress", "end"]


def test_a_silent_stream_shows_signs_of_life_and_a_client_may_leave(serve: Serve) -> None:
    house = serve(at_once=False, heartbeat=0.02)
    job = house.job()
    path = f"/jobs/{job['id']}/events"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:7860")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 7860),
    }

    async def left() -> bytes:
        came: list[bytes] = []
        asked = [{"type": "http.request", "body": b"", "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            came.append(message.get("body", b""))
            if b"".join(came).count(b": alive") >= 2:
                gone.set()

        await asyncio.wait_for(house.app(scope, receive, send), 30)
        return b"".join(came)

    assert b": alive\n\n" in house.runner.run(left())
    assert house.engine.hub.watched() == set()
    assert house.app.state.house.streams == {}


def test_streams_of_one_owner_are_counted(serve: Serve) -> None:
    house = serve(at_once=False, streams=1)
    job = house.job()
    house.app.state.house.streams["local"] = 1
    assert house.get(f"/jobs/{job['id']}/events").status_code == 429


# -- pictures


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_brought_encoded_anew_and_drawn_from(shared: Served, kind: str) -> None:
    said = shared.bring(picture(kind=kind), name="../../x.html", kind="text/html")
    assert said.status_code == 201, said.text
    told = said.json()
    assert (told["width"], told["height"], told["settings"]) == (64, 48, None)
    file = shared.get(told["url"])
    assert file.headers["content-type"] == "image/png"
    assert file.headers["x-content-type-options"] == "nosniff"
    assert ".." not in file.headers["content-disposition"]
    job = shared.job(image={"picture": told["id"]})
    assert job["request"]["image"] == {"picture": told["id"]}
    assert job["request"]["size"] == [64, 88]  # the least side that the model draws, and the shape


def test_an_upload_says_how_it_was_drawn(house: Served) -> None:
    said = PngInfo()
    said.add_text(
        "parameters",
        "a cat\nNegative prompt: dogs\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x48, "
        "Model: /srv/models/x, Clip skip: 2",
    )
    told = house.bring(picture(pnginfo=said)).json()
    assert told["settings"] == {
        "prompt": "a cat",
        "negative_prompt": "dogs",
        "steps": 20,
        "sampler": "euler_ancestral",
        "guidance": 7.0,
        "seed": 5,
        "size": [48, 64],
        "clip_skip": 2,
    }
    assert house.get(f"{told['url']}/settings").json() == told["settings"]


def test_a_nul_in_what_a_picture_says_is_dropped(house: Served) -> None:
    said = PngInfo()
    said.add_itxt("parameters", "a\0 cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5")
    assert house.bring(picture(pnginfo=said)).json()["settings"]["prompt"] == "a cat"


def test_thumbnails_and_other_formats(house: Served) -> None:
    url = house.job(count=1)["pictures"][0]["url"]
    for query, kind, size in (
        ("?as=jpeg", "image/jpeg", (192, 192)),
        ("?as=webp&side=64", "image/webp", (64, 64)),
        ("?side=32", "image/webp", (32, 32)),
    ):
        for _ in range(2):  # the second comes from memory
            said = house.get(url + query)
            assert (said.headers["content-type"], Image.open(io.BytesIO(said.content)).size) == (kind, size)
    assert house.get(url, headers={"If-None-Match": house.get(url).headers["etag"]}).status_code == 304
    for query in ("?as=svg", "?side=0", "?side=9999", "?side=x"):
        assert house.get(url + query).status_code == 422


def test_the_gallery_is_searched_rated_and_emptied(house: Served) -> None:
    cat = house.job(count=1)["pictures"][0]
    house.job(prompt="a blue dog", count=1)
    assert [one["prompt"] for one in house.get("/pictures").json()["items"]] == ["a blue dog", "a red cat"]
    assert house.get("/pictures?search=cat").json()["items"][0]["id"] == cat["id"]
    rated = house.ask("PATCH", cat["url"], json={"starred": True, "rating": 4}).json()
    assert (rated["starred"], rated["rating"]) == (True, 4)
    assert [one["id"] for one in house.get("/pictures?starred=true").json()["items"]] == [cat["id"]]
    settings = house.get(f"{cat['url']}/settings").json()
    assert (settings["prompt"], settings["seed"], settings["count"]) == ("a red cat", cat["seed"], 1)
    assert house.ask("DELETE", cat["url"]).status_code == 204
    assert house.get(cat["url"]).status_code == 404
    assert len(house.get("/pictures").json()["items"]) == 1


# -- actions


def act(house: Served, job: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """The job that an action makes, done."""
    said = house.post(f"/jobs/{job['id']}/actions", asked)
    assert said.status_code == 202, said.text
    return dict(house.get(f"/jobs/{said.json()['id']}").json())


def test_actions_begin_with_the_picture(house: Served) -> None:
    job = house.job(seed=1)
    chosen = {"picture": job["pictures"][2]["id"]}
    for action, strength in (("vary_subtle", 0.4), ("vary_strong", 0.8)):
        varied = act(house, job, action=action, index=2)
        assert (varied["parent"], varied["action"], varied["index"]) == (job["id"], action, 2)
        assert (varied["request"]["image"], varied["request"]["strength"]) == (chosen, strength)
        assert varied["request"]["seed"] != 1
        assert len(varied["pictures"]) == 4
    mixed = act(house, job, action="remix", index=2, prompt="a blue dog")
    assert (mixed["request"]["prompt"], mixed["request"]["image"]) == ("a blue dog", chosen)
    again = act(house, job, action="reroll")
    assert "image" not in again["request"]
    assert again["request"]["seed"] != 1


def test_a_model_that_sees_no_pictures_draws_anew_and_says_so(house: Served) -> None:
    job = house.job(seed=1)
    house.engine.known = (replace(house.engine.known[0], can=frozenset()),)
    varied = act(house, job, action="vary_strong")
    assert "image" not in varied["request"]
    assert "anew" in varied["notices"][0]
    refused = house.post(f"/jobs/{job['id']}/actions", {"action": "zoom"})
    assert (refused.status_code, "knows no image" in refused.json()["error"]["message"]) == (400, True)


def test_zoom_keeps_the_size_and_pan_adds_to_it(house: Served) -> None:
    job = house.job(size=[192, 128])
    zoomed = act(house, job, action="zoom", factor=2)["request"]
    assert (zoomed["size"], zoomed["extend"]) == ([192, 128], [32, 48, 32, 48])
    for direction, size, extend in (
        ("left", [192, 192], [64, 0, 0, 0]),
        ("up", [288, 128], [0, 96, 0, 0]),
        ("right", [192, 192], [0, 0, 64, 0]),
        ("down", [288, 128], [0, 0, 0, 96]),
    ):
        panned = act(house, job, action="pan", direction=direction)["request"]
        assert (panned["size"], panned["extend"]) == (size, extend)
    square = replace(house.engine.known[0], defaults={**house.engine.known[0].defaults, "square": True})
    wide = house.job(size=[1024, 1024], count=1)
    panned = act(house, wide, action="pan", direction="left", factor=2)["request"]
    assert (panned["size"], panned["extend"]) == ([512, 1024], [512, 0, 0, 0])
    house.engine.known = (replace(square, sizes=None),)
    panned = act(house, wide, action="pan", direction="down", factor=2)["request"]
    assert (panned["size"], panned["extend"]) == ([1024, 1024], [0, 0, 0, 512])
    assert house.post("/jobs", {"prompt": "x", "size": [64, 128]}).status_code == 400


def test_region_takes_a_mask_and_keeps_the_rest(house: Served) -> None:
    job = house.job(count=1)
    mask = house.bring(picture((192, 192))).json()["id"]
    region = act(house, job, action="region", mask=mask, prompt="a hat")["request"]
    assert (region["mask"], region["prompt"], region["size"]) == ({"picture": mask}, "a hat", [192, 192])


def test_what_is_made_larger_is_priced_by_what_is_drawn_on_the_way(house: Served) -> None:
    """Upscalers draw four times larger, whatever is asked for: 16,000 pixels of a side would take 10 GB."""
    large = house.bring(picture((4000, 4000))).json()["id"]
    answer = house.post("/jobs", {"upscale": {"picture": large, "scale": 1.001}})
    assert answer.status_code == 400
    assert "on the way" in answer.json()["error"]["message"]
    small = house.bring(picture((500, 500))).json()["id"]
    job = house.post("/jobs", {"upscale": {"picture": small, "scale": 1.5}}).json()
    assert house.store.get(job["id"]).cost == 4.0


def test_an_upscaled_picture_can_be_varied_like_the_small_one(house: Served) -> None:
    job = house.job(count=1)
    large = act(house, job, action="upscale")
    assert large["request"] == {"upscale": {"picture": job["pictures"][0]["id"], "scale": 2.0}}
    varied = act(house, large, action="vary_subtle")
    assert varied["request"]["prompt"] == "a red cat"
    assert varied["request"]["image"] == {"picture": large["pictures"][0]["id"]}
    zoomed = act(house, {**large, "pictures": []}, action="zoom")
    assert zoomed["request"]["size"] == [192, 192]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"action": "explode"}, 422),
        ({"action": "pan"}, 400),
        ({"action": "region"}, 400),
        ({"action": "remix"}, 400),
        ({"action": "reroll", "index": 9}, 404),
        ({"action": "upscale", "factor": 40}, 422),
        ({"action": "zoom", "factor": 1.0}, 400),
        ({"action": "region", "mask": "0" * 32}, 404),
    ],
)
def test_actions_that_cannot_be(shared: Served, asked: dict[str, Any], status: int) -> None:
    job = shared.job()
    assert shared.post(f"/jobs/{job['id']}/actions", asked).status_code == status


def test_actions_wait_for_the_end(serve: Serve) -> None:
    house = serve(at_once=False)
    job = house.job()
    said = house.post(f"/jobs/{job['id']}/actions", {"action": "reroll"})
    assert (said.status_code, said.json()["error"]["code"]) == (409, "not_done")


# -- the server


def test_models_words_health_and_numbers(house: Served) -> None:
    model = house.get("/models").json()["items"][0]
    assert (model["name"], model["sizes"], "image" in model["can"]) == ("mini", [64, 1024], True)
    assert {"word": "cat", "category": "animals"}.items() <= next(
        one for one in house.get("/words?search=cat").json()["items"] if one["word"] == "cat"
    ).items()
    assert len(house.get("/words?limit=3").json()["items"]) == 3
    assert house.get("/health").json()["status"] == "ok"
    house.job()
    house.get("/jobs/" + "0" * 32)
    house.get("/nowhere")
    text = house.get("/metrics").text
    assert 'limner_jobs{state="done"} 1.0' in text
    assert 'limner_requests_total{method="GET",route="/jobs/{id}",status="404"} 1.0' in text
    assert 'route="none"' in text
    assert "nowhere" not in text


def test_health_is_503_when_nobody_draws(house: Served) -> None:
    house.engine.health = replace(house.engine.health, ok=False, reason="no model is open")
    said = house.get("/health")
    assert (said.status_code, said.json()["reason"]) == (503, "no model is open")


def test_an_unknown_error_is_told_to_the_log_alone(
    house: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("/srv/secret is broken")

    monkeypatch.setattr(house.store, "get", broken)
    said = house.get("/jobs/" + "0" * 32)
    assert said.status_code == 500
    assert "secret" not in said.text
    assert said.headers["x-request-id"] in caplog.text
