"""AUTOMATIC1111's API, asked as its clients ask."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import MINI
from house import Serve, Served, picture, served
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.pipeline.postprocess import SAMPLER_NAMES
from limner.serve import files
from limner.serve.a1111_answers import fields_of
from limner.serve.a1111_names import grid_named, sampler_named, samplers
from limner.serve.a1111_pictures import begun
from limner.serve.jobs import Drawn, Failure, Job, State

API = "/sdapi/v1"
SD = replace(
    MINI,
    name="sd15",
    family="sd",
    default_size=(512, 512),
    sizes=None,
    styles=(),
    can=frozenset({"image", "mask", "negative_prompt"}),
    fingerprint="45dee52b11",
)


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
    """One for all tests that leave nothing behind that another would see."""
    with served(sqlite(), tmp_path_factory.mktemp("shared"), burst=10_000) as house:
        yield house


def coded(data: bytes | Image.Image) -> str:
    """In base64."""
    if isinstance(data, Image.Image):
        kept = io.BytesIO()
        data.save(kept, "PNG")
        data = kept.getvalue()
    return base64.b64encode(data).decode()


def opened(said: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(said)))
    image.load()
    return image


def request_of(house: Served) -> dict[str, Any]:
    """Of the newest job."""
    return dict(house.store.listed(None)[0].request)


def drawn(house: Served, kind: str = "txt2img", **asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer, and its info."""
    said = house.post(f"{API}/{kind}", asked)
    assert said.status_code == 200, said.text
    return said.json(), json.loads(said.json()["info"])


# -- txt2img


def test_the_fields_of_a_usual_client(house: Served) -> None:
    house.engine.known = (SD,)
    said, info = drawn(
        house,
        prompt="a red cat",
        negative_prompt="dogs",
        seed=965400086,
        sampler_name="Euler a",
        scheduler="Karras",
        batch_size=2,
        n_iter=2,
        steps=20,
        cfg_scale=7,
        width=512,
        height=512,
    )
    asked = request_of(house)
    assert {
        name: asked[name] for name in ("prompt", "negative_prompt", "seed", "sampler", "grid", "count")
    } == {
        "prompt": "a red cat",
        "negative_prompt": "dogs",
        "seed": 965400086,
        "sampler": "euler_ancestral",
        "grid": "karras",
        "count": 4,
    }
    assert (asked["steps"], asked["guidance"], asked["size"]) == (20, 7.0, [512, 512])
    assert [opened(one).size for one in said["images"]] == [(512, 512)] * 4
    assert (info["seed"], info["all_seeds"]) == (965400086, [965400086 + index for index in range(4)])
    assert info["all_prompts"] == ["a red cat"] * 4
    assert (info["sampler_name"], info["cfg_scale"], info["steps"]) == ("Euler a", 7.0, 20)
    assert info["infotexts"][1] == (
        "a red cat\nNegative prompt: dogs\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, "
        "Seed: 965400087, Size: 512x512, Model hash: 45dee52b11, Model: sd15, "
        + info["infotexts"][1].rpartition(", ")[2]
    )
    assert info["warnings"] == []
    assert said["parameters"]["prompt"] == "a red cat"


def test_a_model_with_a_schedule_of_its_own_says_so(house: Served) -> None:
    for asked in ({"scheduler": "Karras"}, {"sampler_name": "DPM++ 2M Karras"}):
        _, info = drawn(house, prompt="a cat", **asked)
        assert info["warnings"] == ["the scheduler karras was left out: mini has its own"]
    assert (request_of(house)["sampler"], "grid" in request_of(house)) == ("dpmpp_2m", False)


def test_what_is_left_out_is_the_models_choice(house: Served) -> None:
    said, info = drawn(house, prompt="a cat")
    asked = request_of(house)
    assert (asked["count"], asked["steps"], asked["size"], asked["guidance"]) == (1, 16, [192, 192], 2.5)
    assert (info["width"], info["height"], len(said["images"])) == (192, 192, 1)
    drawn(house, prompt="a cat", seed=-1, sampler_index="Euler", scheduler="Automatic", width=128, height=128)
    assert (request_of(house)["sampler"], request_of(house)["size"]) == ("euler", [128, 128])


