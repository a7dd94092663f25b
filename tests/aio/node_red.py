"""The flows that ship for Node-RED, read as Node-RED does."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.harness.builds import PROJECT

FILE = PROJECT / "contrib/node-red/flows.json"

Node = dict[str, Any]


def nodes() -> list[Node]:
    """All nodes, and the tabs they are on."""
    found: list[Node] = json.loads(FILE.read_text())
    return found


def wires(node: Node) -> list[str]:
    """IDs of the nodes that its outputs lead to."""
    return [wire for output in node.get("wires", []) for wire in output]


def argv(node: Node, payload: str = "") -> list[str]:
    """What an exec node starts: split at spaces but within double quotes, and run without a shell
    (Node-RED's 90-exec.js, with "spawn")."""
    assert node["useSpawn"] == "true", node
    words = [node["command"], payload if node["addpay"] else "", node["append"]]
    return [
        re.sub(r'^"(.*)"$', r"\1", word)
        for word in re.findall(r'(?:[^\s"]+|"[^"]*")+', " ".join(filter(None, words)))
    ]


def after_exit(found: list[Node], run: Node, code: int | None) -> Node:
    """The node that gets the exit code ``code`` of the exec node ``run``."""
    by_id = {node["id"]: node for node in found}
    [switch] = [by_id[wire] for wire in run["wires"][2]]
    assert switch["property"] == "payload.code"
    [[wire]] = [switch["wires"][_place(switch["rules"], code)]]
    return by_id[wire]


def _place(rules: list[Node], code: int | None) -> int:
    """Number of the first rule that fits, as with "stopping after first match"."""
    for place, rule in enumerate(rules):
        if rule["t"] == "else" or (rule["t"] == "null" and code is None):
            return place
        if rule["t"] == "eq" and rule["vt"] == "num" and code == int(rule["v"]):
            return place
    raise AssertionError(f"nothing for {code}")
