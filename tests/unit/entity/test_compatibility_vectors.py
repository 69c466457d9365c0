"""The checker against a published set of cases (Apicurio Registry's), and why it differs where it does.

The file lies beside the real data set, in ``vectors``; without it the test is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from services.entity.compatibility import Comparison, Mode

FILE = Path(os.environ.get("STRANDLINE_DATA", "/nowhere")).parent / "vectors" / "apicurio-jsonschema-compat.json"
ANNOTATION = "an annotation: 2020-12 validates nothing by it, nor does the service"
# What the checker answers instead, by place in the file and id, and why it is right.
DIFFERENT = {
    (13, "String: format 1"): ("both", ANNOTATION),
    (14, "String: format 2"): ("both", ANNOTATION),
    (96, "Const"): ("both", "the constants are arrays and the type is string: nothing is valid by either"),
    (100, "String: contentEncoding 2"): ("both", ANNOTATION),
    (101, "String: contentEncoding 3"): ("both", ANNOTATION),
    (103, "String: contentMediaType 2"): ("both", ANNOTATION),
    (104, "String: contentMediaType 3"): ("both", ANNOTATION),
    (108, "Complex: anyOf 1"): ("both", "any string fits the first branch, anything else the second: all is valid"),
    (117, "Complex: oneOf 1"): ("forward", '"abcdef" fits one branch of the old schema and both of the new one'),
    (119, "Complex: oneOf 3"): ("none", '"abc" fits the branch of the old schema and both of the new one'),
    (124, "Conditional: if"): ("both", "the added value of the condition is one that the property cannot have"),
}


@pytest.mark.skipif(not FILE.is_file(), reason=f"needs {FILE.name} in the folder vectors beside STRANDLINE_DATA")
def test_the_published_cases_are_answered_alike_but_for_those_with_a_reason() -> None:
    cases = json.loads(FILE.read_text())["tests"]
    different = {}
    for place, case in enumerate(cases):
        answer = direction(case["original"], case["updated"])
        if answer != case["compatibility"]:
            different[(place, case["id"])] = answer
    assert different == {case: answer for case, (answer, _) in DIFFERENT.items()}
    assert (len(cases), len(cases) - len(different)) == (145, 134)


def direction(old: Any, new: Any) -> str:
    """Which of the two kinds of compatibility there are, in the words of the file."""
    comparison = Comparison([old], new)
    backward, forward = (not comparison.differences(mode) for mode in (Mode.BACKWARD, Mode.FORWARD))
    if backward and forward:
        return "both"
    return "backward" if backward else "forward" if forward else "none"
