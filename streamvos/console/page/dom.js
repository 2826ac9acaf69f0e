// Elements of the page.

export const $ = (id) => document.getElementById(id);

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

/** Keep a list's rows in step with items, so that focus and open fields survive: `make(item)` gives a row with `update`. */
export function sync(list, rows, items, key, make) {
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

/** A message that goes by itself, with an action if there is one. */
export function say(text, { error = false, action = null, seconds = error ? 9 : 5 } = {}) {
  const box = $("messages");
  const made = h("div", { class: error ? "message error" : "message", role: error ? "alert" : null }, h("span", {}, text));
  const close = () => made.remove();
  if (action) made.append(h("button", { type: "button", onclick: () => { close(); action.run(); } }, action.text));
  box.append(made);
  while (box.children.length > 3) box.firstChild.remove();
  setTimeout(close, seconds * 1000);
}

/** A button that does what it says at its second click, within three seconds. */
export function twice(button, question, run) {
  const label = button.lastChild, text = label.textContent;
  button.addEventListener("click", () => {
    if (button.dataset.sure) {
      delete button.dataset.sure;
      label.textContent = text;
      return run();
    }
    button.dataset.sure = "yes";
    label.textContent = question;
    setTimeout(() => { delete button.dataset.sure; label.textContent = text; }, 3000);
  });
}

export function download(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
