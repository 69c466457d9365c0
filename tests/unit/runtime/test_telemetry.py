"""Metrics as Prometheus reads them."""

from __future__ import annotations

import json
import logging

from prometheus_client import generate_latest

from services.runtime import telemetry


def test_calls_are_counted_by_outcome_and_their_seconds_in_cumulated_buckets() -> None:
    observe = telemetry.observer("/tests.Telemetry/Call")
    for code, seconds in (("OK", 0.0004), ("OK", 0.0005), ("NOT_FOUND", 0.3), ("OK", 20.0)):
        observe(code, seconds)
    lines = [line for line in generate_latest().decode().splitlines() if "tests.Telemetry" in line]
    method = 'method="/tests.Telemetry/Call"'
    assert f'strandline_rpc_calls_total{{code="OK",{method}}} 3.0' in lines
    assert f'strandline_rpc_calls_total{{code="NOT_FOUND",{method}}} 1.0' in lines
    assert f'strandline_rpc_seconds_bucket{{le="0.0005",{method}}} 2.0' in lines
    assert f'strandline_rpc_seconds_bucket{{le="0.25",{method}}} 2.0' in lines
    assert f'strandline_rpc_seconds_bucket{{le="0.5",{method}}} 3.0' in lines
    assert f'strandline_rpc_seconds_bucket{{le="10.0",{method}}} 3.0' in lines
    assert f'strandline_rpc_seconds_bucket{{le="+Inf",{method}}} 4.0' in lines
    assert f"strandline_rpc_seconds_count{{{method}}} 4.0" in lines
    assert f"strandline_rpc_seconds_sum{{{method}}} 20.3009" in lines


def test_any_text_of_a_caller_makes_one_line_of_json() -> None:
    record = logging.LogRecord("tests", logging.WARNING, "", 0, "no field %r: %s", ("a\nb", "\ud800"), None)
    line = telemetry.JsonFormatter("tests").format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "no field 'a\\nb': \ud800"


def test_two_observers_of_one_method_count_together() -> None:
    for _ in range(2):
        telemetry.observer("/tests.Telemetry/Twice")("OK", 0.1)
    assert 'strandline_rpc_calls_total{code="OK",method="/tests.Telemetry/Twice"} 2.0' in generate_latest().decode()
