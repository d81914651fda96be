"""How commands print: a result as JSON where --json asks for it, else as text for people."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def emit(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print ``result`` as one JSON object, or ``text``."""
    typer.echo(json.dumps(result, ensure_ascii=False, indent=2) if as_json else text)


def columns(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns: a name, what it is."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
