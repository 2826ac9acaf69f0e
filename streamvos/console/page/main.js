// The console's page: connects, shows the stream, and turns clicks and keys into requests.

import { ApiError, Connection, keepToken, path, request } from "./api.js";
import { Edit, drawCross } from "./edit.js";
import { ObjectList, StreamList, h, say, setText } from "./panels.js";
import { Picture, defaultColor } from "./view.js";

const $ = (id) => document.getElementById(id);
const TOOLS = ["click", "box", "brush", "eraser", "polygon"];
const KEYS = [
  ["Space", "freeze the frame; in a frozen one: click at the cross (with Shift: beside the object)"],
  ["← ↑ ↓ →", "move the cross (with Shift: further)"],
  ["C B D E G", "click, box, brush, eraser, polygon"],
  ["+ −", "clicks are on the object, or beside it"],
  ["[ ]", "smaller, larger brush"],
  ["Z  Y", "undo, redo"],
  ["Enter", "confirm: the object joins the stream"],
  ["Esc", "back to the live picture"],
  ["1 – 9", "choose an object"],
  ["K  R  Del", "correct, rename, forget the chosen object"],
  ["P", "pause or resume"],
  ["S  V  U", "snapshot, record, upload a label map"],
  ["O  L", "opacity, outline"],
  ["J", "next stream"],
  ["T  ?", "dark or light, this help"],
];

const picture = new Picture($("canvas-box"), $("picture"), $("marks"), $("stage"));
const saved = JSON.parse(localStorage.getItem("streamvos") || "{}");
const state = {
  summary: null, streams: [], current: null, frame: null, next: null, drawing: false, edit: null,
  selected: null, cross: null, pointer: null, latencies: [], colors: saved.colors ?? {}, recorder: null, live: null,
};

// ---- the connection

const connection = new Connection({
  state: (open) => {
    state.connected = open;
    showConnection();
  },
  retry: () => start(),
  message: (message) => {
    if (message.type === "status") takeStatus(message);
    else if (message.type === "events") message.events.forEach(takeEvent);
    else if (message.type === "problem") say($("messages"), message.text, { error: true });
  },
  view: (header, jpeg) => {
    state.next = { header, jpeg };
    if (!state.drawing) drawNext();
  },
});

async function start() {
  try {
    takeStatus(await request("GET", "/api/streams"));
    connection.open();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return $("sign-in").open || $("sign-in").showModal();
    state.connected = false;
    showConnection();
    setTimeout(start, Math.min(5000, (connection.delay *= 1.5)));
  }
}

$("token-form").addEventListener("submit", () => {
  keepToken($("token").value);
  start();
});

function showConnection() {
  const problem = state.summary?.problem;
  const pill = $("connection");
  setText(pill, !state.connected ? "console unreachable, retrying" : problem ? "pipeline unreachable" : "connected");
  pill.className = `pill ${state.connected && !problem ? "good" : "bad"}`;
  pill.title = problem ?? "";
}

function takeStatus(summary) {
  state.summary = summary;
  state.streams = summary.streams;
  const isPicture = summary.kind === "picture";
  document.body.dataset.kind = summary.kind;
  setText($("pipeline"), summary.pipeline);
  document.title = `${summary.pipeline} · streamvos`;
  setText($("method"), summary.method ? `method ${summary.method}` : "");
  for (const id of ["pause", "record", "stop"]) $(id).hidden = isPicture;
  $("save").hidden = !isPicture;
  showConnection();
  if (!state.current || !state.streams.some((one) => one.name === state.current)) {
    const wanted = new URLSearchParams(location.search).get("stream");
    const first = state.streams.find((one) => one.name === wanted) ?? state.streams[0];
    if (first) choose(first.name);
  }
  streamList.update(state.streams, state.current);
  const stream = currentStream();
  const paused = stream?.state === "paused";
  setText($("pause").lastElementChild, paused ? "Resume" : "Pause");
  $("pause").querySelector("use").setAttribute("href", paused ? "#i-play" : "#i-pause");
  const over = !stream || ["ended", "failed"].includes(stream.state);
  for (const id of ["pause", "stop", "freeze", "upload"]) $(id).disabled = over;
  if (isPicture) $("save").disabled = over || !stream?.objects.length;
  showTitle();
  showEmpty();
  if (stream && !stream.objects.length && !state.edit && state.frame && !state.frame.header.masked) showObjects([]);
}

