// What the page's parts share.

import { request, path } from "./api.js";
import { $, say } from "./dom.js";
import { Picture, defaultColor } from "./view.js";
import { drawMarks } from "./marks.js";

export const saved = JSON.parse(localStorage.getItem("streamvos") || "{}");

export const state = {
  connected: false,
  summary: null, // what the server says of the pipeline
  streams: [],
  current: null, // name of the stream that is watched
  frame: null, // the newest one, of which the header is kept
  live: null, // its picture
  edit: null, // the selection in a frozen frame
  selected: null, // id of an object
  cross: null, // where the keyboard points, in pixels of the frame
  pointer: null, // where the mouse points
  recorder: null,
  colors: saved.colors ?? {},
};

export const picture = new Picture($("stage"), $("canvas-box"), $("picture"), $("marks"));

export const currentStream = () => state.streams.find((one) => one.name === state.current);

export const isPicture = () => state.summary?.kind === "picture";

export const isOver = (stream) => !stream || ["ended", "failed"].includes(stream.state);

const colorKey = (id) => `${state.current}/${id}`;

export const color = (id) => state.colors[colorKey(id)] ?? defaultColor(id);

export function setColor(id, value) {
  state.colors[colorKey(id)] = value;
}

export const nameOf = (id) => state.frame?.header.objects.find((one) => one.id === id)?.name || `object ${id}`;

/** A request about the current stream. */
export const ask = (method, rest, body, options) => request(method, path(state.current, rest), body, options);

/** What `run` gives, or true; null after an error, which is shown. */
export async function attempt(run) {
  try {
    return (await run()) ?? true;
  } catch (error) {
    say(error.message, { error: true });
    return null;
  }
}

export const marks = () => drawMarks(picture, state);
picture.onlayout = marks;
picture.style.color = color;
