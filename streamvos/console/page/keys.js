// The keyboard: everything can be done with it.

import { undoLast } from "./changes.js";
import { $, h } from "./dom.js";
import { objectList } from "./objects.js";
import { addCorner, corners, showAll, zoomBy } from "./pointer.js";
import { confirm, forget, freeze, leave, select, useSign, useSize, useTool } from "./selecting.js";
import { marks, picture, isPicture, state } from "./state.js";
import { chooseNext, openAdd } from "./streams.js";
import { applyDisplay } from "./tools.js";

const HELP = [
  ["Space", "freeze the frame; in a frozen one: click at the cross (with Shift: beside the object)"],
  ["← ↑ ↓ →", "move the cross (with Shift: further); a zoomed picture follows it"],
  ["+ − 0", "zoom in, zoom out, show all"],
  ["C B D E G", "click, box, brush, eraser, polygon"],
  ["X", "clicks are on the object, or beside it"],
  ["[ ]", "smaller, larger brush"],
  ["Z Y", "undo, redo; in the live picture: undo the last change of an object"],
  ["Enter", "confirm: the object joins the stream; closes a polygon"],
  ["Esc", "back to the live picture"],
  ["1 – 9", "choose an object"],
  ["K R Del", "correct, rename, forget the chosen object"],
  ["P", "pause or resume"],
  ["S V U", "snapshot, record, upload a label map"],
  ["O L", "opacity, outline"],
  ["J N", "next stream, add a stream"],
  ["T ?", "dark or light, this help"],
];

let anchor = null; // the first corner of a box

$("keys").append(...HELP.flatMap(([keys, text]) => [
  h("dt", {}, ...keys.split(" ").flatMap((one) => [h("kbd", {}, one), " "])), h("dd", {}, text)]));

document.addEventListener("keydown", (event) => {
  if (event.altKey || document.querySelector("dialog[open]")) return;
  const { edit } = state, { key } = event;
  if (event.target.matches("input[type=text], input[type=password], select")) {
    if (key === "Enter" && edit) confirm();
    if (key === "Escape") event.target.blur();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && !["z", "y"].includes(key.toLowerCase())) return;
  const isOnControl = event.target.matches("button, input, a, summary");
  if (key.startsWith("Arrow")) {
    if (isOnControl || !state.frame) return;
    move(key, event.shiftKey);
  } else if (key === " ") {
    if (isOnControl) return;
    if (!edit) freeze(null, state.cross && [...state.cross, 1]);
    else actAtCross(edit, event.shiftKey ? -1 : edit.sign);
  } else if (key === "Enter") {
    if (isOnControl) return;
    if (edit?.now.corners.length > 2) edit.polygon(edit.sign > 0 ? 1 : 0);
    else if (edit) confirm();
    else if (isPicture()) $("save").click();
  } else if (!press(key, event)) return;
  event.preventDefault();
});

/** Move the cross, by pixels of the frame when the picture is zoomed. */
function move(key, isFar) {
  const { view, width, height } = picture, { edit } = state;
  const near = Math.max(1, Math.round(4 / view.zoom)), step = isFar ? 5 * near : near;
  const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[key];
  const [x, y] = state.cross ?? view.toFrame([view.room[0] / 2, view.room[1] / 2]);
  state.cross = [clamp(x + dx, width - 1), clamp(y + dy, height - 1)];
  state.pointer = null;
  if (edit?.tool === "box" && anchor) edit.dragged = corners(anchor, state.cross);
  if (view.zoom > 1) {
    view.follow(state.cross);
    picture.place();
  }
  marks();
}

const clamp = (value, most) => Math.min(Math.max(0, value), most);

/** What Space does at the cross with the tool in use. */
function actAtCross(edit, sign) {
  const { view } = picture;
  const place = (state.cross ??= view.toFrame([view.room[0] / 2, view.room[1] / 2]));
  if (edit.tool === "click") edit.click(...place, sign);
  else if (edit.tool === "polygon") addCorner(edit, place, sign);
  else if (edit.tool === "box") {
    if (anchor) { edit.dragged = null; edit.setBox(...corners(anchor, place)); }
    anchor = anchor ? null : place;
  } else {
    edit.begin();
    edit.paint(place, place, (edit.tool === "brush") === sign > 0 ? 1 : 0);
    edit.end();
  }
  marks();
}

function press(key, event) {
  const { edit } = state, letter = key.toLowerCase();
  if (key >= "1" && key <= "9" && !edit) return select(Number(key)) ?? true;
  const editing = {
    escape: () => leave(), z: () => (event.shiftKey ? edit.redo() : edit.undo()), y: () => edit.redo(),
    c: () => tool("click"), b: () => tool("box"), d: () => tool("brush"), e: () => tool("eraser"), g: () => tool("polygon"),
    x: () => useSign(-edit.sign), "[": () => useSize(edit.size - step(edit.size)), "]": () => useSize(edit.size + step(edit.size)),
  };
  const live = {
    k: () => state.selected && freeze(state.selected), r: () => state.selected && objectList.rename(state.selected),
    delete: () => state.selected && forget(state.selected), backspace: () => state.selected && forget(state.selected),
    p: () => $("pause").click(), v: () => $("record").click(), escape: () => select(null), j: chooseNext, n: openAdd, z: undoLast,
  };
  const always = {
    s: () => $("snapshot").click(), u: () => $("upload").click(), t: () => $("theme").click(), "?": () => $("help-button").click(),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: showAll,
    o: () => { $("opacity").value = (Number($("opacity").value) + 25) % 125; applyDisplay(); },
    l: () => { $("outline").checked = !$("outline").checked; applyDisplay(); },
  };
  const run = (edit ? editing : live)[letter] ?? always[letter];
  if (!run) return false;
  run();
  return true;
}

function tool(name) {
  anchor = null;
  useTool(name);
}

const step = (size) => (size > 12 ? 4 : 1);
