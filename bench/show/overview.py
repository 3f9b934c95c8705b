"""The first screen of the report: four cards, and a grid of layers and passes by their share of the ceiling."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from bench.records.record import Record
from bench.records.schema import BAD, GOOD
from bench.show.columns import value
from bench.show.limits import RANKS_TO
from bench.show.points import Best, beyond, grouped, noisy, standing
from bench.show.texts import DASH, duration, percent, speed_text

PHASES = ("forward", "backward")
SHARES = (0.1, 0.25, 0.5, 0.75)  # a cell's colour changes at these
LISTED = 3  # rows of a card
STANDINGS = {
    "faster": ("ok", "faster"),
    "tied": ("mut", "tied"),
    "slower": ("bad", "slower"),
    "noisy": ("skipped", "too noisy to rank"),
}


@dataclass
class Fact:
    """A line of a card: a number, what it is of, where it leads, and the command that shows it again."""

    number: str
    text: str
    style: str = ""
    link: str = ""
    command: str = ""


@dataclass
class Card:
    title: str
    facts: list[Fact]
    below: str = ""


@dataclass
class Cell:
    """What a layer's pass reaches at a dtype, over all shapes of the training step. style: s0 to s4 by the share of the
    ceiling; over where it is above it; noisy, failed, none."""

    text: str
    more: str = ""
    style: str = "none"
    link: str = ""
    told: str = ""  # of every shape


@dataclass
class Row:
    layer: str
    cells: list[Cell]


@dataclass
class Grid:
    """Layers and passes at one dtype (and on one machine, where there are several)."""

    name: str
    phases: list[str]
    rows: list[Row] = field(default_factory=list)


# --- cards ---


def step_card(steps: Iterable["tuple[str, str, list[Record], bool]"]) -> Card:
    """steps: title, link, the contestants' rows, and whether a newer run of the same step is on the page."""
    facts = [step_fact(title, link, rows) for title, link, rows, older in steps if not older]
    hint = "" if facts else "No training step was measured: python -m bench.e2e gpt2-124m"
    if more := len(facts) - LISTED:
        hint = f"and {more} more below" if more > 0 else hint
    return Card("training step", facts[:LISTED], hint)


def step_fact(title: str, link: str, rows: list[Record]) -> Fact:
    """Our step against torch.compile's, or else the rival that there is."""
    ours = next((r for r in rows if r["variant"] == "ours"), rows[0])
    if ours["status"] not in GOOD:
        return Fact(ours["status"], title, "bad", link, ours.get("reproduce", ""))
    rivals = {r["variant"]: r for r in rows if r is not ours and r["status"] in GOOD and r.get("median_s")}
    rival = rivals.get("torch.compile") or rivals.get("torch.eager")
    if not rival or not ours.get("median_s"):
        return Fact(DASH, f"{title}: nothing to compare with", "", link)
    ratio = value(rival, "median_s") / value(ours, "median_s")
    same = ours.get("baseline") == rival["variant"] and speed_text(ours).endswith("=")
    times = f"{duration(ours['median_s'])} against {rival['variant']}'s {duration(rival['median_s'])}"
    style = "mut" if same else "ok" if ratio > 1 else "bad"
    return Fact(f"{ratio:.2f}x" + " =" * same, f"{title}: {times}", style, link)


def layers_card(best: list[Best]) -> Card:
    """How many cases are faster than PyTorch's fastest entry, tied, slower, or too noisy to say."""
    counts = Counter(standing(b.row) for b in best)
    layers = len({b.layer for b in best if standing(b.row)})
    of = "1 layer" if layers == 1 else f"{layers} layers"
    facts = [Fact(str(counts[s]), word, style) for s, (style, word) in STANDINGS.items() if counts[s] or s != "noisy"]
    facts = facts if any(counts[s] for s in STANDINGS) else []
    return Card(
        "layers against PyTorch's fastest",
        facts,
        f"of {sum(counts[s] for s in STANDINGS)} cases (layer, shape, pass, dtype) of {of}"
        if facts
        else "No kernel was timed beside PyTorch.",
    )


