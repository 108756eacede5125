"""What all pages of the admin listener have in common: the style, a policy that allows nothing else, the head with its
links, and the foot."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from typing import Final

from starlette.responses import Response

from unjam import __version__

DEFAULT_REFRESH: Final = 2
MAX_REFRESH: Final = 3600

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2330;--dim:#667085;--line:#e3e7ee;--fast:#2f7de1;
--heavy:#7a4fd0;--ours:#2a9d8f;--others:#d9822b;--free:#e6eaf1;--ok:#177a4b;--okbg:#dff5e8;--warn:#8a5a00;--warnbg:#fdf0d0;--bad:#b3261e;--badbg:#fde3e1}
@media(prefers-color-scheme:dark){:root{--bg:#11151c;--card:#1a202a;--ink:#e6eaf2;--dim:#93a0b4;--line:#2a3240;
--fast:#5a9cf2;--heavy:#a583ee;--ours:#3fb8a8;--others:#e59a4c;--free:#2a3240;--ok:#6fd6a0;--okbg:#153425;--warn:#f0c060;--warnbg:#3a2e10;--bad:#ff8f86;
--badbg:#44201d}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{display:flex;flex-wrap:wrap;align-items:center;gap:10px 18px;padding-top:22px;padding-bottom:6px}
h1{font-size:20px;margin:0;letter-spacing:-.01em}h2{font-size:16px;margin:0}h3{font-size:13px;margin:0;font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:16px 0;overflow:hidden}
.head{display:flex;flex-wrap:wrap;align-items:center;gap:6px 14px;padding:12px 16px;border-bottom:1px solid var(--line)}
.version{padding:10px 16px 14px}.version+.version{border-top:1px solid var(--line)}
.row{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;margin-bottom:6px}
.dim{color:var(--dim)}.push{margin-left:auto}.num{font-variant-numeric:tabular-nums}
.pill{display:inline-block;border-radius:10px;padding:1px 9px;font-size:12px;font-weight:600;overflow-wrap:anywhere}
.ok{color:var(--ok);background:var(--okbg)}.warn{color:var(--warn);background:var(--warnbg)}
.note{color:var(--ink);background:var(--free);font-weight:500}
.bad{color:var(--bad);background:var(--badbg)}
table{width:100%;border-collapse:collapse}th{font-weight:500;color:var(--dim);text-align:left;font-size:12px}
th,td{padding:4px 10px 4px 0;vertical-align:middle}td.url{font-family:ui-monospace,monospace;font-size:12.5px;
overflow-wrap:anywhere}.bar{width:34%}td.n,th.n{text-align:right;white-space:nowrap}
svg{display:block;width:100%;height:10px;border-radius:5px}.free{fill:var(--free)}.fast{fill:var(--fast)}
.heavy{fill:var(--heavy)}.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.ours{fill:var(--ours)}.others{fill:var(--others)}.ko{background:var(--ours)}.kx{background:var(--others)}
small{display:block;color:var(--dim);font:11.5px/1.35 system-ui,sans-serif}svg+small{margin-top:2px}
.kf{background:var(--fast)}.kh{background:var(--heavy)}.ke{background:var(--free)}
.e{table-layout:fixed}.e .n{width:11%}.e .s{width:22%}td.n{padding-right:18px}th.n{padding-right:18px}
.l .bar{width:14%}.l .n{width:8%}.l .f{width:9.5%}.l .s{width:22%}td .pill{margin:1px 0}
.facts{font-size:12.5px;margin-top:-2px}.gauge{display:inline-flex;align-items:center;gap:6px;white-space:nowrap}
.gauge svg{width:70px;height:7px}.near{fill:var(--others)}
.steps{display:flex;flex-wrap:wrap;gap:2px 0;list-style:none;margin:0;padding:0;font-size:12px}
.steps li{display:flex;align-items:center;color:var(--dim)}
.steps li::before{content:"";width:9px;height:9px;border-radius:50%;border:2px solid var(--dim);margin-right:5px}
.steps li+li{margin-left:7px}
.steps li+li::after{content:"";order:-1;width:14px;height:2px;background:var(--line);margin-right:7px}
.steps .done::before,.steps .here::before{background:var(--fast);border-color:var(--fast)}
.steps .here{color:var(--ink);font-weight:600}.steps .here::before{box-shadow:0 0 0 3px var(--free)}
nav{display:flex;gap:2px}nav a,.tabs a{padding:2px 9px;border-radius:8px;color:var(--dim)}
nav a[aria-current],.tabs a[aria-current]{background:var(--free);color:var(--ink);font-weight:600}
.tabs{display:inline-flex;flex-wrap:wrap;font-size:12.5px}p.tabs{margin:8px 0 0 -9px}
.busy{color:var(--fast);background:var(--free)}.id{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
code{font:12.5px ui-monospace,monospace;overflow-wrap:anywhere}
.r td{vertical-align:top;overflow-wrap:anywhere}.f{width:auto}.f th{padding-right:24px;vertical-align:top}
.r .pill{white-space:nowrap}.f td{overflow-wrap:anywhere}.f th{white-space:nowrap}
.v .n{width:70px}.v .t{width:210px}.v time{white-space:nowrap}
.c{table-layout:fixed}.c td{vertical-align:top;overflow-wrap:anywhere}.c .w{width:90px}.c .o{width:118px}
.c .x{width:12%}.c .y{width:30%}
@media(max-width:720px){.c .a,.r .a,.v .a{display:none}.r{table-layout:fixed}.r .w{width:27%}.r .z{width:21%}
.r td.n{white-space:normal}.c .w{width:76px}.c .x{width:22%}.v .n{width:56px}.v .t{width:110px}}
@media(max-width:720px){.e .a,.e .bar{display:none}.e .n{width:22%}.e .s{width:34%}.l .n{width:15.5%}.l .s{width:30%}
.l td,.l th{padding-right:8px}th.f{white-space:normal}}
a{color:var(--fast);text-decoration:none}a:hover{text-decoration:underline}
footer{padding-top:4px;padding-bottom:30px;color:var(--dim);font-size:12.5px}
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CSP = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def parse_refresh(text: str | None, default: int = DEFAULT_REFRESH) -> int:
    """Seconds between refreshes from the query; 0: never. What is no number gives the default."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 4):
        return default
    return min(int(text), MAX_REFRESH)


