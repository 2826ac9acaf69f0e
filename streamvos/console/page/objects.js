// The list of objects.

import { $, h, icon, setText, sync } from "./dom.js";
import { color, picture, setColor, state } from "./state.js";

class ObjectList {
  constructor(list, actions) {
    Object.assign(this, { list, actions });
    this.rows = new Map();
  }

  update(objects, pixels) {
    setText($("object-count"), objects.length ? `${objects.length}` : "");
    $("no-objects").hidden = objects.length > 0;
    this.pixels = pixels;
    sync(this.list, this.rows, objects, (one) => one.id, (one) => this.make(one));
    for (const [id, row] of this.rows) {
      const isChosen = Number(id) === state.selected;
      row.element.classList.toggle("selected", isChosen);
      row.pick.setAttribute("aria-pressed", String(isChosen));
    }
  }

  make({ id }) {
    const { actions } = this;
    const swatch = h("input", { type: "color", value: color(id), "aria-label": `Color of object ${id}`, oninput: () => actions.color(id, swatch.value) });
    const name = h("b"), condition = h("span", { class: "state" }), score = h("span"), area = h("span");
    const pick = h("button", { type: "button", class: "pick", onclick: () => actions.select(id) }, name, h("span", { class: "facts" }, condition, score, area));
    const field = h("input", { type: "text", maxlength: "40", hidden: true, "aria-label": `Name of object ${id}` });
    const done = (isKept) => {
      if (field.hidden) return;
      field.hidden = true;
      pick.hidden = false;
      if (isKept && field.value !== field.dataset.before) actions.rename(id, field.value);
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
      field.value = field.dataset.before = row.name;
      pick.hidden = true;
      field.hidden = false;
      field.focus();
      field.select();
    };
    const act = (label, title, picture, run) => h("button", { type: "button", class: "icon", "aria-label": `${label} object ${id}`, title, onclick: run }, icon(picture));
    const acts = h("span", { class: "acts" },
      act("Correct", "Correct the mask (K)", "wand", () => actions.correct(id)),
      act("Rename", "Rename (R)", "edit", rename),
      act("Forget", "Forget (Delete)", "trash", () => actions.forget(id)));
    const row = { element: h("li", { "data-id": id }, swatch, h("div", {}, pick, field), acts), pick, rename, name: "" };
    row.update = (one) => {
      row.name = one.name;
      if (document.activeElement !== swatch) swatch.value = color(id);
      setText(name, one.name || `Object ${one.id}`);
      setText(condition, one.state);
      condition.className = `state ${one.state}`;
      const share = (100 * one.area) / Math.max(1, this.pixels);
      setText(score, one.state === "lost" ? "" : one.score.toFixed(2));
      setText(area, one.state === "lost" ? "" : `${share < 1 ? share.toFixed(2) : share.toFixed(1)} %`);
      score.title = "score: mean probability over its pixels";
      area.title = `${one.area} pixels`;
    };
    return row;
  }

  rename(id) { this.rows.get(String(id))?.rename(); }
}

const actions = {};

export const objectList = new ObjectList($("objects"), actions);

/** What the buttons of a row do: `select`, `correct`, `rename`, `forget`; with the id. */
export function onObject(functions) {
  Object.assign(actions, functions, {
    color: (id, value) => { setColor(id, value); functions.colored(); picture.draw(); },
  });
}

export function showObjects(objects) {
  const [height, width] = state.frame?.header.size ?? [1, 1];
  objectList.update(objects, height * width);
}
