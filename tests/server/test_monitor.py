"""Labels stay bounded whatever callers make up."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tunesmith.server.monitor import MAX_ADAPTERS, Monitor


def labels(monitor: Monitor, name: str) -> set[tuple[str, ...]]:
    text = monitor.exposition("")[0].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    family = families[f"tunesmith_{name}"]
    return {tuple(sorted(one.labels.values(), reverse=True)) for one in family.samples if one.name.endswith("_total")}


def test_only_so_many_adapters_have_a_label_of_their_own() -> None:
    monitor = Monitor()
    for number in range(MAX_ADAPTERS + 10):
        monitor.count_adapter(f"model:{number}")
    found = labels(monitor, "adapter_requests")
    assert len(found) == MAX_ADAPTERS + 1
    assert ("other",) in found


def test_addresses_and_judgements_that_people_make_up_share_a_label() -> None:
    monitor = Monitor()
    for number in range(100):
        monitor.count_request(f"/made/up/{number}", 404)
        monitor.count_feedback(f"name{number}", f"value{number}")
    assert labels(monitor, "requests") == {("other", "404", "")}
    assert labels(monitor, "feedback") == {("other", "other")}


def test_two_monitors_do_not_meet() -> None:
    first, second = Monitor(), Monitor()
    first.count_adapter("red")
    assert labels(first, "adapter_requests") == {("red",)}
    assert labels(second, "adapter_requests") == set()


def test_the_form_follows_what_the_scraper_asks_for() -> None:
    monitor = Monitor()
    assert monitor.exposition("")[1].startswith("text/plain")
    body, kind = monitor.exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
