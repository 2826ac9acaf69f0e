// What was done to running objects, and how it is undone: their former masks are carried to the newest frame.

import { path, request } from "./api.js";
import { say } from "./dom.js";
import { areaOf } from "./rle.js";
import { attempt, state } from "./state.js";

const MOST = 8; // changes that can be undone; each holds a frozen frame

const changes = [];

const release = ({ stream, frame }) =>
  request("DELETE", path(stream, `/frames/${frame}`), undefined, { keepalive: true }).catch(() => {});

/**
 * Remember a change.
 * @param frozen the frame before it, as the server has described it; it is kept, to carry masks from it
 * @param forget ids that were not there before
 * @param restore objects that get their masks of that frame back
 */
export function remember(frozen, label, forget, restore) {
  const masks = restore.filter((one) => one.rle && areaOf(one.rle.counts)).map(({ id, rle, name }) => ({ id, rle, name }));
  const change = { stream: frozen.stream, frame: frozen.frame, label, forget, masks };
  if (!forget.length && !masks.length) { // nothing of it can come back
    release(change);
    return null;
  }
  changes.push(change);
  if (changes.length > MOST) release(changes.shift());
  return { text: "Undo", run: () => undo(change) };
}

/** The frame that is shown, frozen before something is done that can be undone. */
export async function before() {
  if (!state.frame) return null;
  const { stream, seq, incarnation } = state.frame.header;
  const frozen = await request("POST", path(stream, "/frames"), { seq, incarnation }).catch(() => null);
  return frozen ?? request("POST", path(stream, "/frames"), {}).catch(() => null);
}

export function undoLast() {
  const own = changes.filter((one) => one.stream === state.current);
  if (own.length) undo(own.at(-1));
  else say("There is nothing to undo.");
}

async function undo(change) {
  const at = changes.indexOf(change);
  if (at < 0) return say("This can no longer be undone.");
  changes.splice(at, 1);
  const { stream, frame, label, forget, masks } = change;
  const done = await attempt(async () => {
    for (const id of forget) await request("DELETE", path(stream, `/objects/${id}`));
    if (!masks.length) return true;
    return request("POST", path(stream, "/annotate"), { frame, objects: masks });
  });
  release(change);
  if (done) say(`Undone: ${label}.${done.carried?.frames ? ` Former masks were carried over ${done.carried.frames} frames.` : ""}`);
}

/** The page is left: frozen frames are not needed any more. */
export const releaseAll = () => changes.splice(0).forEach(release);
