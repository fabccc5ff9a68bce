import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

from singer_hf.diagnosis import Picture, Section, render_report  # noqa: E402
from singer_hf.diagnosis.table import Table  # noqa: E402

EVIL = "<script>alert(\"x\")</script> & 'quotes'"


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def rendered():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    table = Table(EVIL, ["a", EVIL], [[EVIL, "1"], ["(paper, like a run)", "2"]], EVIL, [["paper", "3"]])
    section = Section(EVIL, [EVIL], [table], [Picture("p", figure, EVIL)])
    return render_report(EVIL, EVIL, [section], facts={EVIL: EVIL}, verdict="artifacts")


def test_every_string_is_escaped():
    html = rendered()
    assert "<script" not in html
    parser = Collector()
    parser.feed(html)
    assert parser.open == []
    assert sum(EVIL in text for text in parser.text) >= 8
    (image,) = [attributes for tag, attributes in parser.tags if tag == "img"]
    assert image["alt"] == EVIL


def test_it_needs_no_other_file():
    html = rendered()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html) and "@import" not in html and "url(" not in html
    (encoded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    with Image.open(BytesIO(base64.b64decode(encoded))) as picture:
        assert picture.size == (320, 160)


def test_the_papers_rows_are_marked():
    assert rendered().count('<tr class="paper">') == 1
