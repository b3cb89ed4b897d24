"""Rules of a source about what is wrong: said clearly, to the one who can mend it, and without a secret."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from wsync_sdk.errors import ConfigError, FatalError
from wsync_sdk.source import ParameterValue, Query, ReadLimits, Source
from wsync_sdk.testing.harness import Context, SourceHarness
from wsync_sdk.testing.rules import ContractViolation, absent, checked, no_secret_in, refusal, require, texts_raised
from wsync_sdk.testing.source_rows import HOSTILE_TEXTS, planned, read_rows, values_of

__all__ = ["SourceRefusalRules"]

PARAMETERS: dict[str, ParameterValue] = {
    "whole": 42,
    "part": Decimal("10.25"),
    "words": "two words",
    "day": date(2024, 2, 29),
    "instant": datetime(2024, 3, 31, 1, 30, tzinfo=UTC),
    "nothing": None,
}
INJECTIONS = ("'; DROP TABLE subscribers; --", "\\'; --", "x' OR '1'='1", ":other", "$1 %s %(x)s ?", "/* */ -- \n", '"', *HOSTILE_TEXTS)


class SourceRefusalRules:
    """What a person who made a mistake must be told, and what must not happen."""

    def test_check_finds_nothing_wrong_with_a_right_config(self, harness: SourceHarness) -> None:
        """`connections test` says ok when it is."""
        with harness.source() as source:
            report = checked(source.check, what="check of a right config")

        wrong = [finding.name for finding in report.findings if not finding.ok]
        require(report.ok, f"check of a right config: the finding(s) {', '.join(wrong)} say that something is wrong")

    def test_a_wrong_login_is_a_finding(self, harness: SourceHarness) -> None:
        """A mistyped password is for a person: a finding that says what to do, not a traceback."""
        source = harness.wrong_login()
        if source is None:
            absent("the harness has no wrong login")
        with source:
            report = checked(source.check, what="check of a wrong login")

        require(not report.ok, "check of a wrong login: say in a finding that the login is refused")

    def test_a_wrong_login_is_a_config_error(self, harness: SourceHarness) -> None:
        """Trying a wrong password again locks the account: `plan` says ConfigError, which is not repeated."""
        source = harness.wrong_login()
        if source is None:
            absent("the harness has no wrong login")
        query = harness.echo({"whole": 1})
        with source:
            refusal(lambda: source.plan(query, ReadLimits(), Context()), ConfigError, what="plan with a wrong login")

    def test_bad_sql_is_a_config_error(self, harness: SourceHarness) -> None:
        """A typing mistake is shown where it was typed: ConfigError from every method that takes a query, never a retry."""
        query = harness.bad_sql()
        with harness.source() as source:
            refusal(lambda: source.preview(query, 1), ConfigError, what="bad SQL in preview")
            refusal(lambda: _read(source, query), ConfigError, what="bad SQL in plan")
            if harness.capabilities.estimates:
                refusal(lambda: source.estimate(query), ConfigError, what="bad SQL in estimate")

    def test_parameters_arrive_typed(self, harness: SourceHarness) -> None:
        """A decimal, a date or NULL means the same in the warehouse as in the config; bound by the driver, not printed as text."""
        for name, value in PARAMETERS.items():
            found = values_of(harness, harness.echo({name: value}))
            require(len(found) == 1, f"the parameter of type {type(value).__name__}: a query of one row gave {len(found)}")
            require(_is_same(found[0][name], value), f"a parameter of type {type(value).__name__} arrives changed; bind it with its type")

    def test_hostile_parameters_stay_data(self, harness: SourceHarness) -> None:
        """A parameter may come from a customer's form: quotes, comments and placeholders in it are text and nothing else."""
        for text in INJECTIONS:
            try:
                found: list[dict[str, Any]] = values_of(harness, harness.echo({"words": text}))
            except Exception as exc:
                raise ContractViolation(
                    f"a hostile parameter became SQL ({type(exc).__name__}); bind parameters, never paste them"
                ) from exc
            require([row["words"] for row in found] == [text], "a hostile parameter arrives changed; bind parameters, never paste them")

    def test_a_missing_parameter_is_a_config_error(self, harness: SourceHarness) -> None:
        """A parameter that is not given is not NULL: the query would quietly select something else."""
        sql = harness.echo({"words": "x"}).sql
        if sql is None:
            absent("the harness has no query with parameters")
        with harness.source() as source:
            query = Query(sql=sql)
            refusal(lambda: source.preview(query, 1), ConfigError, what="a missing parameter in preview")
            refusal(lambda: _read(source, query), ConfigError, what="a missing parameter in plan")

    def test_an_unknown_parameter_is_a_config_error(self, harness: SourceHarness) -> None:
        """A parameter that the query does not have is a typing mistake in one of the two."""
        sql = harness.echo({"words": "x"}).sql
        if sql is None:
            absent("the harness has no query with parameters")
        with harness.source() as source:
            query = Query(sql=sql, parameters={"words": "x", "wrods": "y"})
            refusal(lambda: _read(source, query), ConfigError, what="an unknown parameter in plan")

    def test_a_writing_query_changes_nothing(self, harness: SourceHarness) -> None:
        """A source only reads, whatever its login might do: the statement is refused, and the table is as it was."""
        if not harness.capabilities.read_only:
            absent("`read_only` is not declared: the login has to see to it")
        query = harness.write_sql()
        if query is None:
            absent("the harness has no query that writes")
        with harness.source() as source:
            what = "a query that writes"
            refusal(lambda: _read(source, query), ConfigError, FatalError, what=what)
            refusal(lambda: source.preview(query, 1), ConfigError, FatalError, what=f"{what}, in preview")
        require(harness.is_unchanged(), "a query that writes has written before it was refused; use a read-only transaction or login")

    def test_secrets_are_never_shown(self, harness: SourceHarness) -> None:
        """Errors, findings, handles and reprs end in logs and on screens; a password in one is a password that has to be changed."""
        with harness.source() as source:
            no_secret_in([repr(source), str(source), repr(source.check())], harness.secrets, where="repr or check")
            for call in (lambda: _read(source, harness.bad_sql()), lambda: source.preview(harness.bad_sql(), 1)):
                no_secret_in(texts_raised(call), harness.secrets, where="an error about bad SQL")
            with planned(source, harness.echo({"whole": 1})) as plan:
                shown = [*plan.warnings, plan.connector_version, plan.handle.decode(errors="replace")]
                no_secret_in(shown, harness.secrets, where="the plan's handle or warnings")
        wrong = harness.wrong_login()
        if wrong is not None:
            with wrong:
                no_secret_in([repr(wrong), *_check_texts(wrong)], harness.secrets, where="check of a wrong login")
                query = harness.echo({"whole": 1})
                no_secret_in(texts_raised(lambda: _read(wrong, query)), harness.secrets, where="an error about a wrong login")


def _is_same(found: Any, value: ParameterValue) -> bool:
    """Equal, and no decimal through a float; its exact text will do, since a decimal without bounds has no Arrow type."""
    if isinstance(value, Decimal):
        return isinstance(found, Decimal | str) and str(found) == str(value)
    return bool(found == value)


def _read(source: Source, query: Query) -> None:
    with planned(source, query) as plan:
        read_rows(source, plan.splits)


def _check_texts(source: Source) -> list[str]:
    try:
        return [repr(source.check())]
    except Exception:
        return texts_raised(source.check)