DEFAULTS = {  # as a client writes them that sends every field
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "eta": 0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": "",
    "refiner_switch_at": 0.8,
    "disable_extra_networks": False,
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "denoising_strength": 0.7,
    "script_name": "",
    "script_args": [],
    "alwayson_scripts": {},
    "send_images": True,
    "save_images": False,
    "comments": {},
    "firstphase_width": 0,
    "sampler_index": None,
}


def test_what_there_is_not_may_stand_at_its_default(shared: Served) -> None:
    _, info = drawn(shared, prompt="a cat", **DEFAULTS)
    assert info["warnings"] == []
    assert not {"enlarge", "tiling", "strength", "clip_skip"} & set(request_of(shared)) - {"strength"}


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"restore_faces": True}, "restore_faces"),
        ({"eta": 0.5}, "eta"),
        ({"s_churn": 3.0}, "s_churn"),
        ({"my_extension": {"a": 1}}, "my_extension"),
        ({"override_settings": {"sd_vae": "other"}}, "sd_vae"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, "CLIP_stop_at_last_layers"),
        ({"override_settings_restore_afterwards": False}, "override_settings_restore_afterwards"),
    ],
)
def test_what_would_touch_up_a_picture_is_left_out_with_a_warning(
    shared: Served, asked: dict[str, Any], word: str
) -> None:
    _, info = drawn(shared, prompt="a cat", **asked)
    assert len(info["warnings"]) == 1
    assert word in info["warnings"][0]


@pytest.mark.parametrize(
    "asked",
    [
        {"script_name": "x/y/z plot"},
        {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}},
        {"subseed_strength": 0.5},
        {"refiner_checkpoint": "xl"},
        {"styles": ["cubist"]},
        {"styles": ["flat", "glossy"]},
        {"hr_prompt": "other", "enable_hr": True},
        {"override_settings": {"sd_model_checkpoint": 3}},
    ],
)
def test_what_would_make_another_picture_is_refused(shared: Served, asked: dict[str, Any]) -> None:
    before = len(shared.store.listed(None, limit=500))
    said = shared.post(f"{API}/txt2img", {"prompt": "a cat", **asked})
    assert said.status_code == 422, said.text
    assert set(said.json()) == {"error", "detail", "body", "errors"}
    assert len(shared.store.listed(None, limit=500)) == before


def test_styles_second_passes_and_options_of_a_request(house: Served) -> None:
    drawn(
        house,
        prompt="a cat",
        styles=["glossy"],
        tiling=True,
        override_settings={"CLIP_stop_at_last_layers": 2},
    )
    asked = request_of(house)
    assert (asked["style"], asked["tiling"], asked["clip_skip"]) == ("glossy", True, 2)
    drawn(house, prompt="a cat", enable_hr=True, hr_scale=1.5, denoising_strength=0.4)
    assert (request_of(house)["enlarge"], request_of(house)["enlarge_strength"]) == (1.5, 0.4)
    drawn(house, prompt="a cat", enable_hr=True, width=128, height=128, hr_resize_x=256)
    assert request_of(house)["enlarge"] == 2.0
    drawn(house, prompt="a cat", override_settings={"emphasis": "No norm"})
    assert request_of(house)["emphasis"] == "plain"


def test_settings_may_come_as_infotext_and_fields_say_otherwise(house: Served) -> None:
    said = (
        "a blue dog\nNegative prompt: cats\n"
        "Steps: 9, Sampler: Heun, CFG scale: 4, Seed: 5, Size: 128x128, Model: x"
    )
    drawn(house, infotext=said, steps=11)
    asked = request_of(house)
    assert (asked["prompt"], asked["negative_prompt"], asked["seed"]) == ("a blue dog", "cats", 5)
    assert (asked["steps"], asked["sampler"], asked["size"], asked["model"]) == (
        11,
        "heun",
        [128, 128],
        "mini",
    )


def test_a_negative_prompt_that_means_nothing_is_left_out(house: Served) -> None:
    house.engine.known = (replace(MINI, can=MINI.can - {"negative_prompt"}),)
    _, info = drawn(house, prompt="a cat", negative_prompt="lowres")
    assert "negative prompt" in info["warnings"][0]
    assert request_of(house)["negative_prompt"] == ""


def test_images_need_not_be_sent(house: Served) -> None:
    said, info = drawn(house, prompt="a cat", send_images=False)
    assert (said["images"], len(info["infotexts"])) == ([], 1)
    assert len(house.get("/pictures").json()["items"]) == 1


