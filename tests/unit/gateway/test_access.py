"""The allow-list and the routes say what the protos say."""

from __future__ import annotations

import re

from strandline_gateway.access import access_matrix, hosts
from strandline_gateway.descriptor import rpcs

# Written out, because it is what a reviewer of access wants to see change.
BETWEEN_SERVICES = {
    "EntityService.PurgeNamespace": {"user"},
    "LogService.GetHeads": {"entity", "stream"},
    "LogService.ReadUnits": {"entity", "stream"},
    "LogService.FindRevision": {"stream"},
    "LogService.ReadSnapshot": {"stream"},
    "LogService.PutConsumerLease": {"stream"},
    "LogService.DeleteConsumerLease": {"stream"},
    "AccessService.CheckAccess": {"entity", "stream"},
    "AuthService.GetJwks": {"edge", "entity", "stream"},
}


def test_all_but_the_calls_between_services_are_for_the_edge_alone() -> None:
    assert {rpc.name: set(rpc.callers) for rpc in rpcs() if rpc.callers != {"edge"}} == BETWEEN_SERVICES


def test_every_rpc_declares_its_access() -> None:
    assert [rpc.name for rpc in rpcs() if not rpc.callers or not rpc.access.identity] == []


def test_only_signing_in_and_public_keys_are_open_to_anyone() -> None:
    assert {rpc.name for rpc in rpcs() if not rpc.needs_token} == {
        "AuthService.Register",
        "AuthService.VerifyEmail",
        "AuthService.Login",
        "AuthService.Refresh",
        "AuthService.Logout",
        "AuthService.GetJwks",
        "TicketService.RedeemTicket",
    }


def test_a_cookie_opens_feeds_and_nothing_else() -> None:
    taking = [rpc for rpc in rpcs() if rpc.access.watch_cookie]
    feeds = {"StreamService.Watch", "StreamService.WatchMany", "StreamService.WatchMembers"}
    assert {rpc.name for rpc in taking} == feeds
    for rpc in taking:
        assert rpc.http is not None
        assert rpc.http.method == "GET"
        assert rpc.access.served_over_http


def test_a_log_is_served_by_every_owner_of_one() -> None:
    for workload in ("user", "entity"):
        assert access_matrix(workload)["/strandline.stream.v1.LogService/ReadUnits"] == {"entity", "stream"}
    assert "/strandline.stream.v1.LogService/ReadUnits" not in access_matrix("stream")


def test_an_rpc_is_in_the_matrix_of_its_hosts_and_of_no_other() -> None:
    for rpc in rpcs():
        listed = {workload for workload in ("user", "entity", "stream") if rpc.path in access_matrix(workload)}
        assert listed == set(hosts(rpc.service)), rpc.path


def test_no_two_rest_paths_of_one_method_can_match_the_same_request() -> None:
    rules = [rpc.http for rpc in rpcs() if rpc.http is not None]
    examples = [(rule.method, re.sub(r"\[\^/:\]\+", "x1", rule.regex).replace("\\", "")) for rule in rules]
    for method, path in examples:
        matches = [rule.template for rule in rules if rule.method == method and re.fullmatch(rule.regex, path)]
        assert len(matches) == 1, matches


def test_a_verb_ends_a_path_and_is_no_part_of_a_name() -> None:
    [get] = [rpc.http for rpc in rpcs() if rpc.name == "NamespaceService.GetNamespace"]
    assert get is not None
    assert re.fullmatch(get.regex, "/v1/namespaces/demo")
    assert not re.fullmatch(get.regex, "/v1/namespaces/demo:watch")
    assert not re.fullmatch(get.regex, "/v1/namespaces/demo/members")
