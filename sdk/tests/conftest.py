"""Makes the reference connectors importable by name: another process has to find them too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