def test_pictures_say_how_they_were_drawn(house: Served) -> None:
    """What a worker writes into its files arrives as it stands."""
    plain = house.engine._kept

    def telling(job: Job, index: int, seed: int) -> Drawn:
        kept = plain(job, index, seed)
        information = PngInfo()
        information.add_text("parameters", "by the worker\nSteps: 1, Seed: 2, Size: 3x4")
        data = io.BytesIO()
        with Image.open(house.store.pictures / kept.file) as image:
            image.save(data, "PNG", pnginfo=information)
        files.keep(house.store.pictures, kept.file, data.getvalue())
        return replace(kept, sha256=hashlib.sha256(data.getvalue()).hexdigest())

    house.engine._kept = telling  # type: ignore[method-assign]
    said, info = drawn(house, prompt="a cat")
    assert info["infotexts"] == [opened(said["images"][0]).text["parameters"]]  # type: ignore[attr-defined]
    assert info["infotexts"][0].startswith("by the worker")
    read = house.post(f"{API}/png-info", {"image": said["images"][0]}).json()
    assert read["info"] == info["infotexts"][0]
    assert read["parameters"]["Size-1"] == "3"


# -- names


def test_every_sampler_is_known_by_all_its_names() -> None:
    for name, others in samplers().items():
        for said in (name, name.upper(), *others):
            assert sampler_named(said) == (
                next(o for o, shown in SAMPLER_NAMES.items() if shown == name),
                None,
            )
    assert sampler_named("DPM++ 2M Karras") == ("dpmpp_2m", "karras")
    assert sampler_named("DPM++ 2M SDE Exponential") == ("dpmpp_2m_sde", "exponential")
    assert sampler_named(None) == (None, None)
    assert grid_named("Karras") == "karras"
    assert grid_named("Automatic") is None


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"sampler_name": "PLMS"}, "Sampler not found"),
        ({"sampler_index": "Euler b"}, "Sampler not found"),
        ({"scheduler": "KL Optimal"}, "Scheduler not found"),
        ({"override_settings": {"sd_model_checkpoint": "nix"}}, "Checkpoint not found"),
    ],
)
def test_what_is_not_here_is_not_found(shared: Served, asked: dict[str, Any], word: str) -> None:
    said = shared.post(f"{API}/txt2img", {"prompt": "a cat", **asked})
    assert said.status_code == 404
    told = said.json()
    assert set(told) == {"error", "detail", "body", "errors"}
    assert told["error"] == "HTTPException"
    assert told["detail"].startswith(word)


def test_lists_are_what_clients_read(shared: Served) -> None:
    found = {
        name: shared.get(f"{API}/{name}").json()
        for name in ("samplers", "schedulers", "sd-models", "upscalers")
    }
    assert {"name": "Euler a", "aliases": ["euler_ancestral", "k_euler_a"], "options": {}} in found[
        "samplers"
    ]
    assert {one["label"] for one in found["schedulers"]} >= {"Automatic", "Karras", "Exponential"}
    assert found["sd-models"][0]["title"] == "mini [fake0000]"
    assert [one["name"] for one in found["upscalers"]] == ["None", "Lanczos", "Nearest", "Limner"]
    assert shared.get(f"{API}/cmd-flags").json()["api"] is True
    assert shared.get(f"{API}/memory").json()["ram"]["used"] > 0
    assert [one["name"] for one in shared.get(f"{API}/prompt-styles").json()] == ["flat", "glossy"]
    for name in ("hypernetworks", "face-restorers", "sd-vae", "loras", "extensions"):
        assert shared.get(f"{API}/{name}").json() == []
    assert shared.post(f"{API}/refresh-checkpoints").status_code == 200


def test_loras_are_named_without_their_folder(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "fox.safetensors").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    said = serve(loras=folder).get(f"{API}/loras")
    assert [one["name"] for one in said.json()] == ["fox"]
    assert str(tmp_path) not in said.text


