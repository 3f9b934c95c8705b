"""The report's charts as Vega-Lite specifications, made with Altair: each is drawn from rows that are put in later.

    all_specs()        {"times": {…}, …}: every one names its data "rows"

A specification holds no colour that depends on light or dark; the page puts those in when it draws. Layers whose name
begins with "floor" are left out where no row knows one: nothing has no extent.
"""

import altair as alt

from bench.core import BACKENDS
from bench.show import Spec

COLOURS = {name: backend.colour for name, backend in BACKENDS.items()} | {"ours": BACKENDS["cpu"].colour}
LIMIT = 4  # an error may be this many times plain torch's (bench/trial/accuracy.py)
FOR_LABELS = {"left": 5, "top": 14, "right": 90, "bottom": 5}  # labels stand right of the longest bar
FLOOR = "#d62728"
FLOOR_POINT = alt.OverlayMarkDef(
    color=FLOOR, filled=False, shape="stroke", size=150, strokeWidth=2
)  # seen where it is one alone
VERDICTS = {"SLOWER": "#d6453d", "FASTER": "#1a9850", "SAME": "#2f6fde", "UNCLEAR": "#8a929c"}
Chart = alt.LayerChart | alt.FacetChart


def all_specs() -> dict[str, Spec]:
    charts = {
        "times": times(log=False),
        "times_log": times(log=True),
        "overview": overview(),
        "roofline": roofline(),
        "errors": errors(),
        "waterfall": waterfall(),
        "curves": curves(),
        "training_loss": over_steps("loss"),
        "training_losses": over_steps("loss", validated=True),
        "training_norm": over_steps("gradient norm before clipping", log=True),
        "training_lr": over_steps("learning rate"),
        "training_speed": over_steps("tokens a second"),
        "training_mfu": over_steps("MFU, of the measured matmul rate", number=".1%"),
        "swaps": swaps(),
        "changes": changes(),
        "sweep": sweep(),
        "history": history(),
        "tokens": tokens(),
    }
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return {name: chart.properties(width="container", autosize=fit).to_dict() for name, chart in charts.items()}


def _rows() -> alt.NamedData:
    return alt.NamedData(name="rows")


def _by_backend(legend: bool = True) -> alt.Color:
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    shown = alt.Legend(title=None, orient="bottom", values=list(BACKENDS))
    return alt.Color("backend:N", scale=scale, legend=shown if legend else None)


def _floor_line(base: alt.Chart, of: str) -> alt.Chart:
    floor = base.transform_filter("isValid(datum.floor)")
    line = floor.mark_line(color=FLOOR, strokeDash=[5, 3], strokeWidth=1.5, point=FLOOR_POINT)
    return line.encode(y=of).properties(name="floor")


def _limit_ticks(base: alt.Chart, scale: alt.Scale, size: int) -> alt.Chart:
    """Where a bar would end at the floor."""
    ticks = base.transform_filter("isValid(datum.limit)").mark_tick(color=FLOOR, thickness=2, size=size)
    return ticks.encode(x=alt.X("limit:Q", scale=scale)).properties(name="floor")


