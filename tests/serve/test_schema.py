"""The OpenAPI description of our own routes: nothing in it is without bounds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from house import Served, served

from limner.pipeline.request import ALIASES, Request
from limner.serve.schemas import ActionIn, JobIn

REFUSED = {"refiner", "refine_from"}  # fields of a request that name files of the server
OWN = ("/jobs", "/pictures", "/models", "/words", "/queue", "/session", "/health", "/metrics")


@pytest.fixture(scope="module")
def house(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(sqlite(), tmp_path_factory.mktemp("schema")) as house:
        yield house


def unbounded(schema: Any, where: str) -> Iterator[str]:
    """What in a JSON schema has no end."""
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "string" and not {"maxLength", "enum", "const", "format", "contentMediaType"} & set(schema):
        yield f"{where}: a text without length"
    if kind in ("integer", "number") and not (
        {"minimum", "exclusiveMinimum"} & set(schema) and {"maximum", "exclusiveMaximum"} & set(schema)
    ):
        yield f"{where}: a number without range"
    if kind == "array" and "maxItems" not in schema:
        yield f"{where}: a list without end"
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, f"{where}.{name}")
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for inner in schema.get(key, ()):
            yield from unbounded(inner, where)
    yield from unbounded(schema.get("items"), f"{where}[]")


def test_everything_has_bounds(house: Served) -> None:
    told = house.get("/openapi.json").json()
    found = []
    used = set()
    for path, methods in told["paths"].items():
        if not path.startswith(OWN):
            continue
        for method, route in methods.items():
            for parameter in route.get("parameters", ()):
                found += unbounded(parameter["schema"], f"{method} {path} {parameter['name']}")
            used |= set(references(route))
    pending, seen = list(used), set[str]()
    while pending:
        if (name := pending.pop()) not in seen:
            seen.add(name)
            schema = told["components"]["schemas"][name]
            found += unbounded(schema, name)
            pending += references(schema)
    assert {"JobIn", "ActionIn", "JobOut", "PictureOut"} <= seen
    assert found == []


def references(part: Any) -> Iterator[str]:
    """The schemas that a part of the description refers to."""
    if isinstance(part, dict):
        if isinstance(name := part.get("$ref"), str):
            yield name.rpartition("/")[2]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_every_field_of_a_request_can_be_sent() -> None:
    known = set(Request.__dataclass_fields__) - REFUSED
    assert set(JobIn.model_fields) == known | set(ALIASES) | {"parent", "upscale"}
    assert {name for name in known if getattr(Request, name, None) is not None} <= set(JobIn.model_fields)


def test_the_description_asks_for_the_key(house: Served) -> None:
    told = house.get("/openapi.json").json()
    assert told["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, methods in told["paths"].items():
        for method, route in methods.items():
            free = path == "/health" or (path == "/session" and method in ("post", "delete"))
            if path.startswith(OWN):
                assert bool(route.get("security")) is not free, (method, path)


def test_the_actions_are_those_of_the_page() -> None:
    actions = ActionIn.model_json_schema()["properties"]["action"]["enum"]
    page = Path(__file__).parents[2] / "src" / "limner" / "serve" / "web"
    scripts = "".join(path.read_text("utf-8") for path in page.glob("*.js"))
    assert [action for action in actions if f'"{action}"' not in scripts] == []