def test_a_model_is_chosen_for_a_request_or_for_all_of_ones_own(serve: Serve) -> None:
    house = serve()
    house.engine.known = (MINI, SD)
    _, first = house.store.add_key("first")
    _, second = house.store.add_key("second")
    one, other = ({"authorization": f"Bearer {key}"} for key in (first, second))

    def model(who: dict[str, str], **asked: Any) -> str:
        said = house.post(f"{API}/txt2img", {"prompt": "a cat", **asked}, headers=who)
        return str(json.loads(said.json()["info"])["sd_model_name"])

    for title in ("sd15", "sd15 [45dee52b11]", "45dee52b11", "sd15.safetensors [45dee52b11]"):
        assert model(one, override_settings={"sd_model_checkpoint": title}) == "sd15"
    assert model(one) == "mini"
    assert house.post(f"{API}/options", {"sd_model_checkpoint": "sd15"}, headers=one).status_code == 200
    assert (model(one), model(other)) == ("sd15", "mini")
    assert model(one, override_settings={"sd_model_checkpoint": "mini"}) == "mini"
    said = house.get(f"{API}/options", headers=one).json()
    assert (said["sd_model_checkpoint"], said["sd_checkpoint_hash"]) == ("sd15 [45dee52b11]", "45dee52b11")
    assert house.get(f"{API}/options", headers=other).json()["sd_model_checkpoint"] == "mini [fake0000]"


def test_options_that_cannot_be_chosen_are_refused_unless_they_are_so(shared: Served) -> None:
    assert shared.post(f"{API}/options", {"samples_format": "png", "sd_vae": "Automatic"}).status_code == 200
    assert shared.post(f"{API}/options", {"samples_format": "gif"}).status_code == 422
    assert shared.post(f"{API}/options", {"sd_model_checkpoint": "nix"}).status_code == 404
    assert shared.post(f"{API}/options", {"no_such_thing": 1}).status_code == 422


# -- img2img


def test_a_picture_is_drawn_anew(house: Served) -> None:
    image = coded(picture((96, 96)))
    for said in (
        image,
        f"data:image/png;base64,{image}",
        "\n".join(image[i : i + 76] for i in range(0, len(image), 76)),
    ):
        drawn(house, "img2img", prompt="a cat", init_images=[said], denoising_strength=0.5)
        asked = request_of(house)
        assert (asked["strength"], asked["size"]) == (0.5, [96, 96])
        kept = house.store.picture(asked["image"]["picture"])
        assert (kept.width, kept.height) == (96, 96)
    said, _ = drawn(house, "img2img", prompt="a cat", init_images=[image])
    assert "strength" not in request_of(house)  # 0.75, as of any request
    assert said["parameters"]["init_images"] is None
    said, _ = drawn(house, "img2img", prompt="a cat", init_images=[image], include_init_images=True)
    assert said["parameters"]["init_images"] == [image]


def test_a_mask_is_white_where_to_draw(house: Served) -> None:
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    image, mask = coded(picture((64, 64))), coded(half)
    for asked, white, feather in (
        ({}, (10, 10), 4),
        ({"inpainting_mask_invert": 1, "mask_blur": 0}, (50, 10), 0),
        ({"mask_blur_x": 8, "mask_blur_y": 2}, (10, 50), 8),
    ):
        _, info = drawn(house, "img2img", prompt="x", init_images=[image], mask=mask, **asked)
        request = request_of(house)
        kept = house.store.picture(request["mask"]["picture"])
        with Image.open(house.store.pictures / kept.file) as marks:
            assert marks.convert("RGB").getpixel(white) == (255, 255, 255)
            assert marks.convert("L").histogram()[255] == 32 * 64
        assert request.get("feather", 4) == feather
        assert "inpaint_full_res" in info["warnings"][0]
    _, info = drawn(house, "img2img", prompt="x", init_images=[image], mask=mask, inpaint_full_res=0)
    assert info["warnings"] == []


@pytest.mark.parametrize(
    ("mode", "corner", "edge"),
    [(0, "red", "blue"), (1, "red", "blue"), (2, "red", "blue"), (3, "red", "blue")],
)
def test_pictures_of_another_shape_are_made_to_fit(mode: int, corner: str, edge: str) -> None:
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    data = base64.b64decode(coded(wide))
    mask = base64.b64decode(coded(Image.new("L", (40, 20), 255)))
    image, marks = begun(data, mask, size=(80, 80), mode=mode, invert=False, most=10_000)
    assert marks is not None
    with Image.open(io.BytesIO(image)) as found, Image.open(io.BytesIO(marks)) as white:
        if mode == 1:  # the model fills and cuts
            assert (found.size, white.size) == ((40, 20), (40, 20))
        else:
            assert (found.size, white.size) == ((80, 80), (80, 80))
            assert found.convert("RGB").getpixel((2, 40)) == (255, 0, 0)
            assert found.convert("RGB").getpixel((77, 40)) == (0, 0, 255)
            assert found.convert("RGB").getpixel((2, 2)) == (255, 0, 0)
            assert found.convert("RGB").getpixel((77, 77)) == (0, 0, 255)
        assert white.convert("L").getextrema() == (255, 255)


