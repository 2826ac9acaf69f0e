// What comes from the server: frames with their masks, the status, events.

import { $, h, setText } from "./dom.js";
import { currentStream, isOver, isPicture, marks, nameOf, picture, state } from "./state.js";

const LATENCIES = 31; // of which the median is shown

let next = null, isDrawing = false, latencies = [];

/** Show a frame when there is time; the newest wins. `drawn` is called after each. */
export function take(header, jpeg, connection, showObjects) {
  next = { header, jpeg };
  if (!isDrawing) draw(connection, showObjects);
}

/** Nothing has been shown of the stream that is watched now. */
export function forget() {
  next = null;
  forgetLatency();
}

function forgetLatency() {
  latencies = [];
  setText($("latency"), "");
}

async function draw(connection, showObjects) {
  isDrawing = true;
  while (next) {
    const { header, jpeg } = next;
    next = null;
    try {
      const bitmap = await createImageBitmap(jpeg);
      if (header.stream === state.current) await show(header, bitmap, connection, showObjects);
      else bitmap.close();
    } catch (error) {
      console.error(error);
    }
    connection.drawn();
  }
  isDrawing = false;
}

async function show(header, bitmap, connection, showObjects) {
  const isFirst = !state.frame;
  state.frame = { header };
  keepLive(bitmap);
  if (state.edit) {
    showSmall(bitmap);
    return showTitle();
  }
  if (isFirst) showEmpty();
  picture.show(bitmap, header.size, header.objects);
  showObjects(header.objects);
  marks();
  await frameDrawn();
  noteLatency(connection.age(header.captured_ms), header);
  showTitle();
}

/** The newest live picture, kept while a frozen one is shown. */
function keepLive(bitmap) {
  if (state.live && state.live !== bitmap && state.live !== picture.bitmap) state.live.close();
  state.live = bitmap;
}

function frameDrawn() {
  return new Promise((done) => {
    const timer = setTimeout(done, 100); // in a tab that is hidden, no frame is drawn
    requestAnimationFrame(() => { clearTimeout(timer); done(); });
  });
}

function noteLatency(age, header) {
  const stream = currentStream();
  if (isPicture() || age === null || (stream && stream.state !== "running")) return;
  latencies = [...latencies, age].slice(-LATENCIES);
  const median = [...latencies].sort((a, b) => a - b)[latencies.length >> 1];
  document.body.dataset.latency = median.toFixed(1);
  const mask = header.mask_ms === null ? "" : `mask ${header.mask_ms.toFixed(0)} ms · `;
  setText($("latency"), `${mask}screen ${median.toFixed(0)} ms`);
}

function showSmall(bitmap) {
  const canvas = $("pip-canvas");
  canvas.height = Math.round((canvas.width * bitmap.height) / bitmap.width);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  $("pip").hidden = isPicture();
}

/** The bar above the picture. */
export function showTitle() {
  const { edit, frame } = state, stream = currentStream();
  $("bar").classList.toggle("frozen", Boolean(edit));
  let title = state.current ?? "", note = "";
  if (edit) {
    const since = frame && frame.header.incarnation === edit.frozen.incarnation ? frame.header.seq - edit.frozen.seq : 0;
    title = edit.isNew ? `New object ${edit.target}` : `Correcting ${nameOf(edit.target)}`;
    const notes = [];
    if (!isPicture()) notes.push(since > 0 ? `frozen at ${edit.frozen.seq}; the stream went on by ${since} frames` : `frozen at ${edit.frozen.seq}`);
    if (edit.score !== null) notes.push(`quality ${edit.score.toFixed(2)}`);
    note = notes.join(" · ");
  } else if (frame && stream && stream.state !== "still") {
    const { seq, size } = frame.header;
    note = `frame ${seq} · ${size[1]} × ${size[0]}${stream.publishes ? "" : " · publishes no masks"}`;
  }
  if (stream && stream.state !== "running") forgetLatency();
  setText($("title"), title);
  setText($("frame-note"), note);
  showBadge(stream);
}

/** What the picture is, if it is not simply live. */
function showBadge(stream) {
  let text = "";
  if (!state.edit && state.frame && stream) {
    if (stream.state === "paused") text = "Paused: the last frame";
    else if (stream.state === "waiting") text = `Waiting: ${stream.reason || "no frame comes"}; the last frame`;
    else if (isOver(stream)) text = `${stream.state === "failed" ? "Failed" : "Ended"}${stream.reason ? `: ${stream.reason}` : ""}; the last frame`;
    else if (["starting", "recovering"].includes(stream.state)) text = `${stream.state === "starting" ? "Starting" : "Recovering"}${stream.last_failure ? `: ${stream.last_failure}` : ""}; the last frame`;
    else if (!stream.shows_frames) text = "Masks only: the frames stay on another machine";
  }
  $("badge").hidden = !text;
  setText($("badge"), text);
}

/** What stands where there is no picture. */
export function showEmpty() {
  const stream = currentStream();
  const isEmpty = !state.frame && !state.edit;
  $("empty").hidden = !isEmpty;
  $("canvas-box").hidden = isEmpty;
  $("zoom").hidden = isEmpty;
  let text = "Waiting for the first frame";
  if (!state.summary) text = "Connecting";
  else if (!stream) text = state.summary.problem || "This pipeline has no stream yet. Add a camera or a video, and select objects in it.";
  else if (stream.state === "paused") text = "Paused before this page could get a frame. It comes after Resume.";
  else if (isOver(stream)) text = `The stream has ${stream.state}. ${stream.reason}`;
  else if (!stream.shows_frames) text = "The frames of this stream stay on another machine. Its masks are shown as soon as it follows an object: upload a label map.";
  else if (stream.reason || stream.last_failure) text = `Waiting: ${stream.reason || stream.last_failure}`;
  setText($("empty-text"), text);
  $("empty-add").hidden = Boolean(stream) || Boolean(state.summary?.problem) || !state.summary || isPicture();
  marks();
}

/** A line of the log. */
export function showEvent(event) {
  const words = {
    state: () => `${event.stream}: ${event.state}${event.reason ? ` (${event.reason})` : ""}`,
    object: () => `${event.stream}: object ${event.object} ${event.state}`,
    annotated: () => `${event.stream}: objects ${event.objects.join(", ")} at frame ${event.seq}`,
    forgotten: () => `${event.stream}: object ${event.object} forgotten`,
    command: () => `${event.stream}: ${event.verb}`,
    added: () => `${event.stream}: added`,
    removed: () => `${event.stream}: removed`,
    lost: () => `pipeline unreachable: ${event.reason}`,
    connected: () => "pipeline connected",
  };
  const time = new Date(event.time * 1000).toTimeString().slice(0, 8);
  $("log").prepend(h("li", {}, h("time", {}, time), h("span", {}, words[event.kind]?.() ?? event.kind)));
  while ($("log").children.length > 100) $("log").lastChild.remove();
}
