"""Rules of a sink about a run's life and about what is wrong: said clearly, to the one who can mend it, and without a secret."""

from __future__ import annotations

from wsync_sdk.errors import ConfigError
from wsync_sdk.sink import Inspection, Operation, Sink, Target, TransactionalSink
from wsync_sdk.testing.harness import SinkHarness
from wsync_sdk.testing.rules import (
    ContractViolation,
    absent,
    checked,
    no_secret_in,
    refusal,
    require,
    require_quiet,
    texts_raised,
)
from wsync_sdk.testing.sink_delivery import Delivery, delivering, differing_contents, people, require_contents, target_of

__all__ = ["SinkLifeRules"]


def _wrong(harness: SinkHarness) -> Sink:
    sink = harness.wrong_login()
    if sink is None:
        absent("the harness has no wrong login")
    return sink


class SinkLifeRules:
    """What has to be true from `streams` to `commit`."""

    def test_a_sink_is_what_it_declares(self, harness: SinkHarness) -> None:
        """The engine asks the destination for acks where `transactional` is declared, and trusts its own where it is not."""
        with harness.sink() as sink:
            is_transactional = isinstance(sink, TransactionalSink)
        require(
            is_transactional == harness.capabilities.transactional,
            "declare `transactional` exactly where the sink is a TransactionalSink",
        )

    def test_a_stream_says_what_it_takes(self, harness: SinkHarness) -> None:
        """A sync is checked against its stream before it runs, and chunks are cut by the stream's limits."""
        with delivering(harness) as delivery:
            names = [spec.name for spec in delivery.sink.streams()]
            spec = delivery.stream
        require(len(set(names)) == len(names), "streams: name each stream once")
        require(spec.name == delivery.target.stream, "stream: give the stream of the name that was asked for")
        require(Operation.UPSERT in spec.operations, "stream: declare UPSERT; a stream that takes none has no use")
        limits = spec.limits
        require(min(limits.max_rows, limits.max_bytes, limits.concurrency) >= 1, "stream: declare limits of at least 1")

    def test_an_unknown_stream_is_a_config_error_that_names_one(self, harness: SinkHarness) -> None:
        """A mistyped stream is shown where it was typed, with what may have been meant."""
        unknown = harness.unknown_stream
        if unknown is None:
            absent("any name is a stream")
        target_of(harness)
        with harness.sink() as sink:
            names = [spec.name for spec in sink.streams()]
            error = refusal(lambda: sink.stream(unknown), ConfigError, what="an unknown stream")
        text = f"{error.message} {error.next_step}"
        require(not names or any(name in text for name in names), "an unknown stream: name a stream that is there in `next_step`")

    def test_another_worker_can_go_on(self, harness: SinkHarness) -> None:
        """Any worker may send a run's next chunk or commit it: the token has all that is needed, the instance nothing."""
        with delivering(harness) as delivery, harness.sink() as second, harness.sink() as third:
            chunk = delivery.chunk(people([1]))
            try:
                second.write(chunk, delivery.token)
                third.commit(delivery.token, {"upserts": 1})
            except Exception as exc:
                raise ContractViolation(
                    f"another instance can't go on with a run ({type(exc).__name__}); put what it needs into `begin`'s token"
                ) from exc
            difference = differing_contents(harness, delivery.target, people([1]))
        require(not difference, f"what another instance wrote is not there ({difference}); put what it needs into `begin`'s token")

    def test_a_repeated_begin_does_nothing(self, harness: SinkHarness) -> None:
        """A crash between `begin` and the record of its token brings a second one; what earlier runs wrote stays."""
        with delivering(harness) as earlier:
            earlier.write(people([1]))
            earlier.commit()
            delivery = Delivery(earlier.sink, earlier.target, sync_id=earlier.run.sync_id, number=2)
            try:
                delivery.token = delivery.sink.begin(delivery.run, delivery.target)
            except Exception as exc:
                raise ContractViolation(f"a second `begin` of the same run: do nothing; {type(exc).__name__} was raised") from exc
            delivery.write(people([2]))
            require_contents(harness, delivery, people([1, 2]), "a second `begin` of a run costs rows; prepare only what is not there")

    def test_a_repeated_commit_does_nothing(self, harness: SinkHarness) -> None:
        """A crash after `commit` brings a second one."""
        with delivering(harness) as delivery:
            delivery.write(people([1]))
            delivery.commit()
            require_quiet(delivery.commit, what="a second `commit`")

    def test_a_repeated_abort_does_nothing(self, harness: SinkHarness) -> None:
        """`abort` follows every bad outcome and may be repeated, by another instance too."""
        with delivering(harness) as delivery, harness.sink() as other:
            delivery.write(people([1]))
            delivery.sink.abort(delivery.token)
            for sink in (delivery.sink, other):
                require_quiet(lambda sink=sink: sink.abort(delivery.token), what="a second `abort`")  # type: ignore[misc]

    def test_inspect_tells_what_became_of_a_token(self, harness: SinkHarness) -> None:
        """After a crash the engine asks whether to commit: what it hears must be true, or UNKNOWN."""
        with delivering(harness) as delivery, harness.sink() as other:
            before = other.inspect(delivery.token)
            delivery.write(people([1]))
            delivery.commit()
            after, still_open = other.inspect(delivery.token), other.find_open(delivery.run)
        require(before in {Inspection.OPEN, Inspection.UNKNOWN}, "inspect: say OPEN (or UNKNOWN) of a token between `begin` and `commit`")
        require(after is not Inspection.OPEN, "inspect: do not say OPEN of a token that is committed")
        require(delivery.token not in still_open, "find_open: do not list a token that is committed")

    def test_check_finds_nothing_wrong_with_a_right_config(self, harness: SinkHarness) -> None:
        """`connections test` says ok when it is."""
        target_of(harness)
        with harness.sink() as sink:
            report = checked(sink.check, what="check of a right config")
        wrong = [finding.name for finding in report.findings if not finding.ok]
        require(report.ok, f"check of a right config: the finding(s) {', '.join(wrong)} say that something is wrong")

    def test_check_writes_nothing(self, harness: SinkHarness) -> None:
        """People check a connection to a live store, whose subscribers get messages: no test record, no stream of its own."""
        with delivering(harness) as delivery:
            delivery.write(people([1]))
            delivery.commit()
            before = {spec.name for spec in delivery.sink.streams()}
            delivery.sink.check()
            after = {spec.name for spec in delivery.sink.streams()}
            difference = differing_contents(harness, delivery.target, people([1]))
        require(before == after and not difference, "check has written; look at what can be asked without a write")

    def test_a_wrong_login_is_a_finding(self, harness: SinkHarness) -> None:
        """A mistyped key is for a person: a finding that says what to do, not a traceback."""
        with _wrong(harness) as sink:
            report = checked(sink.check, what="check of a wrong login")
        require(not report.ok, "check of a wrong login: say in a finding that the login is refused")

    def test_a_wrong_login_is_a_config_error(self, harness: SinkHarness) -> None:
        """Trying a wrong key again locks the account: `begin` or `write` says ConfigError, which is not repeated."""
        target = target_of(harness)
        with _wrong(harness) as sink:
            refusal(lambda: _deliver(sink, target), ConfigError, what="begin and write with a wrong login")

    def test_secrets_are_never_shown(self, harness: SinkHarness) -> None:
        """Errors, findings and reprs end in logs and on screens, the token in a table; a password in one has to be changed."""
        with delivering(harness) as delivery:
            shown = [repr(delivery.sink), str(delivery.sink), repr(delivery.sink.check()), delivery.token.decode(errors="replace")]
            no_secret_in(shown, harness.secrets, where="repr, check or token")
        refused = harness.refusal()
        if refused is not None:
            with harness.sink() as sink:
                rows = [*refused.good, refused.bad]
                texts = texts_raised(lambda: Delivery(sink, refused.target).write(rows))
                no_secret_in(texts, harness.secrets, where="an error about a refused row")
        wrong = harness.wrong_login()
        if wrong is not None:
            target = target_of(harness)
            with wrong:
                no_secret_in([repr(wrong), *_check_texts(wrong)], harness.secrets, where="check of a wrong login")
                no_secret_in(texts_raised(lambda: _deliver(wrong, target)), harness.secrets, where="an error about a wrong login")


def _deliver(sink: Sink, target: Target) -> None:
    Delivery(sink, target).write(people([1]))


def _check_texts(sink: Sink) -> list[str]:
    try:
        return [repr(sink.check())]
    except Exception:
        return texts_raised(sink.check)
