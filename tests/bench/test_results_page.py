"""docs/results.md says what the files in docs/results/ say, and how to measure it again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from bench_rows import latency_rows, timed_row

from bench.door import app
from bench.report.docs import built, rebuild
from bench.report.text import number
from bench.results import CaseResult, Settings, Writer
from streamvos.types import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
PLACE = re.compile(r"<!-- report: (.*?) -->\n(.*?)<!-- end -->", re.DOTALL)


def test_tables_and_pictures_are_what_their_files_say():
    for path, content in built(DOCS).items():
        assert path.read_bytes() == content.encode(), f"{path.name} differs; run `python -m bench report`"


def test_a_number_that_is_changed_by_hand_is_found_and_put_right(tmp_path):
    docs = shutil.copytree(DOCS, tmp_path / "docs")
    assert rebuild(docs) == []
    for place in PLACE.finditer(PAGE):
        figure = re.search(r"\d\.\d", place[2])
        if figure is None:
            continue  # not measured yet
        at = place.start(2) + figure.start()
        digit = str((int(PAGE[at]) + 1) % 10)
        (docs / "results.md").write_text(PAGE[:at] + digit + PAGE[at + 1 :], encoding="utf-8")
        assert built(docs)[docs / "results.md"] == PAGE, place[1]
    assert rebuild(docs) == [docs / "results.md"]
    assert rebuild(docs) == []


def test_every_table_comes_from_a_file_and_stands_beside_its_command():
    for block in PLACE.sub("", PAGE).splitlines():
        assert not block.startswith("|"), f"a table by hand: {block}"
    for place in PLACE.finditer(PAGE):
        before = PLACE.sub("", PAGE[: place.start()].rpartition("\n## ")[2])
        if not place[1].endswith(".jsonl"):  # whose rows know their command
            assert re.search(r"`(python bench/|python -m bench|streamvos )", before), place[1]


def test_the_commands_are_those_of_today():
    spans = [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", PLACE.sub("", PAGE))]
    commands = typer.main.get_command(app).commands
    named = [
        span.removeprefix("streamvos bench ").split() for span in spans if span.startswith("streamvos bench ")
    ]
    assert len(named) > 8
    for name, *words in named:
        known = {option for one in commands[name].params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known, name
    for file in re.findall(r"`python (bench/[\w/.]+)", PAGE):
        assert (DOCS.parent / file).is_file(), file


def test_every_result_that_is_kept_is_named():
    named = PAGE + (DOCS / "history.md").read_text(encoding="utf-8")
    cards = "".join(
        path.read_text(encoding="utf-8") for path in DOCS.parent.glob("streamvos/weights/files/*.md")
    )
    for path in (DOCS / "results").iterdir():
        pattern = re.sub(r"^(davis2016-\w+-).*\.json$", r"\1METHOD.json", path.name)
        assert pattern in named + cards, f"docs/results/{path.name}: no page shows it"


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path


def page_with(docs: Path, *places: str, rows: list[CaseResult] | None = None) -> str:
    with Writer(docs / "results/run.jsonl") as writer:
        for row in latency_rows() if rows is None else rows:
            writer.write(row)
    marks = "".join(f"Words.\n\n<!-- report: {place} -->\n<!-- end -->\n" for place in places)
    (docs / "results.md").write_text(f"# Results\n\n{marks}The end.\n", encoding="utf-8")
    rebuild(docs)
    return (docs / "results.md").read_text(encoding="utf-8")


def test_a_run_shows_its_numbers_its_command_and_its_plots(docs):
    text = page_with(docs, "times results/run.jsonl", "by-objects results/run.jsonl")
    for row in latency_rows():
        (line,) = (one for one in text.splitlines() if one.startswith(f"| {row.name} |"))
        for name in ("min", "p50", "p95", "p99"):
            assert f" {number(row.quantiles[name])} |" in line
    assert text.count("`python -m bench latency --methods tvos,frtm-fast` (2026-11-30, Some CPU 9000") == 2
    assert text.endswith("The end.\n")
    for kind in ("times", "by-objects"):
        assert f"(results/run-{kind}.svg)" in text
        plot = ElementTree.parse(docs / f"results/run-{kind}.svg").getroot()
        assert plot.tag == "{http://www.w3.org/2000/svg}svg"


def test_names_are_text_in_markdown_too(docs):
    text = page_with(docs, "times results/run.jsonl", rows=[timed_row("a|b <!-- end --> `c`\n# d")])
    assert rebuild(docs) == [], "what a row says must not end its place"
    assert "<!-- end --> `c`" not in text


def test_sizing_lines_are_quoted(docs):
    row = timed_row("a", details={"sizing": "2 cores: 1 stream 240p at 30 fps, frtm-fast, p99 41 ms"})
    text = page_with(docs, "sizing results/run.jsonl", rows=[row])
    assert "- 2 cores: 1 stream 240p at 30 fps, frtm-fast, p99 41 ms\n" in text


def test_streaming_accuracy_has_a_column_for_each_rate_and_explains_itself_once(docs):
    rows = [
        timed_row(
            f"{method} at {fps} fps",
            case=Settings(method=method, height=480, fps=fps),
            scores={"J&F offline": offline, "J&F streaming": offline - fps},
        )
        for method, offline in (("tvos", 84.0), ("rgmp", 82.0))
        for fps in (30.0, 10.0)
    ]
    text = page_with(docs, "scores results/run.jsonl", "scores results/run.jsonl", rows=rows)
    head = "| J&F streaming | ms a frame | offline | 10 frames/s | 30 frames/s |"
    assert text.count(head) == 2
    for method, values in (("tvos", "84.0 | 74.0 | 54.0"), ("rgmp", "82.0 | 72.0 | 52.0")):
        (line, again) = (one for one in text.splitlines() if one.startswith(f"| {method}"))
        assert line == again
        assert line.endswith(f"| {values} |")
    assert text.count("the newest one finished by then") == 1


def test_what_is_not_measured_says_so(docs):
    assert "*Not measured yet: there is no results/none.jsonl.*" in page_with(
        docs, "times results/none.jsonl"
    )


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("speed results/run.jsonl", "has no speed; choose of: .*times"),
        ("scores results/run.jsonl", "has no scores"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(docs, place, reason):
    with pytest.raises(InputError, match=reason):
        page_with(docs, place)


def test_a_broken_mark_is_refused(docs):
    (docs / "results.md").write_text("<!-- report: times results/run.jsonl -->\nno end\n")
    with pytest.raises(InputError, match="a mark is broken"):
        rebuild(docs)
    with pytest.raises(InputError, match="in a checkout only"):
        rebuild(docs / "nowhere")
