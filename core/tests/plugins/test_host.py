"""The host against real installed distributions: whole, broken, clashing, refused before import."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from wsync_engine.plugins import PluginHost, PluginReport
from wsync_engine.plugins.configuration import secret_references
from wsync_sdk import AddressPolicy, CheckReport, ConfigError, Operation, PluginError, Split

WHOLE = """
from pydantic import BaseModel, ConfigDict
from wsync_sdk import *
class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    token: Secret
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    password: Secret
    headers: dict[str, Secret] = {}
    port: int = 1
    inner: Inner | None = None
class Thing(Source):
    def __init__(self, config): self.config = config
    def check(self): raise RuntimeError("row value 4711 leaked")
    def estimate(self, query): raise RetryableError("later", next_step="wait")
    def preview(self, query, rows): ...
    def plan(self, query, limits, ctx): ...
    def read(self, split, offset=0):
        yield 1
        raise KeyError("secret row")
    def release(self, plan): ...
    def cancel(self, handle): ...
@hookimpl
def wsync_sources():
    return [SourceSpec(name=NAME, title="T", config_model=Config, factory=Thing, capabilities=SourceCapabilities())]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution `acme-<name>` with one plugin module into a folder on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def make(name: str, code: str, *, spec: str = "thing", requires: str = "wsync-sdk>=0.1,<0.2") -> None:
        module = f"acme_{name}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(f"NAME = {spec!r}\n" + textwrap.dedent(code))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\nRequires-Dist: {requires}\n")
        (info / "entry_points.txt").write_text(f"[wsync_engine]\n{name} = {module}\n")

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def report(host: PluginHost, name: str) -> PluginReport:
    (found,) = [report for report in host.reports if report.distribution == f"acme-{name}"]
    return found


def test_an_installed_plugin_is_found_beside_our_own(install: Install) -> None:
    install("whole", WHOLE)

    host = PluginHost.load()

    assert report(host, "whole").sources == ("thing",)
    assert host.source_spec("postgres").name == "postgres"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no')", "its import failed"),
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("import os; os._exit(3)", "exit code 3"),
        ("from wsync_sdk import hookimpl\n@hookimpl\ndef wsync_sources(): raise KeyError('x')", "`wsync_sources` raised KeyError"),
        ("from wsync_sdk import hookimpl\n@hookimpl\ndef wsync_sources(): return 7", "gave a int"),
        ("from wsync_sdk import hookimpl\n@hookimpl\ndef wsync_sources(): return [7]", "gave a int instead of a SourceSpec"),
        ("from wsync_sdk import hookimpl\n@hookimpl\ndef wsync_sorces(): return []", "hooks are not those"),
        ("x = 1", "neither a source nor a sink"),
        (WHOLE.replace("name=NAME", "name='Not Good'"), "is not lower case"),
    ],
)
def test_a_broken_plugin_is_explained_and_every_other_works(install: Install, code: str, words: str) -> None:
    install("broken", code)

    host = PluginHost.load()

    assert words in report(host, "broken").reason
    assert report(host, "broken").next_step
    assert host.sink_spec("postgres").name == "postgres"


@pytest.mark.parametrize(
    ("requires", "lists", "words"),
    [
        ("wsync-sdk>=9", {}, "asks for wsync-sdk>=9"),
        ("wsync-sdk>=0.1", {"block": ["Acme_Early"]}, "blocked"),
        ("wsync-sdk>=0.1", {"allow": ["wsync-postgres"]}, "allow list"),
        ("wsync-sdk>>1", {}, "can't be read"),
    ],
)
def test_a_refused_plugin_is_never_imported(
    install: Install, tmp_path: Path, requires: str, lists: dict[str, list[str]], words: str
) -> None:
    install("early", f"open({str(tmp_path / 'imported')!r}, 'w').close()", requires=requires)

    assert words in report(PluginHost.load(**lists), "early").reason
    assert not (tmp_path / "imported").exists()


def test_of_two_plugins_with_one_name_both_stay_out_unless_one_is_allowed(install: Install) -> None:
    install("one", WHOLE)
    install("two", WHOLE)

    neither = PluginHost.load()
    with pytest.raises(ConfigError, match="no source plugin `thing`"):
        neither.source_spec("thing")
    assert "too" in report(neither, "one").reason
    assert PluginHost.load(allow=["acme-two"]).source_spec("thing").name == "thing"


