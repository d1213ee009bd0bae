"""Check a built site: every link inside it leads somewhere, and no page fetches anything from elsewhere.

In: the folder of the site. Out: a line a fault and exit code 1, or how many links were followed. Links to other sites
are passed by: whether they still lead somewhere is not for a check without a network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# By tag, the attribute that has a browser fetch something while it shows the page.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


@dataclass
class Page:
    """What a page offers and wants: its anchors, its links, what a browser fetches for it."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Collects the parts of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what a tag names."""
        given = {name: value or "" for name, value in attrs}
        self.page.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.page.links.append(given["href"])
        elif (wanted := FETCHED.get(tag)) in given:
            self.page.fetched.append(given[wanted])


def read_page(file: Path) -> Page:
    """Read one page."""
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.page


def faults(site: Path) -> tuple[list[str], int]:
    """Give the faults of a site, and how many links were followed."""
    pages = {file.resolve(): read_page(file) for file in sorted(site.rglob("*.html"))}
    found: list[str] = []
    num_followed = 0
    for file, page in pages.items():
        found += [f"{file}: fetches {url}" for url in page.fetched if urlsplit(url).netloc]
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            num_followed += 1
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                found.append(f"{file}: {link} is not there")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                found.append(f"{file}: {link} has no such anchor")
    return found, num_followed


def main() -> None:
    """Check the site given."""
    site = Path(sys.argv[1])
    found, num_followed = faults(site)
    if found or not num_followed:
        sys.exit("\n".join(found) or f"{site}: no links, so no site")
    print(
        f"{num_followed:,} links inside the site lead somewhere; nothing is fetched from elsewhere"
    )


if __name__ == "__main__":
    main()