const currentStream = () => state.streams.find((one) => one.name === state.current);

function choose(name) {
  if (name === state.current && state.frame) return;
  if (state.edit) leaveEdit();
  Object.assign(state, { current: name, frame: null, next: null, selected: null, latencies: [] });
  connection.watch(name);
  picture.bitmap = null;
  showObjects([]);
  showEmpty();
  streamList.update(state.streams, state.current);
}

function showEmpty() {
  const stream = currentStream();
  const empty = $("empty");
  empty.hidden = Boolean(state.frame) || Boolean(state.edit);
  $("canvas-box").hidden = !empty.hidden;
  let text = "Waiting for the first frame";
  if (!stream) text = state.summary?.problem || "There is no stream";
  else if (stream.state === "paused") text = "Paused. The picture comes with the next frame.";
  else if (["ended", "failed"].includes(stream.state)) text = `The stream has ${stream.state}. ${stream.reason}`;
  else if (stream.reason) text = `Waiting: ${stream.reason}`;
  setText(empty, text);
}

// ---- drawing what comes

async function drawNext() {
  state.drawing = true;
  while (state.next) {
    const { header, jpeg } = state.next;
    state.next = null;
    try {
      const bitmap = await createImageBitmap(jpeg);
      if (header.stream === state.current) await showFrame(header, bitmap);
      else bitmap.close();
    } catch (error) {
      console.error(error);
    }
    connection.drawn();
  }
  state.drawing = false;
}

async function showFrame(header, bitmap) {
  const first = !state.frame;
  state.frame = { header };
  if (state.edit) {
    showPip(bitmap);
    keepLive(bitmap);
    showTitle();
    return;
  }
  if (first) showEmpty();
  keepLive(bitmap);
  picture.show(bitmap, header.size, header.objects);
  showObjects(header.objects);
  drawMarks();
  await new Promise(requestAnimationFrameOrSoon);
  const age = connection.age(header.captured_ms);
  if (age !== null && header.masked !== undefined) noteLatency(age, header);
  showTitle();
}

/** The newest live picture, kept while a frozen one is shown. */
function keepLive(bitmap) {
  if (state.live && state.live !== bitmap && state.live !== picture.bitmap) state.live.close();
  state.live = bitmap;
}

function requestAnimationFrameOrSoon(done) {
  const timer = setTimeout(done, 100); // in a tab that is hidden, no frame is drawn
  requestAnimationFrame(() => { clearTimeout(timer); done(); });
}

function noteLatency(age, header) {
  if (state.summary?.kind === "picture" || currentStream()?.state === "paused") return setText($("latency"), "");
  state.latencies.push(age);
  if (state.latencies.length > 31) state.latencies.shift();
  const sorted = [...state.latencies].sort((a, b) => a - b);
  const median = sorted[sorted.length >> 1];
  document.body.dataset.latency = median.toFixed(1);
  const mask = header.mask_ms === null ? "" : `mask ${header.mask_ms.toFixed(0)} ms · `;
  setText($("latency"), `${mask}screen ${median.toFixed(0)} ms`);
}

function showPip(bitmap) {
  const canvas = $("pip-canvas");
  canvas.height = Math.round((canvas.width * bitmap.height) / bitmap.width);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  $("pip").hidden = state.summary?.kind === "picture";
}

