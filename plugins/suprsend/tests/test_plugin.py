"""What the engine sees before anything connects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from wsync_sdk import Secret
from wsync_suprsend import plugin
from wsync_suprsend.config import SuprSendConfig

KEYS: dict[str, Any] = {"workspace_key": "acme", "workspace_secret": "hunter2"}


def test_importing_the_plugin_imports_no_http_library() -> None:
    program = (
        "import sys, wsync_suprsend.plugin as plugin; plugin.wsync_sinks()\n"
        "print([name for name in sys.modules if name.startswith(('httpcore', 'h11', 'arro3', 'certifi', 'ssl', 'http.client'))])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_factory_makes_a_sink_without_connecting() -> None:
    (spec,) = plugin.wsync_sinks()

    assert spec.name == "suprsend"
    spec.factory(SuprSendConfig.model_validate({**KEYS, "base_url": "https://nowhere.invalid"})).close()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "none of them is set"),
    ({"workspace_key": "acme"}, "`workspace_key` is set"),
    ({"api_key": "x"}, "`api_key` is set"),
    ({**KEYS, "api_key": "x"}, "`api_key` and `workspace_key` and `workspace_secret` are set"),
    ({**KEYS, "workspace_uid": "x"}, "set `workspace_key` and `workspace_secret`, or"),
    ({**KEYS, "workspace_key": " acme"}, "printable ASCII"),
    ({**KEYS, "workspace_key": "ac:me"}, "colon"),
    ({**KEYS, "workspace_key": "a\r\nb"}, "printable ASCII"),
    ({**KEYS, "base_url": "hub.suprsend.com"}, "https://host"),
    ({**KEYS, "base_url": "https://user:pass@hub.suprsend.com"}, "credentials belong"),
    ({**KEYS, "base_url": "https://hub.suprsend.com/?a=b"}, "no query"),
    ({**KEYS, "base_url": "https://hub.suprsend.com:99999"}, ""),
    ({**KEYS, "profiles": {"on_delete": "drop"}}, "unset_channels"),
    ({**KEYS, "limits": {"max_rows": 401}}, "400"),
    ({**KEYS, "limits": {"concurrency": 0}}, ""),
    ({**KEYS, "lists": {"max_rows": 10_001}}, "10000"),
    ({**KEYS, "timeout_s": 0}, ""),
    ({**KEYS, "verify": False}, ""),
]


@pytest.mark.parametrize(("config", "words"), WRONG)
def test_a_wrong_config_is_one_error_in_words(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SuprSendConfig.model_validate(config)

    assert words in str(caught.value)
    assert len(caught.value.errors()) == 1


def test_secrets_are_never_shown() -> None:
    config = SuprSendConfig.model_validate({**KEYS, "workspace_secret": Secret("hunter2")})

    assert "hunter2" not in f"{config!r} {config.model_dump()} {config.model_dump_json()}"


def settings(model: type[BaseModel], group: str = "") -> list[str]:
    """Every setting, those of a group with its name before."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        is_group = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += settings(inner, f"{name}.") if is_group else [f"{group}{name}"]
    return found


def test_every_setting_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()

    assert [name for name in settings(SuprSendConfig) if f"`{name}`" not in readme] == []
