// Mouse, pen and fingers on the picture: pointing, painting, zooming and panning.

import { $ } from "./dom.js";
import { freeze, select } from "./selecting.js";
import { marks, picture, state } from "./state.js";

const STILL = 6; // CSS pixels that a click may move

const box = $("canvas-box"), stage = $("stage");
const fingers = new Map(); // pointer id -> place in the stage
let drag = null, isPinching = false, isDrawn = false;

stage.addEventListener("contextmenu", (event) => event.preventDefault());

box.addEventListener("pointerdown", (event) => {
  fingers.set(event.pointerId, picture.inStage(event));
  if (event.pointerType === "touch" && fingers.size > 1) return beginPinch();
  if (isPinching || event.button > 2) return;
  const { edit } = state, place = picture.at(event);
  state.cross = null;
  drag = { place, last: place, at: picture.inStage(event), from: picture.inStage(event), isPan: event.button === 1 };
  if (event.button === 1) event.preventDefault();
  if (event.button === 1 || edit || picture.view.zoom > 1) box.setPointerCapture(event.pointerId);
  if (edit && !drag.isPan && (edit.tool === "brush" || edit.tool === "eraser")) {
    drag.value = (edit.tool === "brush") !== (event.button === 2 || event.shiftKey) ? 1 : 0;
    state.pointer = place;
    edit.begin();
    edit.paint(place, place, drag.value);
  }
});

box.addEventListener("pointermove", (event) => {
  const at = picture.inStage(event);
  if (fingers.has(event.pointerId)) {
    if (isPinching) return pinch(event.pointerId, at);
    fingers.set(event.pointerId, at);
  }
  const { edit } = state, place = picture.at(event);
  makeWay(at);
  if (drag) dragTo(place, at);
  if (edit) {
    state.pointer = place;
    drawSoon();
  }
});

box.addEventListener("pointerup", (event) => {
  fingers.delete(event.pointerId);
  if (isPinching) {
    isPinching = fingers.size > 0;
    return;
  }
  const begun = drag, { edit } = state, place = picture.at(event);
  drag = null;
  if (!begun || begun.isPan) return;
  const sign = event.button === 2 || event.shiftKey ? -1 : (edit?.sign ?? 1);
  if (!edit) {
    const id = picture.labelAt(place);
    if (id) select(id);
    else if (event.button === 0 && !$("freeze").disabled) freeze(null, [...place, 1]);
  } else if (edit.painted) edit.end();
  else if (edit.tool === "click") edit.click(...place, sign);
  else if (edit.tool === "box") { edit.dragged = null; edit.setBox(...corners(begun.place, place)); }
  else if (edit.tool === "polygon") addCorner(edit, place, sign);
});

box.addEventListener("pointercancel", (event) => {
  fingers.delete(event.pointerId);
  isPinching &&= fingers.size > 0;
  drag = null;
  state.edit?.abandon();
});
box.addEventListener("pointerleave", () => { state.pointer = null; marks(); });

box.addEventListener("dblclick", (event) => {
  const { edit } = state;
  if (edit?.tool === "polygon" && edit.now.corners.length > 2) edit.polygon(event.shiftKey || edit.sign < 0 ? 0 : 1);
});

function dragTo(place, at) {
  const { edit } = state, { view } = picture;
  const moved = Math.hypot(at[0] - drag.from[0], at[1] - drag.from[1]);
  const mayPan = view.zoom > 1 && (!edit || edit.tool === "click");
  if (mayPan && moved > STILL) drag.isPan = true;
  if (drag.isPan) {
    view.panBy(at[0] - drag.at[0], at[1] - drag.at[1]);
    picture.place();
  } else if (edit?.painted) edit.paint(drag.last, place, drag.value);
  else if (edit?.tool === "box") edit.dragged = corners(drag.place, place);
  drag.last = place;
  drag.at = at;
}

/** A corner of a polygon; one at the first corner closes it. */
export function addCorner(edit, place, sign) {
  const [first] = edit.now.corners, last = edit.now.corners.at(-1);
  const isNear = (one) => one && Math.hypot(one[0] - place[0], one[1] - place[1]) * picture.view.scale < 10;
  if (isNear(first) && edit.now.corners.length > 2) edit.polygon(sign > 0 ? 1 : 0);
  else if (!isNear(last)) edit.corner(place); // the second click of two adds none
}

export const corners = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];

/** Marks with the next frame of the screen. */
function drawSoon() {
  if (isDrawn) return;
  isDrawn = true;
  requestAnimationFrame(() => { isDrawn = false; marks(); });
}

/** The small live picture makes way for the pointer. */
function makeWay([x, y]) {
  const share = x / stage.clientWidth;
  if (y > 160) return;
  if (share > 0.6) $("pip").classList.add("aside");
  else if (share < 0.4) $("pip").classList.remove("aside");
}

// ---- zoom

function beginPinch() {
  isPinching = true;
  drag = null;
  state.edit?.abandon();
}

function pinch(id, at) {
  const [a, b] = [...fingers.values()];
  const before = b && { distance: Math.hypot(a[0] - b[0], a[1] - b[1]), middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2] };
  fingers.set(id, at);
  if (!before) return;
  const [c, d] = [...fingers.values()];
  const middle = [(c[0] + d[0]) / 2, (c[1] + d[1]) / 2];
  picture.view.panBy(middle[0] - before.middle[0], middle[1] - before.middle[1]);
  zoomBy(Math.hypot(c[0] - d[0], c[1] - d[1]) / Math.max(1, before.distance), middle);
}

/** Zoom by a factor, at a place in the stage; without one at the cross, or in the middle. */
export function zoomBy(factor, place) {
  const { view } = picture;
  view.zoomBy(factor, place ?? (state.cross ? view.toStage(state.cross) : undefined));
  picture.place();
}

export function showAll() {
  picture.view.all();
  picture.place();
}

stage.addEventListener("wheel", (event) => {
  if (!picture.width || $("canvas-box").hidden) return;
  const isPage = matchMedia("(max-width: 820px)").matches && !event.ctrlKey && picture.view.zoom === 1;
  if (isPage) return; // the page scrolls
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  zoomBy(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0015)), picture.inStage(event));
}, { passive: false });

$("zoom-in").addEventListener("click", () => zoomBy(1.5));
$("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
$("zoom-all").addEventListener("click", showAll);
