// The list of streams, what is known of one, adding and removing.

import { path, request } from "./api.js";
import { $, h, say, setText, sync, twice } from "./dom.js";
import { attempt, currentStream, isPicture, state } from "./state.js";

const rows = new Map();
let choose = () => {}, shown = "";

/** What happens when a stream is chosen. */
export function onChoose(run) { choose = run; }

export function showStreams() {
  const { streams, current } = state;
  setText($("stream-count"), streams.length > 1 ? `${streams.length}` : "");
  sync($("streams"), rows, streams, (one) => one.name, make);
  for (const one of streams) {
    const { button } = rows.get(one.name), value = String(one.name === current);
    if (button.getAttribute("aria-current") === value) continue;
    button.setAttribute("aria-current", value);
    if (value === "true") button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const chosen = currentStream();
  $("detail-box").hidden = !chosen;
  if (chosen) describe(chosen);
  $("add").hidden = isPicture();
  $("remove").hidden = isPicture();
}

export function chooseNext() {
  const names = state.streams.map((one) => one.name);
  if (names.length) choose(names[(names.indexOf(state.current) + 1) % names.length]);
}

function make({ name }) {
  const condition = h("span", { class: "state" }), figures = h("span", { class: "figures" });
  const spark = svg("svg", { class: "spark", viewBox: "0 0 72 18", role: "img", preserveAspectRatio: "none" });
  const line = svg("polyline", {});
  spark.append(line);
  const button = h("button", { type: "button", onclick: () => choose(name) }, h("span", { class: "name", title: name }, name), condition, figures, spark);
  const update = (one) => {
    setText(condition, one.state);
    condition.className = `state ${one.state}`;
    condition.title = one.unready || one.reason;
    const drops = Object.values(one.dropped).reduce((sum, n) => sum + n, 0);
    setText(figures, one.state === "still" ? "one picture" : `${number(one.fps, 1)} fps · ${drops} dropped`);
    const past = one.history_ms.filter((value) => value !== null), high = Math.max(1, ...past);
    line.setAttribute("points", past.map((value, n) => `${(72 * n) / Math.max(1, past.length - 1)},${17 - (16 * value) / high}`).join(" "));
    const label = past.length ? `latency of masks, last ${number(past.at(-1))} ms, at most ${number(high)} ms` : "no latency yet";
    spark.setAttribute("aria-label", label);
    spark.classList.toggle("none", past.length < 2);
  };
  return { element: h("li", {}, button), button, update };
}

function describe(one) {
  const found = [["source", one.source ?? "–"], ["size", one.size ? `${one.size[1]} × ${one.size[0]}` : "–"]];
  if (one.state !== "still") {
    const { p50, p95, p99 } = one.latency_ms;
    found.push(["policy", one.policy ?? "–"], ["latency p50", ms(p50)], ["p95", ms(p95)], ["p99", ms(p99)]);
    for (const [cause, count] of Object.entries(one.dropped)) found.push([`dropped: ${cause}`, String(count)]);
    found.push(["restarts", String(one.restarts ?? 0)]);
  }
  if (one.unready) found.push(["not ready", one.unready]);
  else if (one.reason) found.push(["reason", one.reason]);
  if (one.last_failure) found.push(["last failure", one.last_failure]);
  const text = JSON.stringify(found);
  if (text === shown) return;
  shown = text;
  $("stream-detail").replaceChildren(...found.flatMap(([key, value]) => [h("dt", isLong(value), key), h("dd", isLong(value), value)]));
}

// ---- adding and removing

export function openAdd() {
  if (isPicture() || $("add-dialog").open) return;
  setText($("add-error"), "");
  const names = new Set(state.streams.map((one) => one.name));
  let n = names.size + 1;
  while (names.has(`camera${n}`)) n++;
  $("add-name").value = `camera${n}`;
  $("add-dialog").showModal();
  $("add-source").focus();
}

$("add").addEventListener("click", openAdd);
$("empty-add").addEventListener("click", openAdd);
$("add-cancel").addEventListener("click", () => $("add-dialog").close());
$("add-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { realtime: true, name: $("add-name").value.trim(), source: $("add-source").value.trim() };
  if ($("add-method").value) body.method = $("add-method").value;
  if ($("add-height").value) body.height = Number($("add-height").value);
  const button = $("add-submit");
  button.disabled = true;
  setText(button, "Opening the source");
  try {
    const added = await request("POST", "/api/streams", body);
    $("add-dialog").close();
    $("add-source").value = "";
    say(`Added ${added.stream}: ${added.state}.${added.reason ? ` ${added.reason}` : ""}`);
    choose(added.stream);
  } catch (error) {
    setText($("add-error"), error.message);
  }
  button.disabled = false;
  setText(button, "Add");
});

twice($("remove"), "Remove for good?", async () => {
  const name = state.current;
  const done = await attempt(() => request("DELETE", path(name)));
  if (done) say(`Removed ${name}.${done.state === "failed" ? ` ${done.reason}` : ""}`);
});

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const ms = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(value < 100 ? 1 : 0)} ms`);
const isLong = (text) => (text.length > 16 ? { class: "long" } : {});
const number = (value, digits = 0) => (value === null || value === undefined ? "–" : value.toFixed(digits));