def limits_card(best: list[Best], link: "dict[int, str]") -> Card:
    """The nearest and the farthest from the ceiling, of what can be ranked; link: of a row, by its id()."""
    shares = [b for b in best if b.row.get("of_ceiling")]
    ranked = sorted((b for b in shares if not noisy(b.row) and value(b.row, "of_ceiling") <= 1), key=_share)
    facts = []
    for word, b in (("nearest", ranked[-1:]), ("farthest", ranked[:1])):
        facts += [
            Fact(percent(_share(x)), f"{word}: {x.case}, {x.row['variant']}", "", link.get(id(x.row), "")) for x in b
        ]
    over = [b for b in shares if value(b.row, "of_ceiling") > 1]
    facts += [Fact(percent(_share(b)), f"{b.case}: {beyond(b.row, _share(b))}", "bad") for b in over[:1]]
    out = sum(noisy(b.row) for b in shares)
    below = f"{out} cases are too noisy to be among them" if out else ""
    return Card("share of the ceiling", facts, below if facts else "No ceiling was measured: python -m bench.doctor")


def _share(b: Best) -> float:
    return value(b.row, "of_ceiling")


def failed_card(failed: list[Record]) -> Card:
    """What failed, each with its command; the rest stands in the table below."""
    facts = [
        Fact(
            r["status"],
            f"{r['layer']} {r['variant']} {r['phase']} {r['dtype']}",
            "bad",
            "#troubles",
            r.get("reproduce", ""),
        )
        for r in failed[:LISTED]
    ]
    more = len(failed) - LISTED
    below = f"and {more} more in the table of failures" if more > 0 else "" if failed else "Nothing failed."
    return Card(f"{len(failed)} failed" if failed else "failed", facts, below)


def proved_cards(rows: list[Record], failed: list[Record]) -> list[Card]:
    """Of a set that the simulator ran: what is proved, and what its counts say best and worst."""
    proved = [r for r in rows if r["status"] == "simulated"]
    variants = {(r["layer"], r["variant"]) for r in proved}
    bad = {(r["layer"], r["variant"]) for r in rows if r["status"] in BAD}
    first = [Fact(str(len(variants - bad)), "kernels proved right", "ok")]
    first += [Fact(str(len(bad)), "kernels wrong, or not to be run", "bad", "#troubles")] if bad else []
    counts = f"in {len(proved)} proofs (pass, dtype), {sum(r.get('proof_cases') or 0 for r in proved)} cases"
    moved = sorted((r for r in proved if r.get("moved_of_minimum")), key=lambda r: value(r, "moved_of_minimum"))
    second = [
        Fact(f"{value(r, 'moved_of_minimum'):.3g}x", f"{word}: {_named(r)}", "", f"#{r['layer']}")
        for word, r in [("least", r) for r in moved[:1]] + [("most", r) for r in moved[-1:]]
    ]
    spilling = [r for r in proved if r.get("spill_bytes")]
    third = [Fact(str(len(spilling)), "proofs whose kernels spill registers", "bad" if spilling else "ok")]
    third += [Fact(f"{value(r, 'spill_bytes'):.0f} B", _named(r), "", f"#{r['layer']}") for r in spilling[: LISTED - 1]]
    return [
        Card("proved in the simulator", first, counts),
        Card("bytes moved, of the least", second, "as far as counts go: no time is known"),
        Card("registers", third),
        failed_card(failed),
    ]


def _named(r: Record) -> str:
    return f"{r['layer']} {r['variant']} {r['phase']} {r['dtype']}"


# --- the grid ---


def grids(best: list[Best], failed: list[Record], place: "dict[int, str]") -> list[Grid]:
    """A grid a dtype. place: the address of a row's case, by the row's id(). Of a layer that has no right own kernel
    at a pass, what failed is shown."""
    layers = list(dict.fromkeys([b.layer for b in best] + [r["layer"] for r in failed if r.get("phase") in PHASES]))
    dtypes = sorted({b.row["dtype"] for b in best})
    found = []
    for dtype in dtypes:
        of = grouped([b for b in best if b.row["dtype"] == dtype], lambda b: (b.layer, b.row["phase"]))
        wrong = {(r["layer"], r["phase"]) for r in failed if r["dtype"] == dtype}
        phases = [p for p in PHASES if any(phase == p for _, phase in of)]
        rows = [Row(x, [_cell(of.get((x, p), []), (x, p) in wrong, place) for p in phases]) for x in layers]
        found.append(Grid(dtype, phases, [row for row in rows if any(c.style != "none" for c in row.cells)]))
    return found


