"""The OpenAPI schema is kept: whatever a tool makes of it is answered as the schema says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
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


@pytest.fixture(scope="module")
def operations(schema):
    return {f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in schema.get_all_operations()}


def test_every_route_is_described(operations):
    assert set(operations) == {
        "POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models", "GET /v1/models/{model}",
        "GET /health", "GET /metrics",
    }  # fmt: skip


lazy = schemathesis.pytest.from_fixture("schema")


@lazy.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_the_schema_allows_is_answered_as_it_says(case):
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "tiny"  # else nearly all is 404
    case.call_and_validate(checks=CHECKS)