def begin(title: str, refresh: int, facts: Iterable[str], runs: bool, here: str = "") -> str:
    """Everything above the page's own. `title`: as text, of the window; `refresh`: seconds, 0 for never; `facts`: HTML,
    beside the name; `runs`: there are pages of runs to go to; `here`: path of the page among those in the head."""
    links = ""
    if runs:
        for path, name in (("/", "traffic"), ("/runs", "runs"), ("/runs/dead", "dead letters")):
            current = ' aria-current="page"' if path == here else ""
            links += f'<a href="{path}"{current}>{name}</a>'
        links = f"<nav>{links}</nav>"
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"{again}<style>{_STYLE}</style></head><body><header><h1>unjam</h1>{links}{''.join(facts)}</header><main>"
    )


def end(refresh: int, pause: str, again: str) -> str:
    """`pause`, `again`: addresses of the same page without refreshing, and with."""
    if refresh:
        words = f"refreshes every {refresh} s · <a href='{escape(pause)}'>pause</a>"
    else:
        words = f"<a href='{escape(again)}'>refresh</a>"
    return (
        f"</main><footer>unjam {escape(__version__)} · {words} · <a href='/api/state'>state</a> · "
        "<a href='/api/active'>running requests</a> · <a href='/metrics'>metrics</a></footer></body></html>"
    )


def answer(html: str, status: int = 200) -> Response:
    return Response(html, status, media_type="text/html", headers={"content-security-policy": CSP})
