"""What the engine sees before anything connects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wsync_http import plugin
from wsync_http.config import HttpConfig
from wsync_sdk import Operation, Secret

URL = "https://api.example.com/v1"


def test_importing_the_plugin_imports_no_http_library() -> None:
    program = (
        "import sys, wsync_http.plugin as plugin; plugin.wsync_sinks()\n"
        "print([name for name in sys.modules if name.startswith(('httpcore', 'h11', 'arro3', 'certifi', 'ssl', 'http.client'))])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_factory_makes_a_sink_without_connecting() -> None:
    (spec,) = plugin.wsync_sinks()

    assert spec.name == "http"
    spec.factory(HttpConfig(url="https://nowhere.invalid/x")).close()


def test_what_can_be_done_is_told_without_connecting() -> None:
    (spec,) = plugin.wsync_sinks()
    assert spec.operations is not None

    assert spec.operations(HttpConfig(url=URL)) == {Operation.UPSERT}
    assert spec.operations(HttpConfig.model_validate({"url": URL, "op_field": "op"})) == set(Operation)
    assert spec.operations(HttpConfig.model_validate({"url": URL, "delete": {"url": URL + "/{id}"}})) == set(Operation)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"url": "ftp://api.example.com"}, "https://host/path"),
    ({"url": "https:///path"}, "https://host/path"),
    ({"url": "https://user:pass@api.example.com"}, "secret_headers"),
    ({"url": "https://{stream}.example.com"}, "host"),
    ({"url": URL + "/{id}"}, "format: object"),
    ({"url": URL + "/{}"}, "braces"),
    ({"url": URL + "/{stream!r}"}, "braces"),
    ({"url": URL + "/{stream"}, ""),
    ({"url": URL + "/a b"}, "percent-encode"),
    ({"url": URL + "#top"}, "fragment"),
    ({"url": "https://api.example.com:99999/"}, ""),
    ({"url": URL, "method": "GET"}, ""),
    ({"url": URL, "format": "none"}, "deletes"),
    ({"url": URL, "format": "ndjson", "wrap": "x"}, "array"),
    ({"url": URL, "op_field": "op", "delete": {"url": URL}}, "not both"),
    ({"url": URL, "headers": {"X Y": "1"}}, "name"),
    ({"url": URL, "headers": {"X-A": "1\r\nX-B: 2"}}, "can't hold"),
    ({"url": URL, "headers": {"X-A": "日本"}}, "can't hold"),
    ({"url": URL, "headers": {"Host": "other"}}, "itself"),
    ({"url": URL, "headers": {"Transfer-Encoding": "chunked"}}, "itself"),
    ({"url": URL, "headers": {"Authorization": "Bearer x"}}, "secret_headers"),
    ({"url": URL, "headers": {"x-a": "1", "X-A": "2"}}, "twice"),
    ({"url": URL, "headers": {"idempotency-key": "1"}}, "twice"),
    ({"url": URL, "success": [600]}, "status"),
    ({"url": URL, "success": ["2x"]}, "status"),
    ({"url": URL, "results": {"items": "results", "accepted": {"at": "/ok"}}}, "pointer"),
    ({"url": URL, "results": {"items": "/r~2", "accepted": {"at": "/ok"}}}, "pointer"),
    ({"url": URL, "results": {"items": "/r"}}, "accepted"),
    ({"url": URL, "results": {"items": "/r", "lists": "errors"}}, "index"),
    ({"url": URL, "results": {"items": "/r", "accepted": {"at": "/ok"}, "when_missing": "accept"}}, "errors"),
    ({"url": URL, "check": {"url": URL + "/{stream}"}}, "template"),
    ({"url": URL, "check": {"url": URL, "method": "POST"}}, ""),
    ({"url": URL, "verify": False}, ""),
]


@pytest.mark.parametrize(("config", "words"), WRONG)
def test_a_wrong_config_is_refused_in_words(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpConfig.model_validate(config)

    assert words in str(caught.value)


def test_secrets_are_never_shown() -> None:
    config = HttpConfig.model_validate({"url": URL, "secret_headers": {"Authorization": Secret("Bearer hunter2")}})

    assert "hunter2" not in f"{config!r} {config.model_dump()} {config.model_dump_json()}"


def test_every_setting_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()

    assert [name for name in HttpConfig.model_fields if f"`{name}`" not in readme] == []