def test_a_plugin_that_survived_its_first_import_is_not_tried_again(install: Install, tmp_path: Path) -> None:
    install("counted", f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\n" + WHOLE)

    PluginHost.load(tried=tmp_path / "tried.json")
    sys.modules.pop("acme_counted")
    PluginHost.load(tried=tmp_path / "tried.json")

    assert (tmp_path / "imports").read_text() == "xxx"


def test_an_unknown_plugin_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        PluginHost.load().source_spec("postgress")

    assert "`postgres`" in caught.value.next_step


def test_what_a_connector_leaks_names_the_plugin_and_no_value(install: Install) -> None:
    install("leaky", WHOLE)
    source = PluginHost.load().open_source("thing", {"password": "env:P"}, lambda reference: "x")

    with pytest.raises(PluginError, match=r"acme-leaky 1\.0: `check` raised RuntimeError") as caught:
        source.check()
    assert "4711" not in str(caught.value)
    batches = source.read(Split(index=0, token=b""))
    assert next(batches) == 1
    with pytest.raises(PluginError, match="`read` raised KeyError"):
        next(batches)


def test_a_secret_is_a_reference_resolved_at_each_use(install: Install) -> None:
    install("secret", WHOLE)
    answers = iter(["old", "new", "h"])
    config = {"password": "env:P", "headers": {"Authorization": "file:/t"}}
    source = PluginHost.load().open_source("thing", config, lambda reference: next(answers))

    held = source.config  # type: ignore[attr-defined]
    assert (held.password.reveal(), held.password.reveal(), held.headers["Authorization"].reveal()) == ("old", "new", "h")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"password": "hunter2"}, "`password`: secrets are references"),
        ({"password": "env:P", "headers": {"A": "hunter2"}}, r"`headers\.A`"),
        ({"password": "env:P", "inner": {"token": "hunter2"}}, "`token`: secrets"),
        ({"password": "env:P", "prot": 1}, "`prot` is not known"),
        ({}, "`password` is missing"),
        ({"password": "env:P", "port": "hunter2"}, "`port`"),
    ],
)
def test_a_wrong_config_is_one_error_that_names_the_field_and_no_value(install: Install, config: dict[str, object], words: str) -> None:
    install("config", WHOLE)

    with pytest.raises(ConfigError, match=words) as caught:
        PluginHost.load().open_source("thing", config, lambda reference: "x")
    assert "hunter2" not in str(caught.value) + caught.value.next_step


@pytest.mark.parametrize(
    ("config", "next_step"),
    [
        ({"password": "env:P", "prot": 1}, "did you mean `port`?"),
        ({"password": "env:P", "inner": {"token": "env:T", "tokn": 1}}, "did you mean `token`?"),
    ],
)
def test_a_setting_that_is_not_known_suggests_one_of_its_own_block(install: Install, config: dict[str, object], next_step: str) -> None:
    install("near", WHOLE)

    with pytest.raises(ConfigError, match="is not known") as caught:
        PluginHost.load().open_source("thing", config, lambda reference: "x")

    assert caught.value.next_step == next_step


def test_secret_references_are_found_wherever_they_are(install: Install) -> None:
    install("found", WHOLE)
    model = PluginHost.load().source_spec("thing").config_model

    found = secret_references(model, {"password": "env:A", "headers": {"x": "file:/b"}, "inner": {"token": "env:C"}})

    assert sorted(found) == ["env:A", "env:C", "file:/b"]


def test_listing_plugins_imports_no_driver() -> None:
    code = "import sys; from wsync_engine.plugins import PluginHost; PluginHost.load(); print([m for m in ('psycopg','urllib3','duckdb') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_check_report_passes_the_fence_unchanged(install: Install) -> None:
    install("fine", WHOLE.replace('raise RuntimeError("row value 4711 leaked")', "return CheckReport(findings=())"))

    assert PluginHost.load().open_source("thing", {"password": "env:P"}, lambda r: "x").check() == CheckReport(findings=())


SINK = """
from pydantic import BaseModel
from wsync_sdk import *
class Config(BaseModel):
    password: Secret
    can_tell: bool = True
class Caller(Sink):
    def check(self): return CheckReport(findings=())
    def streams(self): return []
    def write(self, chunk, token): ...
def operations(config): return frozenset({Operation.UPSERT}) if config.can_tell else 1 / 0
def stream(config, name): return StreamSpec(name=name, title="T", operations=operations(config), limits=StreamLimits())
@hookimpl
def wsync_sinks():
    return [SinkSpec(name=NAME, title="T", config_model=Config, factory=lambda config: Caller(), capabilities=SinkCapabilities(),
                     operations=operations, stream=stream)]
"""


def test_a_sink_may_call_public_addresses_and_those_the_installation_allows(install: Install) -> None:
    install("caller", SINK, spec="caller")
    host, config = PluginHost.load(), {"password": "env:P"}
    policy = AddressPolicy(allowed=(IPv4Network("10.0.0.0/8"),))

    assert host.open_sink("caller", config, lambda _: "x").network == AddressPolicy()
    assert host.open_sink("caller", config, lambda _: "x", network=policy).network == policy


def test_what_a_sink_can_do_is_told_without_opening_it_and_a_failure_is_fenced_off(install: Install) -> None:
    install("teller", SINK, spec="teller")
    host, config = PluginHost.load(), {"password": "env:P"}

    assert host.sink_operations("teller", config, lambda _: "x") == {Operation.UPSERT}
    with pytest.raises(PluginError, match="acme-teller"):
        host.sink_operations("teller", {**config, "can_tell": False}, lambda _: "x")
    assert host.sink_operations("postgres", {"url": "env:URL"}, lambda _: "x") is None


def test_a_stream_is_told_without_opening_the_sink_and_a_failure_is_fenced_off(install: Install) -> None:
    install("streamer", SINK, spec="streamer")
    host, config = PluginHost.load(), {"password": "env:P"}

    told = host.sink_stream("streamer", config, lambda _: "x", "people")

    assert told is not None
    assert told.name == "people"
    with pytest.raises(PluginError, match=r"acme-streamer 1\.0: `stream` raised ZeroDivisionError"):
        host.sink_stream("streamer", {**config, "can_tell": False}, lambda _: "x", "people")
    assert host.sink_stream("postgres", {"url": "env:URL"}, lambda _: "x", "people") is None
