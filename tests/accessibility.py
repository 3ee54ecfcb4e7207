"""Accessibility checks of pages in a real browser: axe-core's rules, and checks that they lack."""

from __future__ import annotations

import json
from typing import Any

SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
# Material for MkDocs adds an unnamed navigation element to each code block; screen readers read its buttons.
OPTIONS: dict[str, Any] = {"resultTypes": ["violations"], "rules": {"landmark-unique": {"enabled": False}}}
# Glyphs do not fill their box: labels whose boxes overlap by a pixel or two are still readable.
OVERLAPS = """Array.from(document.querySelectorAll('svg')).flatMap(chart => {
    const box = label => [label.textContent, label.getBoundingClientRect()];
    const labels = Array.from(chart.querySelectorAll('text.tick'), box);
    return labels.flatMap(([one, a], at) => labels.slice(at + 1)
        .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
        .map(([other]) => `${one} / ${other}`));
})"""


def overlaps(page: Any) -> list[str]:
    """Return the pairs of labels of a chart that cover each other."""
    found: list[str] = page.evaluate(OVERLAPS)
    return found


def violations(page: Any) -> list[str]:
    """Return axe-core's findings on a page, elements that are too wide, and overlapping chart labels.

    Checked in light and dark mode, at phone and desktop width.
    """
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for name, size in SIZES.items():
        for scheme in ("light", "dark"):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            page.reload()
            page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{name}, {scheme}: wider than the screen")
            found += [f"{name}, {scheme}: labels overlap: {pair}" for pair in overlaps(page)]
            for rule in Axe().run(page, options=OPTIONS).response["violations"]:
                nodes = [node["html"][:200] for node in rule["nodes"][:3]]
                found.append(f"{name}, {scheme}: {rule['id']}: {rule['help']}: {json.dumps(nodes)}")
    return found
