"""Writes the pictures of the README: what gsocks is, and `gsocks --live` at work.

    python -m release.pictures

The screen is drawn by the code of `--live` itself, from a state that is always the same, as text
(docs/live.txt) and as SVG (docs/live.svg).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from gsocks.cli.live import picture

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 100, 18

_LOG = (
    "2026-01-31T12:00:00.123Z warning gsocks.rotation: exit paris-2 (http://u:***@10.0.0.12:3128)"
    " is ejected for 20 s: Connection refused",
    "2026-01-31T12:00:01.501Z info gsocks.access: id=c1a2-17 inbound=local dest=example.com:443"
    " exit=berlin-1 outcome=ok",
)

_BOX = '<rect x="{x}" y="24" width="150" height="56" rx="8" fill="{fill}" stroke="#345"/>'
_WORDS = '<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'
_ARROW = '<path d="M{x} 52h{length}" stroke="#345" stroke-width="{w}" marker-end="url(#a)"/>'


def overview() -> str:
    """Programs, local end, server and destinations, as SVG."""
    boxes = (
        (75, "#eef", "your programs", "browser, curl, Scrapy"),
        (305, "#def", "gsocks local", "SOCKS5, SOCKS4, HTTP"),
        (575, "#def", "gsocks server", "rules, DNS"),
        (805, "#eef", "the web", "with its address"),
    )
    parts = [_BOX.format(x=x - 75, fill=fill) for x, fill, *_ in boxes]
    for x, _, name, more in boxes:
        parts.append(_WORDS.format(x=x, y=48, text=name))
        parts.append(f'<g font-size="11">{_WORDS.format(x=x, y=66, text=more)}</g>')
    arrows = ((150, 74, 2, ""), (380, 114, 6, "tunnels, ready"), (650, 74, 2, ""))
    for x, length, weight, text in arrows:
        parts.append(_ARROW.format(x=x, length=length, w=weight))
        if text:
            parts.append(
                f'<g font-size="11">{_WORDS.format(x=x + 57, y=38, text=text)}'
                f"{_WORDS.format(x=x + 57, y=74, text='NaCl, TLS, WebSocket')}</g>"
            )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 8 892 90" width="892" height="90"'
        ' font-family="sans-serif" font-size="14" role="img">\n'
        "<title>Programs speak SOCKS5 or HTTP to gsocks local, which goes out by tunnels that are"
        " opened ahead of need, through a gsocks server</title>\n"
        '<defs><marker id="a" markerWidth="4" markerHeight="4" refX="2" refY="2" orient="auto">'
        '<path d="M0 0L4 2L0 4z" fill="#345"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _exit(name: str, label: str, country: str, state: str, **more: Any) -> dict[str, Any]:
    described = {"address": None, "back_in": 0.0, "open": 0, "connected": 0, "failed": 0}
    return {
        **described, "up": 0, "down": 0, "connect_seconds": None, "last_error": "",
        "name": name, "label": label, "country": country, "state": state, **more,
    }  # fmt: skip


def screen() -> Console:
    """A console that has recorded the screen."""
    exits = [
        _exit("berlin-1", "socks5://10.0.0.7:1080", "de", "ok", open=12, connected=4211,
              connect_seconds=0.041, down=812_000_000),
        _exit("berlin-2", "socks5://10.0.0.8:1080", "de", "ok", open=9, connected=3954,
              connect_seconds=0.047, down=640_000_000),
        _exit("paris-2", "http://u:***@10.0.0.12:3128", "fr", "ejected", back_in=17.0, failed=31,
              last_error="Connection refused"),
        _exit("home", "gsocks://vps.example.com:8388", "nl", "ok", open=3, connected=120,
              connect_seconds=0.019, down=99_000_000),
    ]  # fmt: skip
    inbound = {"listen": ["127.0.0.1:1080"], "connections": 24, "outcomes": {"ok": 8285}}
    state = {
        "workers": 2,
        "loop": {"turns": [90, 98, 99, 100, 100, 100, 100, 100, 100], "longest": 0.021},
        "inbounds": {"local": {**inbound, "up": 91_000_000, "down": 1_551_000_000}},
        "exits": exits,
        "exit_counts": {"local": len(exits)},
        "exit_states": {"ok": 3, "ejected": 1},
        "sessions": {"local": 17},
    }
    console = Console(
        width=WIDTH, height=HEIGHT, record=True, file=io.StringIO(), color_system=None
    )
    console.print(picture(state, 61.4, _LOG, HEIGHT, WIDTH))
    return console


def contents() -> dict[str, str]:
    """Each file's text, by its path."""
    console = screen()
    text = "\n".join(line.rstrip() for line in console.export_text(clear=False).splitlines())
    drawn = console.export_svg(title="gsocks -c gateway.yaml --live", unique_id="gsocks-live")
    return {
        "docs/picture.svg": overview(),
        "docs/live.txt": text + "\n",
        "docs/live.svg": "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n",
    }


def main() -> None:
    """Write them."""
    for name, text in contents().items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