function showTitle() {
  const { edit, frame } = state;
  const bar = $("bar");
  bar.classList.toggle("frozen", Boolean(edit));
  if (edit) {
    const since = frame && frame.header.incarnation === edit.frozen.incarnation ? frame.header.seq - edit.frozen.seq : 0;
    setText($("title"), edit.isNew ? `New object ${edit.target}` : `Correcting ${nameOf(edit.target)}`);
    const score = edit.score === null ? "" : ` · quality ${edit.score.toFixed(2)}`;
    const note = state.summary?.kind === "picture" ? "" : `frozen at ${edit.frozen.seq}; the stream went on by ${since} frames`;
    setText($("frame-note"), note + score);
  } else {
    setText($("title"), state.current ?? "");
    const stream = currentStream();
    const masked = stream && !stream.publishes ? " · publishes no masks" : "";
    setText($("frame-note"), frame && stream?.state !== "still" ? `frame ${frame.header.seq} · ${frame.header.size[1]} × ${frame.header.size[0]}${masked}` : "");
  }
}

// ---- objects

const colorKey = (id) => `${state.current}/${id}`;
const color = (id) => state.colors[colorKey(id)] ?? defaultColor(id);
const nameOf = (id) => state.frame?.header.objects.find((one) => one.id === id)?.name || `object ${id}`;

const streamList = new StreamList($("streams"), $("stream-detail"), $("stream-count"), choose);
const objectList = new ObjectList($("objects"), $("object-count"), $("no-objects"), {
  color: (id, value) => { state.colors[colorKey(id)] = value; save(); picture.draw(); },
  select: (id) => select(state.selected === id ? null : id),
  correct: (id) => freeze(id),
  rename: (id, name) => attempt(() => request("PATCH", path(state.current, `/objects/${id}`), { name })),
  forget: (id) => forget(id),
});

function showObjects(objects) {
  const [height, width] = state.frame?.header.size ?? [1, 1];
  objectList.update(objects, height * width, state.selected, color);
}

function select(id) {
  state.selected = picture.style.selected = id;
  showObjects(state.frame?.header.objects ?? []);
  picture.draw();
}

async function forget(id) {
  const name = nameOf(id);
  const done = await attempt(() => request("DELETE", path(state.current, `/objects/${id}`)));
  if (!done) return;
  if (state.selected === id) select(null);
  say($("messages"), `Forgot ${name}.`);
}

async function attempt(run) {
  try {
    return (await run()) ?? true;
  } catch (error) {
    say($("messages"), error.message, { error: true });
    return null;
  }
}

// ---- selecting

/** Freeze what is shown, to select a new object or to correct one; with a first click if there is one. */
async function freeze(id = null, firstClick = null) {
  if (state.edit || !state.frame || state.freezing) return;
  state.freezing = true;
  const { seq, incarnation, stream } = state.frame.header;
  let frozen = await request("POST", path(stream, "/frames"), { seq, incarnation }).catch(() => null);
  frozen ??= await attempt(() => request("POST", path(stream, "/frames"), {})); // the shown one is gone
  state.freezing = false;
  if (!frozen || stream !== state.current) return;
  if (frozen.seq !== seq || picture.bitmap === null) {
    const blob = await attempt(() => request("GET", path(stream, `/frames/${frozen.frame}.jpg`), undefined, { blob: true }));
    if (!blob) return;
    picture.show(await createImageBitmap(blob), frozen.size, frozen.objects);
  }
  picture.kept = picture.bitmap;
  const isNew = id === null || !frozen.objects.some((one) => one.id === id);
  const target = id ?? unusedId(frozen.objects);
  const edit = (state.edit = new Edit(frozen, target, isNew, showEdit, (text) => say($("messages"), text, { error: true })));
  edit.size = Number($("size").value);
  state.cross = null;
  select(null);
  $("object-name").value = isNew ? "" : frozen.objects.find((one) => one.id === target)?.name ?? "";
  $("live-tools").hidden = true;
  $("edit-tools").hidden = false;
  setText($("confirm").lastElementChild, isNew ? "Add object" : "Correct");
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

function showEdit() {
  const { edit } = state;
  if (!edit) return;
  picture.setObjects(edit.objects($("object-name").value));
  $("undo").disabled = !edit.past.length && !edit.corners.length;
  $("redo").disabled = !edit.future.length;
  $("confirm").disabled = edit.sending || !edit.canConfirm;
  $("busy").hidden = !edit.busy && !edit.sending;
  setText($("busy"), edit.sending ? "carrying to the newest frame" : "selecting");
  drawMarks();
  showTitle();
}

function drawMarks() {
  if (state.edit) return state.edit.draw($("marks"), picture.scale, state.cross, state.pointer);
  const context = $("marks").getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, $("marks").width, $("marks").height);
  if (state.cross) {
    const dense = window.devicePixelRatio || 1;
    context.setTransform(dense, 0, 0, dense, 0, 0);
    drawCross(context, state.cross[0] * picture.scale, state.cross[1] * picture.scale);
  }
}
picture.onlayout = drawMarks;