def test_a_mask_with_transparency_is_read_by_it() -> None:
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 4, 8))
    _, marks = begun(
        picture((8, 8)), base64.b64decode(coded(mask)), size=None, mode=0, invert=False, most=100
    )
    assert marks is not None
    with Image.open(io.BytesIO(marks)) as found:
        assert [found.convert("L").getpixel(at) for at in ((1, 1), (6, 6))] == [255, 0]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 404),
        ({"init_images": []}, 404),
        ({"init_images": ["http://169.254.169.254/x.png"]}, 400),
        ({"init_images": ["data:image/png;base64,%%%"]}, 400),
        ({"init_images": ["/etc/passwd"]}, 400),
        ({"init_images": [coded(b"GIF89a")]}, 415),
        ({"init_images": [coded(picture()), coded(picture())]}, 422),
        ({"init_images": [coded(picture())], "mask": coded(Image.new("L", (64, 48)))}, 400),
        ({"init_images": [coded(picture())], "mask": "nix"}, 400),
        ({"init_images": [coded(picture())], "latent_mask": coded(picture())}, 422),
        ({"init_images": [coded(picture())], "resize_mode": 4}, 422),
    ],
)
def test_what_is_no_picture_is_refused_and_nothing_is_kept(
    shared: Served, asked: dict[str, Any], status: int
) -> None:
    before = {path.name for path in shared.store.pictures.rglob("*.png")}
    said = shared.post(f"{API}/img2img", {"prompt": "x", **asked})
    assert said.status_code == status, said.text
    assert set(said.json()) == {"error", "detail", "body", "errors"}
    assert {path.name for path in shared.store.pictures.rglob("*.png")} == before


def test_pictures_of_a_job_that_was_refused_are_removed(serve: Serve) -> None:
    house = serve(at_once=False, queue=1)
    house.job()
    said = house.post(f"{API}/img2img", {"prompt": "x", "init_images": [coded(picture())]})
    assert (said.status_code, int(said.headers["retry-after"]) >= 1) == (429, True)
    assert said.json()["error"] == "HTTPException"
    assert list(house.store.pictures.rglob("*.png")) == []


# -- progress and stopping


