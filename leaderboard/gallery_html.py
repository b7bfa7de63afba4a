"""A gallery as one HTML page that needs nothing but itself, and in which no script can run.

Captions and names are escaped by the template engine, and the page's own policy allows one style sheet and embedded
pictures, and no script at all. The pictures were made anew from pixels.
"""

from __future__ import annotations

from petlbench.harness.gallery import Gallery
from petlbench.harness.gallery_choose import Way
from petlbench.leaderboard.html_parts import embedded, render_page

HEADINGS: dict[Way, str] = {
    "i2t": "Image to text: which caption belongs to the picture?",
    "t2i": "Text to image: which picture does the caption describe?",
}
MARKS = {
    "hit": ("✓", "right answer"),
    "duplicate": (
        "=",
        "duplicate: a caption with the same string as a right one, or a picture that owns the string too",
    ),
}
"""Mark of an answer to its sign and meaning."""


def render_gallery(gallery: Gallery) -> str:
    """The whole page; equal galleries give equal text."""
    sections = [
        (heading, [question for question in gallery.questions if question.way == way])
        for way, heading in HEADINGS.items()
    ]
    return render_page(
        "gallery",
        gallery=gallery,
        sections=[(heading, questions) for heading, questions in sections if questions],
        pictures={place: embedded("image/jpeg", jpeg) for place, jpeg in gallery.thumbnails.items()},
        marks=MARKS,
    )
