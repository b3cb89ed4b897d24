from __future__ import annotations

import pytest

from wsync_engine.config.loader import parse_declaration
from wsync_engine.model.run import Priority
from wsync_engine.model.sync import Guards, MappingEntry, Mode
from wsync_engine.plugins import PluginHost
from wsync_sdk.errors import ConfigError

TEXT = """\
version: 1
tenant: acme
connections:
  warehouse: {plugin: postgres, config: {url: env:WAREHOUSE_URL}}
  crm:
    plugin: postgres
    config:
      url: env:CRM_URL
syncs:
  customers:
    source: warehouse
    query: SELECT id, email, plan FROM customers
    key: id
    sink: crm
    stream: people
    mode: mirror
    mapping:
      person_id: id
      email: {column: email, cast: text, required: true}
      kind: {constant: customer}
    guards: {max_delete_percent: 10}
    schedule: {cron: "*/15 8-20 * * MON-FRI", timezone: Europe/Berlin, priority: high, jitter: 30s}
"""


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load(allow=("wsync-postgres",))


def replaced(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


def refusal(host: PluginHost, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_declaration(text, host)
    return caught.value


def test_a_file_becomes_a_declaration(host: PluginHost) -> None:
    declaration = parse_declaration(TEXT, host)

    (sync,) = declaration.syncs
    assert declaration.tenant == "acme"
    assert [connection.name for connection in declaration.connections] == ["warehouse", "crm"]
    assert (sync.spec.name, sync.spec.mode, sync.spec.guards) == ("customers", Mode.MIRROR, Guards(max_delete_percent=10))
    assert sync.spec.mapping == (
        MappingEntry(target="person_id", column="id"),
        MappingEntry(target="email", column="email", cast="text", required=True),
        MappingEntry(target="kind", constant="customer"),
    )
    assert sync.schedule is not None
    assert (sync.schedule.priority, sync.schedule.jitter_ms) == (Priority.HIGH, 30_000)


def test_several_columns_become_a_list(host: PluginHost) -> None:
    short = parse_declaration(replaced("{constant: customer}", "[email, plan]"), host)
    long = parse_declaration(replaced("{constant: customer}", "{columns: [email, plan]}"), host)

    assert short.syncs[0].spec.mapping[2] == MappingEntry(target="kind", columns=("email", "plan"))
    assert short == long


def test_a_key_that_names_a_column_means_the_field_it_goes_to(host: PluginHost) -> None:
    assert parse_declaration(TEXT, host).syncs[0].spec.key == ("person_id",)


@pytest.mark.parametrize(
    ("old", "new", "message", "next_step"),
    [
        ("    query: SELECT", "    qurey: SELECT", "wsync.yaml:12: syncs.customers.qurey: `qurey` is not known", "did you mean `query`?"),
        ("timezone: Europe/Berlin", "timezon: Europe/Berlin", "wsync.yaml:22: ", "did you mean `timezone`?"),
        ("version: 1", "version: 2", "wsync.yaml:1: version: ", "correct `version`"),
        ("plugin: postgres, config", "plugin: postgrse, config", "wsync.yaml:4: connections.warehouse.plugin: ", "did you mean `postgres`?"),
        ("      url: env:CRM_URL", "      url: env:CRM_URL\n      conect_timeout_s: 3", "wsync.yaml:9: connections.crm.config.conect_timeout_s: ", "did you mean `connect_timeout_s`?"),
        ("      url: env:CRM_URL", "      url: postgresql://u:hunter2@h/d", "wsync.yaml:8: connections.crm.config.url: ", "write `url: env:NAME`"),
        ("    sink: crm", "    sink: cmr", "wsync.yaml:14: syncs.customers.sink: there is no connection `cmr`", "did you mean `crm`?"),
        ("    key: id", "    key: uid", "wsync.yaml:13: syncs.customers.key: `uid` is not in the mapping", "map it"),
        ("*/15 8-20 * * MON-FRI", "0 0 30 2 *", "wsync.yaml:22: syncs.customers.schedule.cron: ", ""),
        ("Europe/Berlin", "Europe/Berlni", "wsync.yaml:22: syncs.customers.schedule.timezone: ", ""),
        ("jitter: 30s", "jitter: 30", "wsync.yaml:22: syncs.customers.schedule.jitter: a duration is", ""),
        ("jitter: 30s", "jitter: 2h", "wsync.yaml:22: syncs.customers.schedule.jitter: it must be from 0s to 1h", ""),
        ("jitter: 30s", "start: 2027-02-30T00:00:00Z", "wsync.yaml:22: syncs.customers.schedule.start: an instant has a date that there is", ""),
        ("jitter: 30s", "start: 0001-01-01T00:00:00+14:00", "wsync.yaml:22: syncs.customers.schedule.start: the calendar", ""),
        ("jitter: 30s", "end: 9999-12-31T23:59:59-12:00", "wsync.yaml:22: syncs.customers.schedule.end: the calendar", ""),
        ("jitter: 30s", "start: 2027-01-02T00:00:00Z, end: 2027-01-01T00:00:00Z", "wsync.yaml:22: syncs.customers.schedule.end: `end` is before", ""),
        ('cron: "*/15 8-20 * * MON-FRI"', "every: 15m", "wsync.yaml:22: syncs.customers.schedule.timezone: `timezone` goes with `cron`: `every`", "remove `timezone`"),
        ('cron: "*/15 8-20 * * MON-FRI"', "at: 2031-01-01T00:00:00Z", "wsync.yaml:22: syncs.customers.schedule.timezone: `timezone` goes with `cron`: `at`", "remove `timezone`"),
        ("jitter: 30s", "attempt_timeout: 2d", "wsync.yaml:22: syncs.customers.schedule.attempt_timeout: `attempt_timeout` (2d) is longer than `timeout` (1d)", "raise `timeout`"),
        ("jitter: 30s", "max_runs: 99999999999", "wsync.yaml:22: syncs.customers.schedule.max_runs: ", ""),
        ("jitter: 30s", "parameters: {least: 1}", "wsync.yaml:22: syncs.customers.schedule.parameters.least: the sync has no parameter `least`", "declare it"),
        ("jitter: 30s", "parameters: {least: [1]}", "wsync.yaml:22: syncs.customers.schedule.parameters.least: a value is", ""),
        ("    key: id", "    key: id\n    parameters: {day: {from: yesterday}}", "wsync.yaml:14: syncs.customers.parameters.day: a value is", ""),
        ("cast: text", "cast: txt", "wsync.yaml:19: syncs.customers.mapping.email.cast: ", ""),
        ("{constant: customer}", "{constant: customer, column: id}", "wsync.yaml:20: syncs.customers.mapping.kind: one of `column`, `columns` and", ""),
        ("{constant: customer}", "[]", "wsync.yaml:20: syncs.customers.mapping.kind: a list has the names", ""),
        ("{constant: customer}", "[id, 7]", "wsync.yaml:20: syncs.customers.mapping.kind: a list has the names", ""),
        ("{constant: customer}", "{columns: [id], cast: json}", "wsync.yaml:20: syncs.customers.mapping.kind.cast: a list of columns", "make the JSON array"),
        ("{constant: customer}", "{columns: [id], nulls: omit}", "wsync.yaml:20: syncs.customers.mapping.kind.nulls: a list of columns is never NULL", "remove `nulls`"),
        ("cast: text", "nulls: keep", "wsync.yaml:19: syncs.customers.mapping.email.nulls: ", ""),
        ("    mode: mirror", "    mode: mirror\n    mode: upsert", "wsync.yaml:17: syncs.customers.mode: `mode` is there twice", "keep one"),
        ("tenant: acme", "tenant: [acme", "wsync.yaml:", "correct the syntax"),
        ("tenant: acme", "tenant: @acme", "wsync.yaml:", "stands in quotes"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_where_it_was_typed(host: PluginHost, old: str, new: str, message: str, next_step: str) -> None:
    refused = refusal(host, replaced(old, new))

    assert refused.message.startswith(message)
    assert next_step in refused.next_step
    assert "hunter2" not in refused.message + refused.next_step


def test_an_attempt_may_take_as_long_as_its_run_unless_the_file_says_less(host: PluginHost) -> None:
    schedules = [parse_declaration(replaced("jitter: 30s", words), host).syncs[0].schedule for words in ("timeout: 1h", "timeout: 2d")]

    assert [schedule.attempt_timeout_ms for schedule in schedules if schedule is not None] == [3_600_000, 21_600_000]


def test_two_syncs_of_one_name_are_refused(host: PluginHost) -> None:
    second = TEXT[TEXT.index("  customers:") :]

    assert "`customers` is there twice" in refusal(host, TEXT + second).message


def test_all_mistakes_are_listed_in_the_order_of_the_file(host: PluginHost) -> None:
    refused = refusal(host, replaced("tenant: acme", "tenat: acme").replace("mode: mirror", "mode: miror"))

    lines = refused.message.splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "16"]
    assert all("; next: " in line for line in lines)


@pytest.mark.parametrize(
    "text", ["", "- 1", "42", "a: &x [*x]", "? [1]\n: 2", "a: !!python/object:os.system x", "\x00", "version: &v 1\n<<: *v"]
)
def test_what_is_no_such_file_is_refused(host: PluginHost, text: str) -> None:
    assert refusal(host, text).next_step


def test_a_few_lines_that_stand_for_more_than_memory_holds_are_refused(host: PluginHost) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]

    assert "more than 100,000 values" in refusal(host, "\n".join(lines)).message
