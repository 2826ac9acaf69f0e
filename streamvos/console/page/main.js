// The console's page: connects, and ties its parts together.

import { ApiError, Connection, keepToken, request } from "./api.js";
import { releaseAll } from "./changes.js";
import { $, say, setText } from "./dom.js";
import "./keys.js";
import { forget as forgetShown, showEmpty, showEvent, showTitle, take } from "./live.js";
import { onObject, showObjects } from "./objects.js";
import { forget, freeze, leave, select, showEdit, useSize } from "./selecting.js";
import { ask, attempt, currentStream, isPicture, picture, state } from "./state.js";
import { onChoose, showStreams } from "./streams.js";
import { applyDisplay, save, showTools } from "./tools.js";

const connection = new Connection({
  state: (isOpen) => {
    state.connected = isOpen;
    showConnection();
  },
  retry: () => start(),
  message: (message) => {
    if (message.type === "status") takeStatus(message);
    else if (message.type === "events") message.events.forEach(showEvent);
    else if (message.type === "problem") say(message.text, { error: true });
  },
  view: (header, jpeg) => take(header, jpeg, connection, (objects) => { showObjects(objects); if ($("freeze").disabled) showTools(); }),
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

function showConnection() {
  const problem = state.summary?.problem, pill = $("connection");
  setText(pill, !state.connected ? "console unreachable, retrying" : problem ? "pipeline unreachable" : "connected");
  pill.className = `pill ${state.connected && !problem ? "good" : "bad"}`;
  pill.title = problem ?? "";
}

function takeStatus(summary) {
  state.summary = summary;
  state.streams = summary.streams;
  document.body.dataset.kind = summary.kind;
  setText($("pipeline"), summary.pipeline);
  document.title = `${summary.pipeline} · streamvos`;
  setText($("method"), summary.method ? `method ${summary.method}` : "");
  showConnection();
  if (!currentStream()) {
    const wanted = new URLSearchParams(location.search).get("stream");
    choose((state.streams.find((one) => one.name === wanted) ?? state.streams[0])?.name ?? null);
  }
  showStreams();
  showTools();
  if (state.edit) showEdit();
  else showTitle();
  showEmpty();
  const stream = currentStream();
  if (stream && !stream.objects.length && !state.edit && state.frame && !state.frame.header.masked) showObjects([]);
}

function choose(name) {
  if (name === state.current && (state.frame || !name)) return;
  leave();
  Object.assign(state, { current: name, frame: null, live: null, selected: null, cross: null });
  picture.style.selected = null;
  picture.bitmap = null;
  forgetShown();
  connection.watch(name ?? "");
  showObjects([]);
  showStreams();
  showTools();
  showEmpty();
  showTitle();
}

onChoose(choose);
onObject({
  select: (id) => select(state.selected === id ? null : id),
  correct: (id) => freeze(id),
  rename: (id, name) => attempt(() => ask("PATCH", `/objects/${id}`, { name })),
  forget,
  colored: save,
});

$("token-form").addEventListener("submit", () => {
  keepToken($("token").value);
  start();
});
window.addEventListener("pagehide", () => { if (!isPicture()) { leave(); releaseAll(); } });
window.addEventListener("hashchange", () => start());
if (matchMedia("(max-width: 820px)").matches) $("detail-box").open = false;
applyDisplay();
useSize($("size").value);
start();