async def until(true: Callable[[], object]) -> None:
    """Wait for something to be true."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


def waiting(house: Served) -> bool:
    return house.store.counts()[State.QUEUED] > 0


def test_progress_shows_your_own_job(serve: Serve) -> None:
    house = serve(at_once=False)

    async def told() -> list[dict[str, Any]]:
        async def progress(query: str = "") -> None:
            found.append((await house.client.get(f"{API}/progress{query}")).json())

        found: list[dict[str, Any]] = []
        await progress()
        drawing = asyncio.ensure_future(
            house.client.post(f"{API}/txt2img", json={"prompt": "x", "steps": 20})
        )
        await until(lambda: waiting(house))
        await progress()
        running = house.engine.begin()
        assert running is not None
        house.engine.show(running, 0.5)
        await progress()
        await progress("?skip_current_image=true")
        house.engine.end(running)
        answer = await drawing
        assert answer.status_code == 200
        await progress()
        return found

    idle, queued, half, without, after = house.runner.run(told())
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    assert idle == after
    assert (queued["progress"], queued["textinfo"]) == (0.0, "waiting, 1 in the queue")
    assert (half["progress"], half["state"]["sampling_step"], half["state"]["sampling_steps"]) == (
        0.5,
        10,
        20,
    )
    assert opened(half["current_image"]).size == (48, 48)
    assert half["eta_relative"] >= 0
    assert without["current_image"] is None


@pytest.mark.parametrize("word", ["interrupt", "skip"])
def test_interrupt_stops_your_own_job_alone(serve: Serve, word: str) -> None:
    house = serve(at_once=False)
    one, other = ({"authorization": f"Bearer {house.store.add_key(name)[1]}"} for name in ("one", "other"))

    async def told() -> tuple[httpx.Response, Job]:
        asked = {"prompt": "x", "batch_size": 2}
        drawing = asyncio.ensure_future(house.client.post(f"{API}/txt2img", json=asked, headers=one))
        await until(lambda: waiting(house))
        running = house.engine.begin()
        assert running is not None
        assert (await house.client.post(f"{API}/{word}", headers=other)).json() == {}
        assert not house.store.get(running.id).cancel
        assert (await house.client.post(f"{API}/{word}", headers=one)).json() == {}
        state = (await house.client.get(f"{API}/progress", headers=one)).json()["state"]
        assert (state["interrupted"], state["stopping_generation"]) == (True, True)
        house.engine.end(running)
        return await drawing, house.store.get(running.id)

    answer, job = house.runner.run(told())
    assert job.state is State.CANCELLED
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    assert "interrupted" in json.loads(answer.json()["info"])["warnings"][0]


def test_interrupt_reaches_what_waits_where_nothing_runs(serve: Serve) -> None:
    house = serve(at_once=False)
    first, second = (house.job()["id"] for _ in range(2))
    house.post(f"{API}/interrupt")
    assert house.store.get(first).state is State.CANCELLED
    assert house.store.get(second).state is State.QUEUED
    assert house.post(f"{API}/interrupt").json() == {}


def test_whoever_hangs_up_wants_nothing_more_unless_the_job_has_a_name(serve: Serve) -> None:
    house = serve(at_once=False)

    async def left(**headers: str) -> None:
        asked = house.client.post(f"{API}/txt2img", json={"prompt": "x"}, headers=headers)
        drawing = asyncio.ensure_future(asked)
        await until(house.engine.hub.watched)
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)

    house.runner.run(left())
    assert house.store.listed(None)[0].state is State.CANCELLED
    house.runner.run(left(**{"Idempotency-Key": "once"}))
    assert house.store.listed(None)[0].state is State.QUEUED
    house.engine.draw_all()
    said = house.post(f"{API}/txt2img", {"prompt": "x"}, headers={"Idempotency-Key": "once"})
    assert len(said.json()["images"]) == 1
    assert len(house.store.listed(None)) == 2


def test_a_failure_is_told_in_the_shape_of_the_web_ui(serve: Serve) -> None:
    house = serve(at_once=False)

    async def told(code: str) -> httpx.Response:
        drawing = asyncio.ensure_future(house.client.post(f"{API}/txt2img", json={"prompt": "x"}))
        await until(lambda: waiting(house))
        running = house.engine.begin()
        assert running is not None
        house.engine.fail(running, Failure(code=code, message="/srv/models/base.safetensors says no"))
        return await drawing

    for code, status in (("refused", 400), ("memory", 500), ("internal", 500)):
        said = house.runner.run(told(code))
        assert (said.status_code, said.json()["detail"]) == (status, "base.safetensors says no")


# -- png-info, larger pictures


def test_what_a_picture_says(shared: Served) -> None:
    information = PngInfo()
    text = "a cat, red\nNegative prompt: dogs\n"
    text += 'Steps: 20, Sampler: Euler a, Size: 64x48, Lora hashes: "a: 1, b: 2"'
    information.add_text("parameters", text)
    said = shared.post(f"{API}/png-info", {"image": coded(picture(pnginfo=information))}).json()
    assert (said["info"], said["items"]) == (text, {"parameters": text})
    assert said["parameters"] == {
        "Prompt": "a cat, red",
        "Negative prompt": "dogs",
        "Steps": "20",
        "Sampler": "Euler a",
        "Size-1": "64",
        "Size-2": "48",
        "Lora hashes": "a: 1, b: 2",
    }
    nothing = shared.post(f"{API}/png-info", {"image": coded(picture())}).json()
    assert nothing == {"info": "", "items": {}, "parameters": {}}
    assert fields_of("only a prompt") == {"Prompt": "only a prompt", "Negative prompt": ""}


def test_pictures_are_made_larger(house: Served) -> None:
    image = coded(picture((40, 20)))
    for asked, size in (
        ({"upscaling_resize": 3, "upscaler_1": "Lanczos"}, (120, 60)),
        ({"upscaling_resize": 2, "upscaler_1": "None"}, (80, 40)),
        ({"resize_mode": 1, "upscaling_resize_w": 50, "upscaling_resize_h": 50}, (50, 50)),
        (
            {"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 64, "upscaling_crop": False},
            (64, 32),
        ),
    ):
        said = house.post(f"{API}/extra-single-image", {"image": image, **asked})
        assert said.status_code == 200, said.text
        assert (opened(said.json()["image"]).size, said.json()["html_info"]) == (size, "")
    assert house.store.listed(None) == []
    said = house.post(
        f"{API}/extra-single-image",
        {"image": image, "upscaling_resize": 2, "upscaler_1": "Limner", "gfpgan_visibility": 0.5},
    )
    assert said.status_code == 200, said.text
    asked = request_of(house)["upscale"]
    assert asked["scale"] == 2.0
    assert "gfpgan_visibility" in said.json()["html_info"]
    sized = {"resize_mode": 1, "upscaling_resize_w": 80, "upscaling_resize_h": 80, "upscaler_1": "Limner"}
    said = house.post(f"{API}/extra-single-image", {"image": image, **sized})
    assert (opened(said.json()["image"]).size, request_of(house)["upscale"]["scale"]) == ((80, 80), 4.0)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"upscaler_1": "R-ESRGAN 4x+"}, 404),
        ({"upscaling_resize": 9}, 422),
        ({"upscaling_resize": 8, "upscaler_1": "Limner"}, 400),
        ({"resize_mode": 1, "upscaling_resize_w": 8192}, 400),
        ({"image": "nix"}, 400),
        ({"image": coded(b"nix")}, 415),
    ],
)
def test_what_cannot_be_made_larger(shared: Served, asked: dict[str, Any], status: int) -> None:
    said = shared.post(f"{API}/extra-single-image", {"image": coded(picture()), **asked})
    assert said.status_code == status, said.text


# -- keys and errors


def test_http_basic_is_a_key(serve: Serve) -> None:
    house = serve()
    _, secret = house.store.add_key("anna")
    for name in ("anna", "anybody", ""):
        token = base64.b64encode(f"{name}:{secret}".encode()).decode()
        assert house.get(f"{API}/options", headers={"authorization": f"Basic {token}"}).status_code == 200
    wrong = base64.b64encode(b"anna:nix").decode()
    said = house.get(f"{API}/options", headers={"authorization": f"Basic {wrong}"})
    assert (said.status_code, set(said.json())) == (401, {"error", "detail", "body", "errors"})


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"steps": 0}, 422),
        ({"steps": "many"}, 422),
        ({"batch_size": 65}, 422),
        ({"batch_size": 5, "n_iter": 5}, 400),
        ({"width": 0}, 422),
        ({"width": 1032, "height": 1032}, 400),
        ({"cfg_scale": 31}, 422),
        ({"seed": -2}, 422),
        ({"seed": 2**63}, 422),
        ({"denoising_strength": 2}, 422),
        ({"prompt": "nul \x00"}, 422),
        ({"prompt": "x" * 10_001}, 422),
    ],
)
def test_numbers_have_ranges(shared: Served, asked: dict[str, Any], status: int) -> None:
    said = shared.post(f"{API}/txt2img", {"prompt": "x", **asked})
    assert said.status_code == status, said.text
    told = said.json()
    assert set(told) == {"error", "detail", "body", "errors"}
    assert isinstance(told["detail"], list if status == 422 else str)


def test_a_size_that_is_not_drawn_says_which_are(shared: Served) -> None:
    shared.engine.known = (replace(MINI, defaults={**MINI.defaults, "square": True}),)
    try:
        said = shared.post(f"{API}/txt2img", {"prompt": "x", "width": 512, "height": 768})
    finally:
        shared.engine.known = (MINI,)
    assert said.status_code == 400
    for word in ("512x768", "squares", "192x192", "512x512"):
        assert word in said.json()["detail"]


def test_the_shape_holds_where_no_route_is(shared: Served) -> None:
    assert shared.get(f"{API}/nix").json()["detail"] == "there is nothing here"
    assert shared.ask("PUT", f"{API}/txt2img", json={}).status_code == 405
    said = shared.ask("POST", f"{API}/txt2img", content=b"{", headers={"content-type": "application/json"})
    assert (said.status_code, set(said.json())) == (400, {"error", "detail", "body", "errors"})
