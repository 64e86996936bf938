"""The OpenAPI schema is kept: whatever a tool makes of it is answered as the schema says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.serve.conftest import running
from tests.serve.scripted import ScriptedEngine
from ziphius.text import tokens

CHECKS = (
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)


@pytest.fixture(scope="module")
def schema(tokenizer):
    engine = ScriptedEngine(lambda _: tokenizer.encode(f"hm</think>four{tokens.EOS}"), pace=50)
    with running(tokenizer, engine, context=4096) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


ROUTES = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /tokenize",
    "POST /detokenize",
    "GET /tokenizer_info",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /health",
    "GET /metrics",
)


@pytest.fixture(scope="module")
def operations(schema):
    found = [operation.ok() for operation in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_every_route_is_described(operations):
    assert set(operations) == set(ROUTES)


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
@pytest.mark.parametrize("route", ROUTES)
def test_what_the_schema_says_is_kept(operations, route, mode):
    """Bodies that the schema allows, and bodies that it does not."""
    operation = operations[route]
    count = 25 if "POST" in route else 3

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(case):
        if isinstance(case.body, dict) and "model" in case.body and mode is schemathesis.GenerationMode.POSITIVE:
            case.body["model"] = "tiny"  # else nearly all is 404
        case.call_and_validate(checks=CHECKS)

    try:
        ask()
    except Unsatisfiable:
        assert mode is schemathesis.GenerationMode.NEGATIVE  # a route without parameters can be asked nothing wrong