def _cell(best: list[Best], failed: bool, place: "dict[int, str]") -> Cell:
    timed = [b for b in best if b.row.get("median_s")]
    if not timed:
        return Cell("failed", style="failed", link="#troubles") if failed else Cell(DASH)
    link = place.get(id(max(timed, key=_weight).row), "")
    told = "; ".join(_told(b) for b in timed)
    sure = [b for b in timed if not noisy(b.row)]
    if not sure:
        least = min(value(b.row, "noise_floor") for b in timed)
        return Cell(f"noise ±{percent(least)}", "ranks nothing", "noisy", link, told)
    share = share_of(sure)
    style = "unknown" if share is None else "over" if share > 1 else f"s{sum(share >= at for at in SHARES)}"
    return Cell(percent(share), _more(timed), style, link, told)


def _weight(b: Best) -> float:
    """A case's time in a training step; of what is no part of the step, of one call."""
    return value(b.row, "median_s") * (b.row.get("calls") or 1)


def share_of(best: list[Best]) -> float | None:
    """The floors of all shapes over the times of their fastest kernels, each by its calls a step."""
    known = [b for b in best if b.row.get("floor_s")]
    floors = sum(value(b.row, "floor_s") * (b.row.get("calls") or 1) for b in known)
    return floors / sum(map(_weight, known)) if known else None


def _more(best: list[Best]) -> str:
    """The fastest kernel and how it stands against PyTorch; of several shapes how many stand how. The share is of those
    that can be ranked."""
    names = list(dict.fromkeys(b.row["variant"] for b in best))
    name = names[0] if len(names) == 1 else f"{len(names)} kernels"
    stands = Counter(STANDINGS[s][1] for b in best if (s := standing(b.row)))
    if len(best) == 1:
        return f"{name}, {best[0].text} PyTorch" if stands else name
    return f"{name}, " + ", ".join(f"{n} {word}" for word, n in stands.items()) if stands else name


def _told(b: Best) -> str:
    return f"{b.case}: {b.row['variant']} {b.time}, {percent(b.row.get('of_ceiling'))} of the ceiling, {b.text} PyTorch"


# --- a set that was simulated ---


@dataclass
class Proofs:
    """Which kernel is proved at which pass and dtype."""

    columns: list[str]
    rows: list[tuple[str, str, list[tuple[str, str]]]]  # layer, variant, (text, style) a column


def proofs(rows: list[Record]) -> Proofs | None:
    """None where nothing was simulated."""
    gpu = [r for r in rows if r["status"] == "simulated"]
    if not gpu:
        return None
    variants = {(r["layer"], r["variant"]) for r in gpu}
    of = {(r["layer"], r["variant"], r["phase"], r["dtype"]): r for r in rows if _tells(r, variants)}
    columns = sorted({(p, d) for _, _, p, d in of}, key=lambda c: (c[1], c[0] != "forward"))
    lines = []
    for layer, variant in dict.fromkeys((r["layer"], r["variant"]) for r in of.values()):
        lines.append((layer, variant, [_proof(of.get((layer, variant, *c))) for c in columns]))
    return Proofs([f"{p} {d}" for p, d in columns], lines)


def _tells(r: Record, variants: set[tuple[str, str]]) -> bool:
    return r["status"] == "simulated" or r["status"] in BAD or (r["layer"], r["variant"]) in variants


def _proof(r: Record | None) -> tuple[str, str]:
    if r is None:
        return DASH, "mut"
    if r["status"] in GOOD:
        error = f" {value(r, 'error_ratio'):.2g}x" if r.get("error_ratio") is not None else ""
        part = f", {r.get('proof_cases')} of {r.get('proof_cases_all')} cases" if r.get("not_supported") else ""
        return f"proved{error}{part}", "simulated"
    return r["status"], "skipped" if r["status"] == "skipped" else "bad"


# --- a run's word on itself ---


def noise_line(best: list[Best]) -> str:
    """A sentence where more than half of the cases rank nothing."""
    floors = [value(b.row, "noise_floor") for b in best if b.row.get("noise_floor") is not None]
    out = sum(floor > RANKS_TO for floor in floors)
    if 2 * out <= len(floors):
        return ""
    return (
        f"This run ranks nothing: the noise floor is ±{percent(median(floors))}, and above ±{percent(RANKS_TO)}"
        f" in {out} of {len(floors)} cases. Measure again on a quiet machine (python -m bench.doctor says how quiet)."
    )