async function confirm() {
  const { edit } = state;
  if (!edit || edit.sending || !edit.canConfirm) return;
  edit.sending = true;
  showEdit();
  const name = $("object-name").value.trim();
  const answer = await attempt(() => edit.confirm(name || !edit.isNew ? name : null));
  edit.sending = false;
  if (!answer) return showEdit();
  const { used, frames } = answer.carried;
  const way = frames === 0 ? "" : used === frames ? ` Carried over ${frames} frames.` : ` Carried over ${frames} frames, of which ${used} were used, evenly chosen.`;
  const label = name || `Object ${edit.target}`;
  const action = edit.isNew ? { text: "Undo", run: () => forget(edit.target) } : null;
  say($("messages"), `${label} ${edit.isNew ? "joined" : "was corrected"} at frame ${answer.seq}.${way}`, { action, seconds: 8 });
  leaveEdit();
}

function leaveEdit() {
  const { edit } = state;
  if (!edit) return;
  edit.close();
  Object.assign(state, { edit: null, cross: null, pointer: null });
  $("live-tools").hidden = false;
  $("edit-tools").hidden = true;
  $("busy").hidden = true;
  $("pip").hidden = true;
  $("canvas-box").classList.remove("drawing");
  const frozen = picture.kept;
  picture.kept = null;
  if (state.live && state.frame) {
    if (frozen && frozen !== state.live) { picture.bitmap = null; frozen.close(); }
    picture.show(state.live, state.frame.header.size, state.frame.header.objects);
    showObjects(state.frame.header.objects);
  }
  drawMarks();
  showTitle();
}

function useTool(tool) {
  const { edit } = state;
  if (!edit) return;
  edit.tool = tool;
  edit.corners = [];
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-checked", String(button.dataset.tool === tool));
  $("sign-group").hidden = tool === "brush" || tool === "eraser" || tool === "box";
  $("size-group").hidden = tool !== "brush" && tool !== "eraser";
  $("canvas-box").classList.toggle("drawing", tool !== "click");
  showEdit();
}