def times(log: bool) -> Chart:
    """Rows: variant, backend, ms, low, high, reach, floor, text, samples (ms), in order. Bars with the 95 % interval
    and the samples, and a line where the floor is; where the slowest is far away, points on a logarithmic axis."""
    base = alt.Chart(_rows()).encode(
        y=alt.Y("variant:N", sort=None, title=None),
    )
    scale = alt.Scale(type="log") if log else alt.Scale(domainMin=0)
    x_axis = alt.Axis(format=",~r", tickCount=6, title="ms, median and 95 % interval; ticks are samples")
    x = alt.X("ms:Q", scale=scale, axis=x_axis)
    tooltip = ["variant:N", "text:N", "story:N"]
    mark = base.mark_point(filled=True, size=90) if log else base.mark_bar(height=12, cornerRadiusEnd=2, opacity=0.85)
    main = mark.encode(x=x, color=_by_backend(legend=False), tooltip=tooltip)
    samples = (
        base.transform_flatten(["samples"], as_=["sample"])
        .mark_tick(thickness=1, size=18, opacity=0.35)
        .encode(x=alt.X("sample:Q", scale=scale))
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    label = base.mark_text(align="left", dx=6, baseline="middle", fontSize=11).encode(
        x=alt.X("reach:Q", scale=scale), text="text:N"
    )
    known = alt.Chart(_rows()).transform_aggregate(floor="min(floor)").transform_filter("isValid(datum.floor)")
    floor = known.mark_rule(color=FLOOR, strokeWidth=1.5, strokeDash=[5, 3]).encode(x=alt.X("floor:Q", scale=scale))
    named = known.mark_text(text="floor", color=FLOOR, align="left", dx=3, baseline="bottom", fontSize=10)
    named = named.encode(x=alt.X("floor:Q", scale=scale), y=alt.value(0))
    floor, named = floor.properties(name="floor"), named.properties(name="floor_name")
    return alt.layer(main, samples, interval, label, floor, named).properties(padding=FOR_LABELS)


def overview() -> Chart:
    """Rows: case, speedup, low, high, limit, reach, variant, backend, text, noisy (drawn faintly): the best own kernel
    against PyTorch, and where it would be at the floor."""
    base = alt.Chart(_rows()).encode(
        y=alt.Y("case:N", sort=None, title=None),
    )
    scale = alt.Scale(type="log", base=2)
    x_axis = alt.Axis(title="speed against PyTorch's fastest, logarithmic; red: at the floor", format="~g", tickCount=6)
    one = alt.Chart(alt.Data(values=[{"at": 1}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
    bars = base.mark_bar(height=12).encode(
        opacity=alt.condition("datum.noisy", alt.value(0.25), alt.value(0.85)),
        x=alt.X("speedup:Q", scale=scale, axis=x_axis),
        x2=alt.datum(1),
        color=_by_backend(),
        tooltip=["case:N", "variant:N", "text:N"],
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    label = base.mark_text(align="left", dx=6, fontSize=11).encode(x=alt.X("reach:Q", scale=scale), text="text:N")
    return alt.layer(bars, interval, one, _limit_ticks(base, scale, 16), label).properties(padding=FOR_LABELS)


def roofline() -> Chart:
    """Rows: intensity (FLOP a byte), gflops, and of kind "point": variant, backend, case, phase; of kind "roof": name,
    and label at its end."""
    x = alt.X(
        "intensity:Q",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(title="useful FLOP a compulsory byte", format="~g", tickCount=6),
    )
    y_axis = alt.Axis(title="useful GFLOP/s", format="~s", tickCount=6)
    y = alt.Y("gflops:Q", scale=alt.Scale(type="log"), axis=y_axis)
    base = alt.Chart(_rows()).encode(x=x, y=y)
    dashed = alt.condition("indexof(datum.name, 'datasheet') === 0", alt.value([6, 4]), alt.value([1, 0]))
    roof = (
        base.transform_filter("datum.kind == 'roof'")
        .mark_line(strokeWidth=1.5)
        .encode(detail="name:N", tooltip="name:N", strokeDash=dashed)
    )
    points = (
        base.transform_filter("datum.kind == 'point'")
        .mark_point(filled=True, size=70, opacity=0.8)
        .encode(
            color=_by_backend(),
            shape=alt.Shape("phase:N", legend=alt.Legend(title=None, orient="bottom")),
            tooltip=["variant:N", "case:N", "text:N"],
        )
    )
    name = base.transform_filter("datum.label").mark_text(align="right", dy=-7, fontSize=11).encode(text="name:N")
    return alt.layer(roof, points, name).properties(height=260)


def errors() -> Chart:
    """Rows: variant, backend, phase, error: in units of plain torch's, and the limit."""
    base = alt.Chart(_rows()).encode(
        y=alt.Y("variant:N", sort=None, title=None),
    )
    x_axis = alt.Axis(title="worst error over all proof cases, of plain torch's (limit 4)", format="~g", tickCount=6)
    points = base.mark_point(filled=True, size=80, opacity=0.85).encode(
        x=alt.X("error:Q", scale=alt.Scale(type="symlog", domainMin=0), axis=x_axis),
        color=_by_backend(legend=False),
        shape=alt.Shape("phase:N", legend=alt.Legend(title=None, orient="bottom")),
        tooltip=["variant:N", "phase:N", "text:N"],
    )
    limit = alt.Chart(alt.Data(values=[{"at": LIMIT}])).mark_rule(color=FLOOR, strokeDash=[4, 3]).encode(x="at:Q")
    return alt.layer(limit, points)


def waterfall() -> Chart:
    """Rows: contestant, part, start, end (ms), order: where a step goes, stacked; PyTorch's is one piece."""
    base = alt.Chart(_rows()).encode(y=alt.Y("contestant:N", sort=None, title=None))
    bars = base.mark_bar(height=26).encode(
        x=alt.X("start:Q", axis=alt.Axis(title="ms a step", format=",~r", tickCount=8)),
        x2="end:Q",
        color=alt.Color(
            "part:N",
            scale=alt.Scale(scheme="tableau20"),
            sort=alt.SortField("order"),
            legend=alt.Legend(title=None, orient="bottom", columns=4, labelLimit=170),
        ),
        tooltip=["contestant:N", "part:N", "text:N"],
    )
    return alt.layer(bars)


def curves() -> Chart:
    """Rows: step, value, contestant: the loss of every contestant, step by step."""
    whole = "datum.value % 1 ? '' : format(datum.value, 'd')"
    base = alt.Chart(_rows()).encode(
        x=alt.X("step:Q", axis=alt.Axis(title="step", labelExpr=whole)),
        y=alt.Y("value:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title="loss", tickCount=6)),
        color=alt.Color("contestant:N", legend=alt.Legend(title=None, orient="bottom", labelLimit=260)),
    )
    lines = base.mark_line(strokeWidth=2, opacity=0.8).encode(strokeDash=alt.StrokeDash("contestant:N", legend=None))
    points = base.mark_point(size=20, opacity=0.6).encode(tooltip=["contestant:N", "step:Q", "value:Q"])
    return alt.layer(lines, points).properties(height=220)


def over_steps(title: str, log: bool = False, validated: bool = False, number: str = "") -> Chart:
    """Rows: step, value, low, high, run, kind ("train", "val"), text: a line a run, a band where steps were put
    together; validation as points on a line of its own."""
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)
    axis = alt.Axis(title=title, tickCount=6, format=number or alt.Undefined)
    y = alt.Y("value:Q", scale=scale, axis=axis)
    x = alt.X("step:Q", axis=alt.Axis(title="step", tickCount=8, format=",d"))
    legend = alt.Legend(title=None, orient="bottom", labelLimit=260, symbolOpacity=1)
    base = alt.Chart(_rows()).encode(x=x, color=alt.Color("run:N", sort=None, legend=legend))
    tooltip = ["run:N", "step:Q", "text:N"]
    train, val = (base.transform_filter(f"datum.kind == '{kind}'") for kind in ("train", "val"))
    band = train.mark_area(opacity=0.2, line=False).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    line = train.mark_line(strokeWidth=1.5).encode(y=y)
    hover = train.mark_point(size=40, opacity=0).encode(y=y, tooltip=tooltip)
    dashes = val.mark_line(strokeWidth=1.5, strokeDash=[5, 3]).encode(y=y)
    points = val.mark_point(filled=True, size=50).encode(y=y, tooltip=tooltip)
    more = (dashes, points) if validated else ()  # without rows they would have no extent
    return alt.layer(band, line, hover, *more).properties(height=240)


def swaps() -> Chart:
    """Rows: swap, by, predicted, measured, low, high (ms): a step's change as its parts predict it and as it is."""
    base = alt.Chart(_rows())
    x = alt.X("predicted:Q", axis=alt.Axis(title="predicted change of the step, ms", tickCount=6))
    y = alt.Y("measured:Q", axis=alt.Axis(title="measured change, ms", tickCount=6))
    by = alt.Color("by:N", legend=alt.Legend(title="predicted from", orient="bottom"))
    line = alt.Chart(_rows()).mark_line(strokeDash=[4, 3]).encode(x=x, y=alt.Y("predicted:Q"))
    points = base.mark_point(filled=True, size=80).encode(x=x, y=y, color=by, tooltip=["swap:N", "by:N", "text:N"])
    interval = base.mark_rule().encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=by)
    return alt.layer(line, interval, points).properties(height=240)


def tokens() -> Chart:
    """Rows: contestant, rate (tokens a second), low, high, limit (at the floor), reach, kind, text: bars with the 95 %
    interval, and a tick where the floor of that contestant is."""
    base = alt.Chart(_rows()).encode(y=alt.Y("contestant:N", sort=None, title=None))
    scale = alt.Scale(domainMin=0)
    x = alt.X(
        "rate:Q", scale=scale, axis=alt.Axis(title="tokens a second; red: at the floor", format="~s", tickCount=6)
    )
    domain = ["ours", "others"]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=domain, range=[COLOURS["ours"], COLOURS["torch"]]), legend=None)
    bars = base.mark_bar(height=16, cornerRadiusEnd=2, opacity=0.85).encode(
        x=x, color=colour, tooltip=["contestant:N", "text:N"]
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    label = base.mark_text(align="left", dx=6, fontSize=11).encode(x=alt.X("reach:Q", scale=scale), text="text:N")
    return alt.layer(bars, interval, label, _limit_ticks(base, scale, 24)).properties(padding=FOR_LABELS)


def changes() -> Chart:
    """Rows: case, ratio (after / before), low, high, least, most (what runs of the same code may differ by), verdict,
    text."""
    base = alt.Chart(_rows()).encode(
        y=alt.Y("case:N", sort=None, title=None),
    )
    scale = alt.Scale(type="log", nice=False)
    x_axis = alt.Axis(
        title="change of the time; grey: what runs of the same code may differ by",
        labelExpr="format(datum.value - 1, '+.0%')",
        tickCount=7,
    )
    noise = base.mark_bar(height=12, opacity=0.25, color="#8a929c").encode(
        x=alt.X("least:Q", scale=scale, axis=x_axis), x2="most:Q"
    )
    one = alt.Chart(alt.Data(values=[{"at": 1}])).mark_rule(strokeDash=[4, 3]).encode(x=alt.X("at:Q", scale=scale))
    colour = alt.Color(
        "verdict:N",
        scale=alt.Scale(domain=list(VERDICTS), range=list(VERDICTS.values())),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("ratio:Q", scale=scale), color=colour, tooltip=["case:N", "text:N"]
    )
    return alt.layer(noise, one, interval, points)


def sweep() -> Chart:
    """Rows: at (a size), ms, low, high, floor, variant, backend, text: a line a variant over the sizes of one axis."""
    x = alt.X(
        "at:Q", scale=alt.Scale(type="log", base=2, nice=False), axis=alt.Axis(title=None, format="~r", tickCount=5)
    )
    y = alt.Y("ms:Q", scale=alt.Scale(type="log"), axis=alt.Axis(title="ms a call; red: the floor", tickCount=6))
    colour = alt.Color("variant:N", legend=alt.Legend(title=None, orient="bottom"))
    base = alt.Chart(_rows()).encode(x=x)
    lines = base.mark_line(strokeWidth=2).encode(y=y, color=colour)
    points = base.mark_point(filled=True, size=45).encode(y=y, color=colour, tooltip=["variant:N", "text:N"])
    interval = base.mark_rule().encode(y="low:Q", y2="high:Q", color=colour)
    return alt.layer(lines, points, interval, _floor_line(base, "floor:Q")).properties(height=260)


def history() -> Chart:
    """Rows: set (commit and day), ms, low, high, floor, variant, text: a line a variant over the sets, in the order of
    their dates; commits are on the axis."""
    x = alt.X("set:N", sort=None, axis=alt.Axis(title=None, labelAngle=-30, labelLimit=160))
    y = alt.Y("ms:Q", scale=alt.Scale(type="log"), axis=alt.Axis(title="ms; red: the floor", tickCount=6))
    colour = alt.Color("variant:N", legend=alt.Legend(title=None, orient="bottom"))
    base = alt.Chart(_rows()).encode(x=x)
    lines = base.mark_line(strokeWidth=2).encode(y=y, color=colour)
    points = base.mark_point(filled=True, size=60).encode(y=y, color=colour, tooltip=["variant:N", "set:N", "text:N"])
    interval = base.mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q", color=colour)
    return alt.layer(lines, points, interval, _floor_line(base, "min(floor):Q")).properties(height=240)
