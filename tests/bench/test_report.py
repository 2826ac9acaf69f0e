"""The page of a run shows the rows' own numbers, whatever the rows hold, and needs nothing but itself."""

from __future__ import annotations

import inspect
import re
from html.parser import HTMLParser
from importlib import import_module
from xml.etree import ElementTree

import numpy as np
import pytest
from bench_rows import latency_rows, timed_row
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import report
from bench.door import COMMANDS
from bench.report.page import html_of
from bench.report.plots import Range, Series, histogram_plot, line_plot, range_plot, stack_plot
from bench.report.svg import scale, standalone
from bench.report.text import clean, number
from bench.results import CaseResult, Memory, Ratio, Settings, Writer, measured
from streamvos.types import InputError

TAGS = (
    "html head meta title style body main h1 h2 p dl dt dd code section div table thead tbody tr th td a "
    "svg g text line path rect circle"
)
ATTRIBUTES = {
    "a": {"download", "href"},
    "html": {"lang"},
    "meta": {"charset", "name", "content", "http-equiv"},
}
DRAWN = (
    "class viewbox width height role aria-label x y x1 x2 y1 y2 cx cy r d fill stroke stroke-width "
    "stroke-dasharray opacity text-anchor tabindex"
)


class Page(HTMLParser):
    """Every tag, attribute and table of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data
        self.words.append(data)

    def table(self, first: str) -> list[dict[str, str]]:
        """Rows of the first table whose first column has this name."""
        found = next(one for one in self.tables if one[0][0] == first)
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def plots(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (9.999, "10.0"), (41.16, "41.2"), (99.96, "100"), (2111.5, "2,112"),
     (0.9996, "1.00"), (-3.14159, "-3.14"),
     (float("nan"), "nan"), (None, ""), (1e-5, "1.0e-05"), (3e9, "3.00e+09")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


@given(st.floats(1e-9, 1e12))
@settings(deadline=None)
def test_a_number_that_is_read_back_is_off_by_its_last_digit_at_most(value):
    # three digits, or two where an exponent is needed
    assert float(number(value).replace(",", "")) == pytest.approx(
        value, rel=0.0051 if value >= 1e-3 else 0.051
    )


def test_the_tables_hold_the_numbers_of_the_rows():
    rows = latency_rows()
    page = Page(html_of(rows))
    times = page.table("case")
    stages = page.table("p50 (p99), ms")
    assert (
        [one["case"] for one in times] == [row.name for row in rows] == [s["p50 (p99), ms"] for s in stages]
    )
    for row, shown, parts in zip(rows, times, stages, strict=True):
        for name in ("min", "p50", "p95", "p99", "p99.9", "max"):
            bracketed = shown[name].startswith("(")
            assert bracketed == (name == "p99.9"), "300 frames have no p99.9"
            assert float(shown[name].strip("()").replace(",", "")) == pytest.approx(
                row.quantiles[name], rel=0.006
            )
        assert int(shown["count"]) == row.count
        for name, values in row.stages.items():
            p50, p99 = (float(one) for one in re.findall(r"[\d.]+", parts[name]))
            assert (p50, p99) == (
                pytest.approx(values["p50"], rel=0.006),
                pytest.approx(values["p99"], rel=0.006),
            )


def axis_of(plot: ElementTree.Element, kind: str, log: bool):
    """From a place in a plot to the value that its ticks say."""
    ticks = [(float(one.get(kind)), float(one.text.replace(",", ""))) for one in plot.iter("text")
             if f"tick-{kind}" in one.get("class", "")]  # fmt: skip
    if kind == "y":
        ticks = [(place - 4, value) for place, value in ticks]  # the middle of a letter is 4 above its foot
    (p0, v0), (p1, v1) = ticks[0], ticks[-1]
    assert p0 != p1
    if log:
        return lambda p: v0 * (v1 / v0) ** ((p - p0) / (p1 - p0))
    return lambda p: v0 + (v1 - v0) * (p - p0) / (p1 - p0)


@given(st.lists(st.floats(1.0, 5000.0), min_size=5, max_size=40))
@settings(deadline=None, max_examples=50)
def test_marks_lie_where_the_ticks_say(values):
    quantiles = measured(values)["quantiles"]
    plot = ElementTree.fromstring(range_plot([Range("a", quantiles, "")], "ms", ""))
    value_at = axis_of(plot, "x", log=True)
    # places are rounded to a tenth of a pixel, of which a factor of 5000 leaves 0.3 % each
    for name, attribute in (("p50", "cx"), ("p95", "x1"), ("p99", "x1")):
        (mark,) = (one for one in plot.iter() if one.get("class") == f"q-{name}")
        assert value_at(float(mark.get(attribute))) == pytest.approx(quantiles[name], rel=0.01)


def test_lines_and_bars_are_as_long_as_their_numbers():
    points = [(1, 147.0), (3, 154.0), (5, 160.0)]
    plot = ElementTree.fromstring(line_plot([Series("tvos", points)], "objects", "ms"))
    value_at, x_at = axis_of(plot, "y", False), axis_of(plot, "x", False)
    drawn = [(float(one.get("cx")), float(one.get("cy"))) for one in plot.iter("circle")][:3]
    assert [(x_at(x), value_at(y)) for x, y in drawn] == [
        (pytest.approx(x, abs=0.02), pytest.approx(y, abs=0.5)) for x, y in points
    ]
    parts = {"extract": 51.0, "read": 76.0}
    plot = ElementTree.fromstring(stack_plot([("a", parts, "")], "ms", "", list(parts), 127.0))
    value_at = axis_of(plot, "x", False)
    wide = [value_at(float(one.get("width"))) - value_at(0.0) for one in plot.iter("rect")]
    assert wide == [pytest.approx(value, abs=0.1) for value in parts.values()]


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=60))
@settings(deadline=None, max_examples=50)
def test_a_histogram_shows_every_frame(values):
    row = CaseResult(bench="latency", name="a", **measured(values))
    from bench.report.cells import bins_of

    plot = ElementTree.fromstring(histogram_plot(bins_of(row), {"p50": row.quantiles["p50"]}, "ms", "a"))
    shown = [int(one.text.split(" in ")[0]) for one in plot.iter("title") if " in " in one.text]
    assert sum(shown) == len(values)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=//x onerror=y>',
    "a\x00\x1b[31m",
    "</svg>",
    "&lt;",
    "\u202e",
    "\ud800",
]
NAMES = st.one_of(st.text(max_size=60), st.sampled_from(HOSTILE))
TIMES = st.lists(st.floats(0, 1e7), min_size=1, max_size=30)


@st.composite
def any_row(draw):
    fields = measured(draw(TIMES)) if draw(st.booleans()) else {}
    if draw(st.booleans()):
        fields["stages"] = draw(
            st.dictionaries(NAMES, st.fixed_dictionaries({"p50": st.floats(0, 1e5)}), max_size=3)
        )
    if draw(st.booleans()):
        samples = draw(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e6)), max_size=4))
        fields["memory_mib"] = Memory(peak=draw(st.floats(0, 1e6)), samples=sorted(samples))
    if draw(st.booleans()):
        fields["ratio"] = Ratio(to=draw(NAMES), median=draw(st.floats(0, 9)), low=0.5, high=2.0)
    if draw(st.booleans()):
        fields["scores"] = draw(st.dictionaries(NAMES, st.floats(0, 100), max_size=2))
    return CaseResult(
        bench=draw(NAMES), name=draw(NAMES), unit=draw(st.sampled_from(["ms", "s", "<b>"])),
        repetitions=draw(st.lists(st.floats(0, 1e5), max_size=3)),
        throughput=draw(st.none() | st.floats(0, 1e5)), failed=draw(st.none() | NAMES),
        case=Settings(method=draw(NAMES), objects=draw(st.none() | st.integers(1, 5)),
                      streams=draw(st.none() | st.integers(1, 5)), fps=draw(st.none() | st.floats(1, 60))),
        machine={"cpu": draw(NAMES), "cores": 2, "load_before": 1.0,
                 "other_cores": draw(st.none() | st.floats(0, 2))},
        versions={"torch": draw(NAMES)}, time=draw(NAMES), command=draw(NAMES),
        details={"sizing": draw(NAMES)},
        **fields,
    )  # fmt: skip


@given(st.lists(any_row(), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_whatever_rows_hold_is_text_and_nothing_else(rows):
    text = html_of(rows)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag in TAGS.split()
        assert set(attributes) <= {*DRAWN.split(), *ATTRIBUTES.get(tag, ())}
    text.encode("utf-8")
    for plot in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(standalone(plot))  # well-formed as a file of its own too
    words = " ".join(page.words)
    for row in rows:
        if row.failed is not None:
            assert clean(row.name) in words


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-300, 1e300])
def test_a_scale_holds_values_of_any_size(value):
    found = scale([value, value], 0, 100, log=True)
    assert 0 < found.at(value) < 100
    assert all(found.low <= tick <= found.high for tick in found.ticks())


def test_a_run_without_figures_says_so():
    rows = [
        CaseResult(bench="gpu", name="a", failed="no GPU"),
        CaseResult(bench="gpu", name="b", failed="no GPU"),
    ]
    page = html_of(rows)
    assert "2 of 2 cases failed" in page
    assert "Failed or broken off" in page
    assert "<svg" not in page


def test_a_busy_machine_is_said_first():
    machine = {"cpu": "x", "cores": 2, "other_cores": 1.26}
    page = html_of([timed_row("a", machine=machine), timed_row("b")])
    assert "other programs used up to 1.3 of its cores during 1 of 2 cases" in page
    assert "several machines" in page
    assert "busy" not in html_of([timed_row("a")])


def test_a_long_run_makes_a_small_page():
    """A hundred cases with wide histograms and an hour of memory, a sample per second."""
    rng = np.random.default_rng(0)
    memory = Memory(
        peak=900, samples=[(float(t), float(m)) for t, m in enumerate(500 + rng.normal(0, 9, 3600))]
    )
    spread = measured(float(x) for x in 40 * np.exp(rng.normal(0, 1, 2000)))
    more = {"memory_mib": memory, **spread}
    rows = [
        timed_row(f"tvos {k} objects", case=Settings(method="tvos", objects=k), frames=4, **more)
        for k in range(100)
    ]
    assert len(html_of(rows).encode()) < 400_000


def test_a_peak_of_memory_survives_the_thinning():
    from bench.report.cells import MOST_SAMPLES, thinned

    samples = [(float(t), 500.0) for t in range(5000)]
    samples[3333] = (3333.0, 900.0)
    assert (3333.0, 900.0) in thinned(samples)
    assert len(thinned(samples)) <= MOST_SAMPLES


def test_in_a_browser_the_page_fits_and_asks_for_nothing(tmp_path, browser, request):
    """As a reader sees it: phone and desktop, light and dark; a picture of each is kept in out/."""
    path = tmp_path / "report.html"
    failed = CaseResult(bench="latency", name="<b>x</b>", failed="no time")
    path.write_text(html_of([*latency_rows(), timed_row("x" * 500, 0.1, command="y" * 500), failed]))
    folder = request.config.rootpath / "out" / "report-shots"  # to look at; git ignores it
    folder.mkdir(parents=True, exist_ok=True)
    for width, scheme in ((360, "light"), (1180, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        told, asked = [], []
        page.on("console", lambda message, told=told: told.append(message.text))
        page.on("pageerror", lambda error, told=told: told.append(str(error)))
        page.on("request", lambda one, asked=asked: asked.append(one.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('svg.plot')]"
            ".map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width))"
        )
        assert smallest > 0.85, "letters of 11 pixels would be too small to read"
        page.screenshot(path=str(folder / f"{width}-{scheme}.png"), full_page=True)
        page.close()
        assert (told, asked) == ([], [path.as_uri()])


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("compare", "report")])
def test_every_command_that_measures_writes_a_page(name):
    command = import_module(f"bench.{name}").command
    assert "html" in inspect.signature(command).parameters


def test_a_page_never_replaces_what_is_no_page(tmp_path):
    run, notes = tmp_path / "run.jsonl", tmp_path / "notes.txt"
    with Writer(run) as writer:
        writer.write(timed_row("a"))
    notes.write_text("mine")
    for path, reason in (
        (run, "would replace a run"),
        (notes, "something else than HTML"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(InputError, match=reason):
            report.command([run], path)
    assert notes.read_text() == "mine"
    with pytest.raises(InputError, match="needs runs"):
        report.command(None, tmp_path / "page.html")
    report.command([run])
    report.command([run])  # its own page is replaced
    assert (tmp_path / "run.html").read_text().startswith("<!doctype html>")
