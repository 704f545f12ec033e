"""Charts: bars standing or lying, lines and pies, with values printed or read from an axis."""

from random import Random

from nvila_train.nano.drawing.canvas import Canvas, picture_size
from nvila_train.nano.drawing.charts.bars import lying_bars, standing_bars
from nvila_train.nano.drawing.charts.line_charts import line_chart
from nvila_train.nano.drawing.charts.pies import pie
from nvila_train.nano.drawing.fonts import Split
from nvila_train.nano.drawing.question_text import keep
from nvila_train.nano.drawing.scene import Scene

MAKERS = {"bars": standing_bars, "lying bars": lying_bars, "line": line_chart, "pie": pie}


def draw_chart(rng: Random, split: Split, variety: str | None = None) -> Scene:
    """A bar, line or pie chart; ``variety`` asks for one of them."""
    variety = variety or rng.choice(("bars", "bars", "bars", "lying bars", "lying bars", "line", "line", "pie", "pie"))
    light = rng.randint(228, 255)
    ground = (light, light - rng.randint(-3, 8) if light < 252 else light, light)
    canvas = Canvas(rng, split, picture_size(rng, slimmest=0.36), ground)
    lines, questions = MAKERS[variety](canvas)
    return Scene(
        kind="charts",
        image=canvas.finish(tilt=0),
        questions=keep(rng, questions),
        text="\n".join(lines),
        glyphs=tuple(canvas.glyphs),
        objects=tuple(canvas.objects),
    )
