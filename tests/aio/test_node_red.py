"""The flows for Node-RED hang together; what their exec nodes start is run by test_chapter.py."""

from __future__ import annotations

import pytest

from tests.aio.node_red import Node, after_exit, argv, nodes, wires

OF_NODE_RED_ITSELF = {
    *("tab", "comment", "inject", "exec", "split", "json", "switch", "change", "delay", "debug"),
}
OUTPUTS = {"exec": 3, "debug": 0, "comment": 0}
NOBODY_TOLD, NOTIFY = "nobody is told: put yours here", "notify: put yours here"


@pytest.fixture
def found() -> list[Node]:
    return nodes()


def test_wires(found: list[Node]) -> None:
    by_id = {node["id"]: node for node in found}
    assert len(by_id) == len(found)
    tabs = {node["id"] for node in found if node["type"] == "tab"}
    reached = {node["id"] for node in found if node["type"] in ("tab", "comment", "inject")}
    for node in found:
        assert node["type"] in OF_NODE_RED_ITSELF, node
        if node["type"] == "tab":
            continue
        assert node["z"] in tabs, node
        outputs = len(node["rules"]) if node["type"] == "switch" else OUTPUTS.get(node["type"], 1)
        assert len(node["wires"]) == outputs, node
        for wire in wires(node):
            assert by_id[wire]["z"] == node["z"], node
            reached.add(wire)
    assert reached == by_id.keys()


def test_lines_are_whole_before_they_are_parsed(found: list[Node]) -> None:
    """A process's output comes in pieces of any size."""
    by_id = {node["id"]: node for node in found}
    for run in (node for node in found if node["type"] == "exec"):
        [split] = [by_id[wire] for wire in run["wires"][0]]
        assert (split["type"], split["splt"], split["stream"]) == ("split", "\\n", True)
        [parse] = [by_id[wire] for wire in split["wires"][0]]
        assert (parse["type"], parse["action"]) == ("json", "obj")


def test_no_message_becomes_part_of_a_command(found: list[Node]) -> None:
    """Threat: who can send a message into a flow, by HTTP or MQTT say, has another command run."""
    runs = {node["command"]: node for node in found if node["type"] == "exec"}
    ssh = "ssh -n -o BatchMode=yes nextcloud"
    assert sorted(runs) == [f"{ssh} job", f"{ssh} run nightly", f"{ssh} run nightly --detach"]
    assert [command for command, node in runs.items() if node["addpay"]] == [f"{ssh} job"]
    # What is appended comes from the flow's own store, which only this check lets in.
    [check] = [node for node in found if node.get("name") == "a job's ID?"]
    assert check["rules"][0]["v"] == "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
    keep, where = (
        next(node for node in found if node.get("name") == name)
        for name in ("keep it", "from where")
    )
    assert check["wires"] == [[keep["id"]]]
    assert [node["id"] for node in found if keep["id"] in wires(node)] == [check["id"]]
    assert where["rules"][0]["to"] == '$flowContext("job") & " --from " & $flowContext("next")'
    before = [node for node in found if runs[f"{ssh} job"]["id"] in wires(node)]
    assert before == [where]
    assert argv(runs[f"{ssh} job"], "ID --from 3")[-5:] == ["job", "ID", "--from", "3", "--follow"]


@pytest.mark.parametrize(
    ("code", "name", "told"),
    [
        (0, "made", NOBODY_TOLD),
        (1, "made, but", NOTIFY),
        (2, "failed", NOTIFY),
        (69, "failed", NOTIFY),
        (75, "busy", NOTIFY),
        (77, "failed", NOTIFY),
        (255, "connection lost", NOTIFY),
        (None, "connection lost", NOTIFY),
    ],
)
def test_who_is_told_of_what(found: list[Node], code: int | None, name: str, told: str) -> None:
    for run in (node for node in found if node["type"] == "exec"):
        if run["name"] == "run nightly --detach":
            continue
        node = after_exit(found, run, code)
        if run["addpay"] and code in (69, 255, None):
            assert node["type"] == "delay"
            continue
        assert node["name"] == name
        [[end]] = node["wires"]
        assert next(one for one in found if one["id"] == end)["name"] == told


def test_a_lost_connection_is_taken_up_again_but_not_without_end(found: list[Node]) -> None:
    by_id = {node["id"]: node for node in found}
    by_name = {node.get("name"): node for node in found}
    [[counts]] = by_name["after a minute, again"]["wires"]
    [[decides]] = by_id[counts]["wires"]
    assert by_id[counts]["rules"][0]["to"] == '$flowContext("vain") + 1'
    assert by_id[decides]["property"] == (
        '$flowContext("exit") = 69 ? "the verdict" : $flowContext("vain") < 60 ? "again" : "enough"'
    )
    went = [(rule.get("v"), by_id[wire]["name"]) for rule, [wire] in _outputs(by_id[decides])]
    assert went == [("again", "from where"), ("enough", "given up"), (None, "failed")]
    seen = {rule["p"]: rule["to"] for rule in by_name["seen up to here"]["rules"]}
    assert seen == {"next": "payload.number + 1", "vain": "0", "exit": "payload.exit"}
    begun = {rule["p"] for rule in by_name["forget the last job"]["rules"]}
    assert begun == {"said", "job", *seen}


def _outputs(switch: Node) -> list[tuple[Node, list[str]]]:
    return list(zip(switch["rules"], switch["wires"], strict=True))
