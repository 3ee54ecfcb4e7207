"""Accessibility of pages: the rules of axe-core, in a real browser."""

from __future__ import annotations

import json
from typing import Any

SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
# Material for MkDocs adds a navigation without a name beside each block of code; a screen reader reads its buttons.
OPTIONS: dict[str, Any] = {"resultTypes": ["violations"], "rules": {"landmark-unique": {"enabled": False}}}


def violations(page: Any) -> list[str]:
    """Return what axe-core finds on a page, and where it is too wide: light and dark, on a phone and on a desk."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for name, size in SIZES.items():
        for scheme in ("light", "dark"):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            page.reload()
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{name}, {scheme}: wider than the screen")
            for rule in Axe().run(page, options=OPTIONS).response["violations"]:
                nodes = [node["html"][:200] for node in rule["nodes"][:3]]
                found.append(f"{name}, {scheme}: {rule['id']}: {rule['help']}: {json.dumps(nodes)}")
    return found
