// The buttons below the picture, and how it is displayed.

import { before, remember } from "./changes.js";
import { $, download, say, setText, twice } from "./dom.js";
import { ask, attempt, currentStream, isOver, isPicture, marks, picture, saved, state } from "./state.js";

export function showTools() {
  const stream = currentStream(), over = isOver(stream);
  const isPaused = stream?.state === "paused";
  for (const id of ["pause", "record", "stop"]) $(id).hidden = isPicture();
  $("save").hidden = !isPicture();
  setText($("pause").lastElementChild, isPaused ? "Resume" : "Pause");
  $("pause").querySelector("use").setAttribute("href", isPaused ? "#i-play" : "#i-pause");
  for (const id of ["pause", "stop", "upload"]) $(id).disabled = over;
  $("freeze").disabled = over || !stream.shows_frames || !state.frame;
  for (const id of ["snapshot", "record"]) $(id).disabled = !state.frame;
  if (isPicture()) $("save").disabled = over || !stream?.objects.length;
}

$("pause").addEventListener("click", () => attempt(() => ask("POST", currentStream()?.state === "paused" ? "/resume" : "/pause")));

twice($("stop"), "Stop for good?", () => attempt(() => ask("POST", "/stop")));

$("save").addEventListener("click", async () => {
  if (!(await attempt(() => ask("POST", "/stop")))) return;
  document.body.dataset.saved = "yes";
  say("Saved. You can close this page.", { seconds: 3600 });
  $("save").disabled = true;
});

$("snapshot").addEventListener("click", async () => {
  const frame = state.edit ? `?frame=${encodeURIComponent(state.edit.frozen.frame)}` : "";
  const blob = await attempt(() => ask("GET", `/snapshot.zip${frame}`, undefined, { blob: true }));
  const seq = state.edit?.frozen.seq ?? state.frame?.header.seq ?? 0;
  if (blob) download(blob, `${state.current}-${String(seq).padStart(6, "0")}.zip`);
});

// ---- recording

$("record").addEventListener("click", () => {
  if (state.recorder) return state.recorder.stop();
  if (!window.MediaRecorder || !state.frame) return say("This browser cannot record, or there is no picture yet.", { error: true });
  const type = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"].find((one) => MediaRecorder.isTypeSupported(one));
  const recorder = new MediaRecorder($("picture").captureStream(), { mimeType: type, videoBitsPerSecond: 8e6 });
  const parts = [], stream = state.current;
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    showRecording(null);
    recorder.stream.getTracks().forEach((one) => one.stop());
    const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    download(new Blob(parts, { type }), `${stream}-${stamp}.${type.includes("mp4") ? "mp4" : "webm"}`);
  };
  recorder.start(1000);
  showRecording(recorder);
});

function showRecording(recorder) {
  state.recorder = recorder;
  picture.style.recorded = Boolean(recorder);
  $("record").setAttribute("aria-pressed", String(Boolean(recorder)));
  setText($("record").lastElementChild, recorder ? "Stop recording" : "Record");
}

// ---- a label map

$("upload").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  const frozen = await before();
  const answer = await attempt(() => ask("PUT", "/mask.png", file));
  if (!answer) return;
  const former = frozen?.objects ?? [], added = answer.objects.filter((id) => !former.some((one) => one.id === id));
  const action = frozen && remember(frozen, `label map ${file.name}`, added, former);
  say(`Objects ${answer.objects.join(", ")} of ${file.name} joined at frame ${answer.seq}.`, { action, seconds: 8 });
});

// ---- display

export function applyDisplay() {
  Object.assign(picture.style, { opacity: Number($("opacity").value) / 100, outline: $("outline").checked, names: $("labels").checked });
  setText($("opacity-value"), `${$("opacity").value} %`);
  save();
  picture.draw();
  marks();
}

export function save() {
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

if (saved.theme) document.documentElement.dataset.theme = saved.theme;
if (saved.opacity !== undefined) $("opacity").value = saved.opacity;
if (saved.outline !== undefined) $("outline").checked = saved.outline;
if (saved.labels !== undefined) $("labels").checked = saved.labels;
