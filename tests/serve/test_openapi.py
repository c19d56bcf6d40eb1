"""Every route under what its own description allows and forbids: no answer that it does not describe, none of
status 500 and above."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from house import Served, picture, served
from hypothesis import HealthCheck, Phase, given, settings
from starlette.responses import JSONResponse

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, which [dev] brings")

from schemathesis import GenerationMode  # noqa: E402 - where it is installed
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
STRICT = [*CHECKS, checks.negative_data_rejection]  # of our own routes; others take "1" for 1
OTHERS = ("/v1/", "/sdapi/")
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
FEWEST, MOST = 50, 100  # operations
SLOW = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
]


@pytest.fixture(scope="module")
def house(sqlite: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An application that takes whatever comes, as fast as it comes, and has drawn something."""
    folder = tmp_path_factory.mktemp("described")
    with served(
        sqlite(), folder, hosts=("testserver",), rate=10_000, burst=100_000, most_side=256, waiting=10_000
    ) as house:
        house.job()
        house.bring(picture())
        yield house


@pytest.fixture(scope="module")
def operations(house: Served) -> list[Any]:
    """What the application says that it does. Keys are left out: here they are not needed."""
    described = house.get("/openapi.json").json()
    for operation in (one for path in described["paths"].values() for one in path.values()):
        operation.pop("security", None)

    async def lasting(scope: Any, receive: Any, send: Any) -> None:
        """The application, which does not end with each client of it."""
        if scope["type"] == "http" and scope["path"] == "/openapi.json":
            await JSONResponse(described)(scope, receive, send)
        elif scope["type"] == "http":
            await house.app(scope, receive, send)
        else:
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})

    schema = schemathesis.openapi.from_asgi("/openapi.json", lasting)
    return [found.ok() for found in schema.get_all_operations()]


def hold(operation: Any, mode: GenerationMode, examples: int) -> None:
    """Ask an operation so often, with what it allows or what it forbids."""

    raw = operation.definition.raw
    if mode is GenerationMode.NEGATIVE and not (raw.get("parameters") or raw.get("requestBody")):
        return  # nothing can be wrong with it

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
        suppress_health_check=SLOW,
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        own = not operation.path.startswith(OTHERS)
        case.validate_response(case.call(), checks=STRICT if own else CHECKS)

    holds()


def test_all_operations_are_described(operations: list[Any]) -> None:
    assert FEWEST <= len(operations) <= MOST
    for operation in operations:
        described = operation.definition.raw["responses"]
        assert "500" in described or not operation.path.startswith(OTHERS), operation.label


@pytest.mark.parametrize("mode", MODES, ids=["allowed", "forbidden"])
def test_every_operation_answers_as_described(operations: list[Any], mode: GenerationMode) -> None:
    for operation in operations:
        hold(operation, mode, 2 if operation.body else 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=["allowed", "forbidden"])
def test_every_operation_answers_as_described_often(operations: list[Any], mode: GenerationMode) -> None:
    for operation in operations:
        hold(operation, mode, 100 if operation.body else 20)
