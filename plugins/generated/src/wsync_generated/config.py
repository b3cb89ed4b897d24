"""What a connection to nothing is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["CountingConfig", "GeneratedConfig"]


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("give the folder's whole path, from / on")
    return path


class GeneratedConfig(BaseModel):
    """How many rows there are, and how many of them a new revision changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(ge=0, le=10**12, description="How many rows there are.")
    revision: int = Field(default=0, ge=0, le=10**6, description="Raise it, and some rows have another score.")
    changed_percent: float = Field(default=1.0, ge=0, le=100, description="How many of them, in percent.")


class CountingConfig(BaseModel):
    """Where is counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Annotated[Path, AfterValidator(_absolute)] = Field(
        description="Folder of the files that tell what was sent; made when missing."
    )
    max_rows: int = Field(default=10_000, ge=1, le=1_000_000, description="Most rows in a call.")
