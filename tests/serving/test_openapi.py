"""Schemathesis against the service's own OpenAPI: whatever is sent, nothing breaks, and refusals have one shape."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks

EXAMPLES = 25


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize("path", ["/rank", "/predict", "/feedback"])
def test_nothing_that_is_sent_breaks_the_service(service, path, mode):
    operation = schemathesis.openapi.from_url(f"{service.client.base_url}/docs.json")[path]["POST"]
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def check(case):
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=[checks.not_a_server_error])
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error", "detail"}
            assert "Traceback" not in answer.text

    check()
    # JSON Schema calls 1.0 an integer and knows no zones of time: a few that fit it are refused all the same.
    assert statuses <= {200, 400, 405, 415, 422}, statuses
    assert statuses & ({200, 422} if mode == GenerationMode.POSITIVE else {400, 415})
