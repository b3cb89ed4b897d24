"""The SDK's HTTP client stays the only place that knows an HTTP library; what it does on the wire is tested with plugins/http."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import wsync_sdk


def test_only_one_module_imports_the_http_library() -> None:
    package = Path(wsync_sdk.__file__).parent

    importing = {
        path.name for path in package.rglob("*.py") if re.search(r"^\s*(import|from) (httpcore|h11|ssl)", path.read_text(), re.MULTILINE)
    }

    assert importing == {"client.py"}


def test_the_contract_itself_needs_no_extra() -> None:
    program = "import sys, wsync_sdk\n[getattr(wsync_sdk, name) for name in wsync_sdk.__all__]\n"
    program += "print([name for name in sys.modules if name.startswith(('httpcore', 'h11', 'arro3', 'certifi'))])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
