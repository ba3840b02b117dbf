from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """Every tag closed in order; no script, no handler, nothing from elsewhere."""

    EMPTY = {"meta", "img", "line", "circle", "polyline", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.images = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        assert tag not in ("script", "iframe", "object", "link", "base", "form")
        assert not [key for key in values if key.startswith("on")]
        assert values.get("src", "data:").startswith("data:image/") or "src" not in values
        assert "href" not in values
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture
def parse():
    """Parse a page or fragment strictly; the result has its text, tags and images."""
    return Page
