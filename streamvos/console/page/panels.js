// The lists beside the picture. Rows are kept and changed, so that focus and open fields survive each frame.

/** An element: h("li", {class: "x", onclick}, ...children). Text is never read as HTML. */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const ms = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(value < 100 ? 1 : 0)} ms`);
const isLong = (text) => (text.length > 16 ? { class: "long" } : {});
const number = (value, digits = 0) => (value === null || value === undefined ? "–" : value.toFixed(digits));

/** Keep a list's rows in step with items: `make(item)` gives a row with a function `update`. */
function sync(list, rows, items, key, make) {
  const seen = new Set();
  let before = null;
  for (const item of items) {
    const name = String(key(item));
    seen.add(name);
    if (!rows.has(name)) rows.set(name, make(item));
    const row = rows.get(name);
    row.update(item);
    const next = before ? before.nextSibling : list.firstChild;
    if (row.element !== next) list.insertBefore(row.element, next);
    before = row.element;
  }
  for (const [name, row] of rows) if (!seen.has(name)) { row.element.remove(); rows.delete(name); }
}

export class StreamList {
  constructor(list, detail, count, choose) {
    Object.assign(this, { list, detail, count, choose });
    this.rows = new Map();
  }

  update(streams, current) {
    setText(this.count, streams.length > 1 ? `${streams.length}` : "");
    sync(this.list, this.rows, streams, (one) => one.name, (one) => this.make(one));
    for (const one of streams) {
      const { button } = this.rows.get(one.name);
      const value = String(one.name === current);
      if (button.getAttribute("aria-current") !== value) button.setAttribute("aria-current", value);
    }
    const chosen = streams.find((one) => one.name === current);
    if (chosen) this.describe(chosen);
    else this.detail.replaceChildren();
  }

  make({ name }) {
    const state = h("span", { class: "state" }), figures = h("span", { class: "figures" });
    const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    spark.setAttribute("class", "spark");
    spark.setAttribute("viewBox", "0 0 72 18");
    spark.setAttribute("role", "img");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    spark.append(line);
    const button = h("button", { type: "button", onclick: () => this.choose(name) }, h("span", { class: "name" }, name), state, figures, spark);
    const update = (one) => {
      setText(state, one.state);
      state.className = `state ${one.state}`;
      const drops = Object.values(one.dropped).reduce((sum, n) => sum + n, 0);
      setText(figures, one.state === "still" ? "one picture" : `${number(one.fps, 1)} fps · ${drops} dropped`);
      const past = one.history_ms.filter((value) => value !== null);
      const high = Math.max(1, ...past);
      line.setAttribute("points", past.map((value, n) => `${(72 * n) / Math.max(1, past.length - 1)},${17 - (16 * value) / high}`).join(" "));
      spark.setAttribute("aria-label", past.length ? `latency, last ${number(past.at(-1))} ms, at most ${number(high)} ms` : "no latency yet");
    };
    return { element: h("li", {}, button), button, update };
  }

  describe(one) {
    const rows = [["source", one.source ?? "–"], ["size", one.size ? `${one.size[1]} × ${one.size[0]}` : "–"]];
    if (one.state !== "still") {
      const { p50, p95, p99 } = one.latency_ms;
      rows.push(["policy", one.policy ?? "–"], ["latency p50", ms(p50)], ["p95", ms(p95)], ["p99", ms(p99)]);
      for (const [cause, count] of Object.entries(one.dropped)) rows.push([`dropped: ${cause}`, String(count)]);
      rows.push(["restarts", String(one.restarts ?? 0)]);
    }
    if (one.reason) rows.push(["reason", one.reason]);
    if (one.last_failure) rows.push(["last failure", one.last_failure]);
    const text = JSON.stringify(rows);
    if (text === this.shown) return;
    this.shown = text;
    this.detail.replaceChildren(h("dl", {}, ...rows.flatMap(([key, value]) => [h("dt", isLong(value), key), h("dd", isLong(value), value)])));
  }
}

export class ObjectList {
  constructor(list, count, hint, actions) {
    Object.assign(this, { list, count, hint, actions });
    this.rows = new Map();
  }

  update(objects, pixels, selected, color) {
    setText(this.count, objects.length ? `${objects.length}` : "");
    this.hint.hidden = objects.length > 0;
    this.pixels = pixels;
    sync(this.list, this.rows, objects, (one) => one.id, (one) => this.make(one, color));
    for (const [id, row] of this.rows) row.element.classList.toggle("selected", Number(id) === selected);
  }

  make({ id }, color) {
    const { actions } = this;
    const swatch = h("input", { type: "color", value: color(id), "aria-label": `Color of object ${id}`, oninput: () => actions.color(id, swatch.value) });
    const name = h("b"), state = h("span", { class: "state" }), score = h("span"), area = h("span");
    const pick = h("button", { type: "button", class: "pick", onclick: () => actions.select(id) }, name, h("span", { class: "facts" }, state, score, area));
    const field = h("input", { type: "text", maxlength: "40", hidden: true, "aria-label": `Name of object ${id}` });
    const done = (keep) => {
      if (field.hidden) return;
      field.hidden = true;
      pick.hidden = false;
      if (keep && field.value !== field.dataset.before) actions.rename(id, field.value);
      pick.focus();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") event.preventDefault(); // else it presses the button that gets the focus
      if (event.key === "Enter") done(true);
      if (event.key === "Escape") done(false);
    });
    field.addEventListener("blur", () => done(true));
    const rename = () => {
      field.value = field.dataset.before = this.rows.get(String(id))?.name ?? "";
      pick.hidden = true;
      field.hidden = false;
      field.focus();
      field.select();
    };
    const act = (label, title, name, run) => h("button", { type: "button", class: "icon", "aria-label": `${label} object ${id}`, title, onclick: run }, icon(name));
    const acts = h("span", { class: "acts" },
      act("Correct", "Correct the mask (K)", "wand", () => actions.correct(id)),
      act("Rename", "Rename (R)", "edit", rename),
      act("Forget", "Forget (Delete)", "trash", () => actions.forget(id)));
    const row = { element: h("li", { "data-id": id }, swatch, h("div", {}, pick, field), acts), rename };
    row.update = (one) => {
      row.name = one.name;
      setText(name, one.name || `Object ${one.id}`);
      setText(state, one.state);
      state.className = `state ${one.state}`;
      setText(score, one.state === "lost" ? "" : one.score.toFixed(2));
      const share = (100 * one.area) / Math.max(1, this.pixels);
      setText(area, one.state === "lost" ? "" : `${share < 1 ? share.toFixed(2) : share.toFixed(1)} %`);
      score.title = "score: mean probability over its pixels";
      area.title = `${one.area} pixels`;
    };
    return row;
  }

  rename(id) { this.rows.get(String(id))?.rename(); }
}

/** A message that goes by itself, with an action if there is one. */
export function say(box, text, { error = false, action = null, seconds = error ? 9 : 5 } = {}) {
  const made = h("div", { class: error ? "message error" : "message", role: error ? "alert" : null }, h("span", {}, text));
  const close = () => made.remove();
  if (action) made.append(h("button", { type: "button", onclick: () => { close(); action.run(); } }, action.text));
  box.append(made);
  while (box.children.length > 3) box.firstChild.remove();
  setTimeout(close, seconds * 1000);
}