function useSign(sign) {
  if (!state.edit) return;
  state.edit.sign = sign;
  for (const button of document.querySelectorAll("[data-sign]")) button.setAttribute("aria-checked", String(Number(button.dataset.sign) === sign));
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

// ---- the pointer

const canvasBox = $("canvas-box");
let drag = null;

canvasBox.addEventListener("contextmenu", (event) => event.preventDefault());
canvasBox.addEventListener("pointerdown", (event) => {
  const { edit } = state;
  state.cross = null;
  const place = picture.at(event);
  drag = { place, last: place, button: event.button, shift: event.shiftKey };
  if (!edit || edit.sending || event.button > 2) return;
  if (edit.tool === "brush" || edit.tool === "eraser") {
    canvasBox.setPointerCapture(event.pointerId);
    drag.value = (edit.tool === "brush") !== (event.button === 2 || event.shiftKey) ? 1 : 0;
    edit.begin();
    edit.paint(place, place, edit.size, drag.value);
  } else if (edit.tool === "box") {
    canvasBox.setPointerCapture(event.pointerId);
  }
});
canvasBox.addEventListener("pointermove", (event) => {
  const { edit } = state;
  if (!edit) return;
  state.pointer = picture.at(event);
  const room = $("stage").getBoundingClientRect(); // the small picture makes way
  const x = (event.clientX - room.left) / room.width, high = event.clientY - room.top < 160;
  if (high && x > 0.6) $("pip").classList.add("aside");
  else if (high && x < 0.4) $("pip").classList.remove("aside");
  if (drag && drag.value !== undefined) {
    edit.paint(drag.last, state.pointer, edit.size, drag.value);
    drag.last = state.pointer;
  } else if (drag && edit.tool === "box") {
    edit.dragged = corners(drag.place, state.pointer);
  }
  drawMarks();
});
canvasBox.addEventListener("pointerleave", () => { state.pointer = null; drawMarks(); });
canvasBox.addEventListener("pointercancel", () => endDrag());
canvasBox.addEventListener("pointerup", (event) => {
  const { edit } = state, begun = drag;
  if (!begun) return;
  const place = picture.at(event), sign = event.button === 2 || event.shiftKey ? -1 : (edit?.sign ?? 1);
  endDrag();
  if (!edit) {
    const id = picture.labelAt(place);
    if (id) select(id);
    else if (event.button === 0 && !$("freeze").disabled) freeze(null, [...place, 1]);
    return;
  }
  if (edit.sending) return;
  if (edit.tool === "click") edit.click(...place, sign);
  else if (edit.tool === "box") edit.setBox(...corners(begun.place, place));
  else if (edit.tool === "polygon") addCorner(edit, place, sign);
});
canvasBox.addEventListener("dblclick", (event) => {
  if (state.edit?.tool !== "polygon") return;
  state.edit.corners = state.edit.corners.slice(0, -1); // the second click added a corner at the same place
  state.edit.polygon(event.shiftKey || state.edit.sign < 0 ? 0 : 1);
});

function addCorner(edit, place, sign) {
  const [first] = edit.corners;
  const near = first && Math.hypot(first[0] - place[0], first[1] - place[1]) * picture.scale < 10;
  if (near && edit.corners.length > 2) return edit.polygon(sign > 0 ? 1 : 0);
  edit.corners = [...edit.corners, place];
  showEdit();
}

function endDrag() {
  const { edit } = state;
  if (edit) {
    edit.dragged = null;
    if (drag?.value !== undefined) edit.end();
  }
  drag = null;
}

const corners = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];

// ---- the keyboard

function moveCross(dx, dy) {
  state.cross ??= [picture.width / 2, picture.height / 2];
  const [x, y] = state.cross;
  state.cross = [Math.min(Math.max(0, x + dx), picture.width - 1), Math.min(Math.max(0, y + dy), picture.height - 1)];
  drawMarks();
}

/** What Space does at the cross with the tool in use. */
function actAtCross(sign) {
  const { edit } = state, place = state.cross ?? (state.cross = [picture.width / 2, picture.height / 2]);
  if (edit.tool === "click") edit.click(...place, sign);
  else if (edit.tool === "polygon") addCorner(edit, place, sign);
  else if (edit.tool === "box") {
    if (state.anchor) { edit.setBox(...corners(state.anchor, place)); state.anchor = null; edit.dragged = null; }
    else state.anchor = place;
  } else {
    edit.begin();
    edit.paint(place, place, edit.size, (edit.tool === "brush") === sign > 0 ? 1 : 0);
    edit.end();
  }
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || document.querySelector("dialog[open]")) return;
  const { edit } = state, key = event.key, typed = event.target.matches("input[type=text], input[type=password]");
  if (typed) {
    if (key === "Enter" && edit) confirm();
    if (key === "Escape") event.target.blur();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && !["z", "y"].includes(key.toLowerCase())) return;
  const onControl = event.target.matches("button, input, a, summary, select");
  const step = event.shiftKey ? 20 : 4;
  const arrows = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (key in arrows) {
    if (onControl || !state.frame) return;
    moveCross(...arrows[key]);
    if (edit?.tool === "box" && state.anchor) edit.dragged = corners(state.anchor, state.cross);
    drawMarks();
  } else if (key === " ") {
    if (onControl) return;
    if (!edit) state.cross ? freeze(null, [...state.cross, 1]) : freeze();
    else actAtCross(event.shiftKey ? -1 : edit.sign);
  } else if (key === "Enter") {
    if (onControl) return;
    if (edit) confirm();
    else if (state.summary?.kind === "picture") $("save").click();
  } else if (!press(key, event)) return;
  event.preventDefault();
});

