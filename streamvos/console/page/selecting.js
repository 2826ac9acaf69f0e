// From a frozen frame to an object of the running stream.

import { path, request } from "./api.js";
import { before, remember } from "./changes.js";
import { $, say, setText } from "./dom.js";
import { Edit } from "./edit.js";
import { showTitle } from "./live.js";
import { showObjects } from "./objects.js";
import { ask, attempt, currentStream, isPicture, marks, nameOf, picture, state } from "./state.js";

let isFreezing = false, isSending = false, isDue = false;

/** Freeze what is shown, to select a new object or to correct one; with a first click if there is one. */
export async function freeze(id = null, firstClick = null) {
  const stream = currentStream();
  if (state.edit || !state.frame || isFreezing) return;
  if (!stream?.shows_frames) return say("The frames of this stream stay on another machine, so nothing can be selected in them. Upload a label map.", { error: true });
  isFreezing = true;
  const frozen = await attempt(async () => {
    const made = await before();
    return made ?? ask("POST", "/frames", {});
  });
  isFreezing = false;
  if (!frozen || frozen.stream !== state.current) return;
  if (frozen.seq !== state.frame.header.seq || picture.bitmap === null || picture.bitmap !== state.live) {
    const blob = await attempt(() => ask("GET", `/frames/${frozen.frame}.jpg`, undefined, { blob: true }));
    if (!blob) return;
    picture.show(await createImageBitmap(blob), frozen.size, frozen.objects);
  }
  picture.kept = picture.bitmap;
  const isNew = id === null || !frozen.objects.some((one) => one.id === id);
  const edit = (state.edit = new Edit(frozen, id ?? unusedId(frozen.objects), isNew, showSoon, (text) => say(text, { error: true })));
  edit.size = Number($("size").value);
  state.cross = null;
  select(null);
  $("object-name").value = edit.former?.name ?? "";
  $("live-tools").hidden = true;
  $("edit-tools").hidden = false;
  useTool("click");
  useSign(1);
  $("canvas-box").focus({ preventScroll: true });
  if (firstClick) edit.click(...firstClick);
  showEdit();
}

function unusedId(objects) {
  const used = new Set([...objects.map((one) => one.id), ...(currentStream()?.objects ?? [])]);
  for (let id = 1; id < 255; id++) if (!used.has(id)) return id;
  return 254;
}

/** Show the selection with the next frame of the screen. */
function showSoon() {
  if (isDue) return;
  isDue = true;
  const show = () => { if (isDue) { isDue = false; showEdit(); } };
  requestAnimationFrame(show);
  setTimeout(show, 100);
}

export function showEdit() {
  const { edit } = state;
  if (!edit) return;
  picture.setLabels(edit.labels(), [...edit.others, { id: edit.target, name: $("object-name").value, box: null }]);
  $("undo").disabled = !edit.canUndo;
  $("redo").disabled = !edit.canRedo;
  $("confirm").disabled = isSending || !edit.canConfirm;
  $("busy").hidden = !edit.isBusy && !isSending;
  setText($("busy"), isSending ? "carrying to the newest frame" : "selecting");
  const verb = edit.isNew ? "Add object" : "Correct";
  setText($("confirm").lastElementChild, currentStream()?.state === "paused" ? `Resume and ${verb.toLowerCase()}` : verb);
  marks();
  showTitle();
}

export async function confirm() {
  const { edit } = state;
  if (!edit || isSending || !edit.canConfirm) return;
  isSending = true;
  showEdit();
  const name = $("object-name").value.trim();
  const answer = await attempt(async () => {
    if (currentStream()?.state === "paused") await ask("POST", "/resume");
    return edit.confirm(name || !edit.isNew ? name : null);
  });
  isSending = false;
  if (state.edit !== edit) return;
  if (!answer) return showEdit();
  const { used, frames } = answer.carried;
  const way = frames === 0 ? "" : used === frames ? ` Carried over ${frames} frames.` : ` Carried over ${frames} frames, of which ${used} were used, evenly chosen.`;
  const label = name || `Object ${edit.target}`, verb = edit.isNew ? "joined" : "was corrected";
  const restore = edit.isNew ? edit.covered() : [...edit.covered(), edit.former];
  const action = isPicture() && !edit.isNew ? null : remember(edit.frozen, `${label} ${verb}`, edit.isNew ? [edit.target] : [], restore);
  say(`${label} ${verb} at frame ${answer.seq}.${way}`, { action, seconds: 8 });
  leave(false);
}

/** Back to the live picture; the frozen frame goes, unless something can be undone with it. */
export function leave(isReleased = true) {
  const { edit } = state;
  if (!edit) return;
  edit.isOpen = false;
  if (isReleased) request("DELETE", path(edit.stream, `/frames/${edit.frozen.frame}`), undefined, { keepalive: true }).catch(() => {});
  Object.assign(state, { edit: null, cross: null, pointer: null });
  $("live-tools").hidden = false;
  for (const id of ["edit-tools", "busy", "pip"]) $(id).hidden = true;
  $("canvas-box").classList.remove("drawing");
  const frozen = picture.kept;
  picture.kept = null;
  if (state.live && state.frame) {
    if (frozen && frozen !== state.live) { picture.bitmap = null; frozen.close(); }
    const { size, objects } = state.frame.header;
    picture.show(state.live, size, objects);
    showObjects(objects);
  }
  marks();
  showTitle();
}

export function select(id) {
  state.selected = picture.style.selected = id;
  showObjects(state.frame?.header.objects ?? []);
  picture.draw();
}

export async function forget(id) {
  const name = nameOf(id), frozen = await before();
  const done = await attempt(() => ask("DELETE", `/objects/${id}`));
  if (!done) return;
  if (state.selected === id) select(null);
  const former = frozen?.objects.filter((one) => one.id === id) ?? [];
  say(`Forgot ${name}.`, { action: frozen && remember(frozen, `forgot ${name}`, [], former), seconds: 8 });
}

// ---- tools

export function useTool(tool) {
  const { edit } = state;
  if (!edit) return;
  edit.use(tool);
  check("tool", tool);
  $("sign-group").hidden = tool === "brush" || tool === "eraser" || tool === "box";
  $("size-group").hidden = tool !== "brush" && tool !== "eraser";
  $("canvas-box").classList.toggle("drawing", tool !== "click");
}

export function useSign(sign) {
  if (!state.edit) return;
  state.edit.sign = sign;
  check("sign", String(sign));
}

function check(kind, value) {
  for (const button of document.querySelectorAll(`[data-${kind}]`)) {
    const isChosen = button.dataset[kind] === value;
    button.setAttribute("aria-checked", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1; // arrows go from one to the other
  }
}

export function useSize(size) {
  $("size").value = size;
  setText($("size-value"), `${$("size").value} px`);
  if (state.edit) state.edit.size = Number($("size").value);
  marks();
}

for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => useTool(button.dataset.tool));
for (const button of document.querySelectorAll("[data-sign]")) button.addEventListener("click", () => useSign(Number(button.dataset.sign)));
for (const group of document.querySelectorAll("[role=radiogroup]")) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...group.children], at = buttons.indexOf(document.activeElement);
    const next = buttons[(at + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
    event.preventDefault();
    event.stopPropagation();
  });
}
$("freeze").addEventListener("click", () => freeze());
$("cancel").addEventListener("click", () => leave());
$("confirm").addEventListener("click", confirm);
$("undo").addEventListener("click", () => state.edit?.undo());
$("redo").addEventListener("click", () => state.edit?.redo());
$("size").addEventListener("input", () => useSize($("size").value));
$("object-name").addEventListener("input", showEdit);
