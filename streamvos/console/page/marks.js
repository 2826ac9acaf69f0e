// What lies on the picture: names, clicks, boxes, polygons, the brush and the cross, as sharp as the screen.

import { brush } from "./paint.js";

const ON = "#12a150", BESIDE = "#d3222a";

/** Draw everything. `state` has edit, cross and pointer, in pixels of the frame. */
export function drawMarks(picture, { edit, cross, pointer }) {
  const { view, marks } = picture, dense = window.devicePixelRatio || 1;
  const context = marks.getContext("2d"), place = (one) => view.toStage(one);
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, marks.width, marks.height);
  if (!picture.width || picture.box.hidden) return;
  picture.drawNames(context, place, 13, view.room[0]);
  if (edit) {
    drawBox(context, place, edit.dragged ?? edit.now.box);
    edit.now.points.forEach(([x, y, sign]) => drawClick(context, ...place([x, y]), sign));
    drawCorners(context, place, edit.now.corners, pointer ?? cross);
    const at = pointer ?? cross;
    if (at && (edit.tool === "brush" || edit.tool === "eraser")) drawBrush(context, view, edit, at);
  }
  if (cross) drawCross(context, ...place(cross));
}

function drawBox(context, place, box) {
  if (!box) return;
  const [left, top] = place(box), [right, bottom] = place(box.slice(2));
  for (const [color, width, dash] of [["#000", 2.5, []], ["#fff", 1.5, [6, 4]]]) {
    context.setLineDash(dash);
    line(context, color, width);
    context.strokeRect(left, top, right - left, bottom - top);
  }
  context.setLineDash([]);
}

function drawClick(context, x, y, sign) {
  context.beginPath();
  context.arc(x, y, 6, 0, 7);
  context.fillStyle = sign > 0 ? ON : BESIDE;
  context.fill();
  line(context, "#fff", 1.5);
  context.stroke();
  context.beginPath();
  context.moveTo(x - 3, y);
  context.lineTo(x + 3, y);
  if (sign > 0) { context.moveTo(x, y - 3); context.lineTo(x, y + 3); }
  context.stroke();
}

function drawCorners(context, place, corners, pointer) {
  if (!corners.length) return;
  const places = corners.map(place);
  for (const [color, width] of [["#000", 3], ["#fff", 1.5]]) {
    line(context, color, width);
    context.beginPath();
    [...places, ...(pointer ? [place(pointer)] : [])].forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }
  context.fillStyle = "#fff";
  places.forEach(([x, y], n) => { const half = n ? 3 : 5; context.fillRect(x - half, y - half, 2 * half, 2 * half); });
}

/** The outline of exactly the pixels that the brush covers. */
function drawBrush(context, view, { tool, size, height, width }, at) {
  const rows = brush(at, size, height, width);
  if (!rows.length) return;
  const points = [];
  for (const [row, , last] of rows) points.push([last + 1, row], [last + 1, row + 1]);
  for (const [row, first] of rows.reverse()) points.push([first, row + 1], [first, row]);
  for (const [color, thick] of [["#000", 3], [tool === "brush" ? "#fff" : "#ff8a80", 1.5]]) {
    line(context, color, thick);
    context.beginPath();
    points.forEach((one, n) => (n ? context.lineTo(...view.toStage(one)) : context.moveTo(...view.toStage(one))));
    context.closePath();
    context.stroke();
  }
}

function drawCross(context, x, y) {
  for (const [color, width] of [["#000", 3.5], ["#fff", 1.5]]) {
    line(context, color, width);
    context.beginPath();
    context.moveTo(x - 12, y); context.lineTo(x - 3, y); context.moveTo(x + 3, y); context.lineTo(x + 12, y);
    context.moveTo(x, y - 12); context.lineTo(x, y - 3); context.moveTo(x, y + 3); context.lineTo(x, y + 12);
    context.stroke();
  }
}

function line(context, color, width) {
  context.strokeStyle = color;
  context.lineWidth = width;
}