function press(key, event) {
  const { edit } = state;
  const letter = key.toLowerCase();
  if (key >= "1" && key <= "9" && !edit) return select(Number(key)) ?? true;
  const inEdit = {
    escape: leaveEdit, z: () => (event.shiftKey ? edit.redo() : edit.undo()), y: () => edit.redo(),
    c: () => useTool("click"), b: () => useTool("box"), d: () => useTool("brush"), e: () => useTool("eraser"), g: () => useTool("polygon"),
    "+": () => useSign(1), "=": () => useSign(1), "-": () => useSign(-1), "[": () => resize(-1), "]": () => resize(1),
  };
  const live = {
    k: () => state.selected && freeze(state.selected), r: () => state.selected && objectList.rename(state.selected),
    delete: () => state.selected && forget(state.selected), backspace: () => state.selected && forget(state.selected),
    p: () => $("pause").click(), v: () => $("record").click(), escape: () => select(null), j: nextStream,
  };
  const always = {
    s: () => $("snapshot").click(), u: () => $("upload").click(), t: () => $("theme").click(), "?": () => $("help-button").click(),
    o: () => { $("opacity").value = (Number($("opacity").value) + 25) % 125; applyDisplay(); },
    l: () => { $("outline").checked = !$("outline").checked; applyDisplay(); },
  };
  const run = (edit ? inEdit : live)[letter] ?? always[letter];
  if (!run) return false;
  run();
  return true;
}

function resize(step) {
  $("size").value = Number($("size").value) + step * 2;
  $("size").dispatchEvent(new Event("input"));
}

function nextStream() {
  const names = state.streams.map((one) => one.name);
  if (names.length) choose(names[(names.indexOf(state.current) + 1) % names.length]);
}

// ---- buttons

$("freeze").addEventListener("click", () => freeze());
$("cancel").addEventListener("click", leaveEdit);
$("confirm").addEventListener("click", confirm);
$("undo").addEventListener("click", () => state.edit?.undo());
$("redo").addEventListener("click", () => state.edit?.redo());
$("size").addEventListener("input", () => { if (state.edit) state.edit.size = Number($("size").value); drawMarks(); });
$("object-name").addEventListener("input", showEdit);
$("pause").addEventListener("click", () => {
  const verb = currentStream()?.state === "paused" ? "resume" : "pause";
  attempt(() => request("POST", path(state.current, `/${verb}`)));
});

$("stop").addEventListener("click", () => {
  const button = $("stop");
  if (!button.dataset.sure) { // a second click within three seconds ends it
    button.dataset.sure = "yes";
    button.lastChild.textContent = "Stop for good?";
    setTimeout(() => { delete button.dataset.sure; button.lastChild.textContent = "Stop"; }, 3000);
    return;
  }
  attempt(() => request("POST", path(state.current, "/stop")));
});

$("save").addEventListener("click", async () => {
  if (!(await attempt(() => request("POST", path(state.current, "/stop"))))) return;
  document.body.dataset.saved = "yes";
  say($("messages"), "Saved. You can close this page.", { seconds: 3600 });
  $("save").disabled = true;
});

