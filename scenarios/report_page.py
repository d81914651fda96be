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

STYLE: Final = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dfe4ea; --wash: #f6f8fa; --good: #1a7f4b;
  --bad: #b3261e; --accent: #0b5fa5; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 26px; margin: 0 0 2px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 34px 0 8px; }
p { margin: 6px 0; } .soft { color: var(--soft); } small { font-size: 12.5px; }
.verdict { margin: 16px 0 18px; padding: 12px 16px; border-left: 4px solid var(--good);
  background: #f0f8f3; font-size: 16px; }
.verdict.bad { border-color: var(--bad); background: #fdf2f1; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px;
  margin: 0; padding: 0; list-style: none; }
.facts li { padding: 8px 12px; border: 1px solid var(--line); border-radius: 6px; }
.facts b { display: block; font-size: 16px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 7px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line);
  vertical-align: bottom; }
th.l, td.l { text-align: left; } td.wrap { white-space: normal; }
td small { color: var(--soft); display: block; line-height: 1.25; }
tbody tr:hover { background: var(--wash); }
th.group { text-align: center; }
tr.sum td { border-top: 2px solid var(--line); font-weight: 600; }
.ok { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
.figure { width: 100%; height: 340px; margin: 4px 0; break-inside: avoid; }
.figure.tall { height: 430px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 20px; }
@media (max-width: 820px) { .pair { grid-template-columns: 1fr; } }
footer { margin-top: 36px; padding-top: 10px; border-top: 1px solid var(--line);
  color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  table { font-size: 10.5px; } th, td { padding: 3px 5px; white-space: normal; }
  tr, .verdict, .facts { break-inside: avoid; } }
"""

# Draws each figure of the data block into the element that bears its name.
SCRIPT: Final = """
(function () {
  var figures = JSON.parse(document.getElementById("figures").textContent);
  Object.keys(figures).forEach(function (name) {
    var figure = figures[name];
    Plotly.newPlot(name, figure.data, figure.layout,
      { responsive: true, displaylogo: false, displayModeBar: false });
  });
  window.addEventListener("beforeprint", function () {
    Object.keys(figures).forEach(function (name) { Plotly.Plots.resize(name); });
  });
})();
"""


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
