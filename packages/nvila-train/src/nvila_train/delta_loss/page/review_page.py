"""One HTML page to look at before a subset is trusted; nothing in it is fetched from elsewhere.

For each source the histogram of scores and the cut, then samples from both ends and from around zero, with their
pictures: the eye tells at once whether the top is worth learning and the bottom faulty.
"""

import base64
import io
from collections.abc import Mapping
from html import escape

import numpy as np
from nvila_model import Image, Video
from nvila_model.inputs import Part, read_conversation
from PIL import Image as PILImage

from nvila_train.data.reader import plainly
from nvila_train.delta_loss.choices import By, Normalize
from nvila_train.delta_loss.page.histogram import histogram
from nvila_train.delta_loss.prune import Pruned, groups
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records

SHOWN = 6
"""Samples from each place."""
SIDE = 224
"""Largest side of an embedded picture in pixels."""
FRAMES = 4
"""Frames that stand for a clip."""
MOST_GROUPS = 12
"""Sources that get a histogram; the largest come first."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --soft: #8886; --kept: #2a78c8; --cut: #c83c2a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e8; --paper: #17171a; --kept: #6cb0f4; --cut: #ff8a75 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
th { padding-right: 1rem; text-align: left }
svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--ink) }
.all { fill: var(--soft) }
.kept { fill: var(--kept) }
.zero { stroke: var(--ink); stroke-dasharray: 3 3 }
.cut { stroke: var(--cut); stroke-width: 2 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
.card { border: 1px solid var(--soft); border-radius: .4rem; padding: .7rem; overflow-wrap: anywhere }
.card.stays { border-color: var(--kept) }
.card img { max-width: 100%; max-height: 14rem; margin: 0 .2rem .2rem 0 }
.card p { margin: .2rem 0; white-space: pre-line }
.user { opacity: .75 }
"""


def page(
    scores: Scores, pruned: Pruned, records: Records, *, by: By, normalize: Normalize, settings: Mapping[str, str]
) -> str:
    """The page of a pruned table of scores.

    Args:
        records: what was scored; pictures are read from it.
        by, normalize: as given to ``prune``.
        settings: names and values for the head of the page.
    """
    delta = scores.delta(normalize)
    head = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in settings.items())
    sections = [f"<h1>{int(pruned.kept.sum())} of {len(scores)} samples stay</h1><table>{head}</table>"]
    found = sorted(groups(scores, by).items(), key=lambda item: -len(item[1]))
    for name, places in found[:MOST_GROUPS]:
        stay = int(pruned.kept[places].sum())
        sections.append(f"<h2>{escape(name)}: {stay} of {len(places)}</h2>")
        sections.append(histogram(delta[places], pruned.kept[places], cut=pruned.cuts.get(name)))
    if len(found) > MOST_GROUPS:
        sections.append(f"<p>{len(found) - MOST_GROUPS} smaller sources are not drawn.</p>")
    for title, places in examples(delta).items():
        cards = "".join(_card(scores, pruned, records, delta, int(place)) for place in places)
        sections.append(f'<h2>{title}</h2><div class="cards">{cards}</div>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>DeltaLoss</title><style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def examples(delta: np.ndarray) -> dict[str, np.ndarray]:
    """Places of the samples that are shown, by title; a sample stands under the first title that it fits."""
    order = np.argsort(-delta, kind="stable")
    wanted = {
        "Highest: the large model knows, the small one does not": order,
        "Lowest: the small model does better": order[::-1],
        "Around zero: both do equally well, or badly": np.argsort(np.abs(delta), kind="stable"),
    }
    used: set[int] = set()
    shown: dict[str, np.ndarray] = {}
    for title, places in wanted.items():
        fresh = [int(place) for place in places if int(place) not in used][:SHOWN]
        used.update(fresh)
        shown[title] = np.array(fresh, dtype=np.int64)
    return {title: places for title, places in shown.items() if len(places)}


def _card(scores: Scores, pruned: Pruned, records: Records, delta: np.ndarray, place: int) -> str:
    row = int(scores.row[place])
    stays = bool(pruned.kept[place])
    totals = f"large {scores.large[place]:.2f}, small {scores.small[place]:.2f}"
    words = f"row {records.number(row)}, {scores.source[place]}: {'stays' if stays else 'goes'}"
    parts = [f'<p class="score"><b>{delta[place]:+.3f}</b> ({totals})<br>{escape(words)}</p>']
    for turn in read_conversation(records.messages(row)):
        for part in turn.parts:
            parts.append(f'<p class="{turn.role}">{escape(part)}</p>' if isinstance(part, str) else _pictures(part))
    return f'<div class="card{" stays" if stays else ""}">{"".join(parts)}</div>'


def _pictures(part: Part) -> str:
    """A picture, or some frames of a clip; what cannot be read is said in its place."""
    assert isinstance(part, Image | Video)
    try:
        found = [part.load()] if isinstance(part, Image) else part.load(num_frames=FRAMES).frames
    except Exception as error:
        return f"<p><i>{escape(plainly(error))}</i></p>"
    return "".join(f'<img alt="" src="{_embedded(picture)}">' for picture in found)


def _embedded(picture: PILImage.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    small.save(sink, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