$("snapshot").addEventListener("click", async () => {
  const frame = state.edit ? `?frame=${encodeURIComponent(state.edit.frozen.frame)}` : "";
  const blob = await attempt(() => request("GET", path(state.current, `/snapshot.zip${frame}`), undefined, { blob: true }));
  const seq = state.edit?.frozen.seq ?? state.frame?.header.seq ?? 0;
  if (blob) download(blob, `${state.current}-${String(seq).padStart(6, "0")}.zip`);
});

$("record").addEventListener("click", () => {
  if (state.recorder) return state.recorder.stop();
  if (!window.MediaRecorder || !state.frame) return say($("messages"), "This browser cannot record, or there is no picture yet.", { error: true });
  const type = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"].find((one) => MediaRecorder.isTypeSupported(one));
  const recorder = new MediaRecorder($("picture").captureStream(), { mimeType: type, videoBitsPerSecond: 8e6 });
  const parts = [], stream = state.current;
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    state.recorder = null;
    $("record").setAttribute("aria-pressed", "false");
    setText($("record").lastElementChild, "Record");
    recorder.stream.getTracks().forEach((one) => one.stop());
    const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    download(new Blob(parts, { type }), `${stream}-${stamp}.${type.includes("mp4") ? "mp4" : "webm"}`);
  };
  recorder.start(1000);
  state.recorder = recorder;
  $("record").setAttribute("aria-pressed", "true");
  setText($("record").lastElementChild, "Stop recording");
});

function download(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

$("upload").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  const answer = await attempt(() => request("PUT", path(state.current, "/mask.png"), file));
  if (answer) say($("messages"), `Objects ${answer.objects.join(", ")} of ${file.name} joined at frame ${answer.seq}.`);
});

// ---- display

function applyDisplay() {
  Object.assign(picture.style, { opacity: Number($("opacity").value) / 100, outline: $("outline").checked, names: $("labels").checked, color });
  setText($("opacity-value"), `${$("opacity").value} %`);
  save();
  picture.draw();
}

function save() {
  const display = { opacity: $("opacity").value, outline: $("outline").checked, labels: $("labels").checked };
  localStorage.setItem("streamvos", JSON.stringify({ ...display, theme: document.documentElement.dataset.theme, colors: state.colors }));
}

for (const id of ["opacity", "outline", "labels"]) $(id).addEventListener("input", applyDisplay);

$("theme").addEventListener("click", () => {
  const dark = (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  save();
});

$("help-button").addEventListener("click", () => $("help").showModal());
$("keys").append(...KEYS.flatMap(([keys, text]) => [h("dt", {}, ...keys.split(/\s+/).map((one) => h("kbd", {}, one)).flatMap((one) => [one, " "])), h("dd", {}, text)]));

function takeEvent(event) {
  const words = {
    state: () => `${event.stream}: ${event.state}${event.reason ? ` (${event.reason})` : ""}`,
    object: () => `${event.stream}: object ${event.object} ${event.state}`,
    annotated: () => `${event.stream}: objects ${event.objects.join(", ")} at frame ${event.seq}`,
    forgotten: () => `${event.stream}: object ${event.object} forgotten`,
    command: () => `${event.stream}: ${event.verb}`,
    lost: () => `pipeline unreachable: ${event.reason}`,
    connected: () => "pipeline connected",
  };
  const row = h("li", {}, h("time", {}, new Date(event.time * 1000).toTimeString().slice(0, 8)), h("span", {}, words[event.kind]?.() ?? event.kind));
  $("log").prepend(row);
  while ($("log").children.length > 100) $("log").lastChild.remove();
}

if (saved.theme) document.documentElement.dataset.theme = saved.theme;
if (saved.opacity !== undefined) $("opacity").value = saved.opacity;
if (saved.outline !== undefined) $("outline").checked = saved.outline;
if (saved.labels !== undefined) $("labels").checked = saved.labels;
if (matchMedia("(max-width: 820px)").matches) $("log-box").open = false;
window.addEventListener("pagehide", () => state.edit?.close());
window.addEventListener("hashchange", () => { start(); });
applyDisplay();
useTool("click");
start();
