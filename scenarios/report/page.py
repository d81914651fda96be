"""The report's page: skeleton, style, script and escaping. What it shows is decided in report.

One file that works offline: plotly's script is inlined from the installed package. Scripts run
only where their hash stands in the page's content security policy, so that text which slipped
through the escaping would still be inert.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

Figure = Mapping[str, Any]  # {"data": [...], "layout": {...}} as plotly.js takes it

_HERE: Final = Path(__file__).parent
STYLE: Final = (_HERE / "report.css").read_text("utf-8")
SCRIPT: Final = (_HERE / "report.js").read_text("utf-8")


def text(value: object) -> str:
    """``value`` as text that HTML shows and never obeys, in content and in quoted attributes."""
    return html.escape(str(value), quote=True)


def label(value: object) -> str:
    """``value`` for a plotly label: plotly obeys a little HTML there (links too), and entities."""
    return html.escape(str(value), quote=False)


def page(*, title: str, body: str, figures: Mapping[str, Figure]) -> str:
    """The whole document. ``body``: HTML whose every foreign string went through ``text``."""
    library = _plotly()
    allowed = " ".join(_hash(script) for script in (library, SCRIPT))
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}</main>\n"
        f'<script type="application/json" id="figures">{_inert_json(figures)}</script>\n'
        f"<script>{library}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _inert_json(value: object) -> str:
    """JSON that cannot end the script element which carries it."""
    encoded = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    # Found without importing plotly, which would cost half a second for one path.
    from importlib.util import find_spec

    spec = find_spec("plotly")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
