// The picture: frame and masks on one canvas, which recording sees; names and marks lie on another.

import { decodeInto } from "./rle.js";
import { Viewport } from "./viewport.js";

const PALETTE = ["#ff4d5e", "#3fa7ff", "#ffc43d", "#37d67a", "#c77dff", "#ff8a3d", "#2fd6d0", "#ff6ec7",
  "#a8d432", "#7f8cff", "#e0a070", "#5ce1a6"];

export const defaultColor = (id) => PALETTE[(id - 1) % PALETTE.length];

export class Picture {
  constructor(stage, box, canvas, marks) {
    Object.assign(this, { stage, box, canvas, marks });
    this.context = canvas.getContext("2d");
    this.layer = document.createElement("canvas");
    this.view = new Viewport();
    this.width = this.height = 0;
    this.bitmap = null;
    this.labels = null; // Uint8Array, row by row
    this.objects = [];
    this.style = { opacity: 0.45, outline: true, names: true, color: defaultColor, selected: null, recorded: false };
    this.onlayout = () => {};
    new ResizeObserver(() => this.layout()).observe(stage);
  }

  /** Show a frame and its objects. */
  show(bitmap, size, objects) {
    if (this.bitmap && this.bitmap !== bitmap && this.bitmap !== this.kept) this.bitmap.close?.();
    this.bitmap = bitmap;
    if (size[0] !== this.height || size[1] !== this.width) {
      [this.height, this.width] = size;
      this.times = Math.max(1, Math.round(640 / this.width)); // so that names in a recording are not coarse
      this.canvas.width = this.width * this.times;
      this.canvas.height = this.height * this.times;
      this.layer.width = this.width;
      this.layer.height = this.height;
      this.layout();
    }
    this.setLabels(labelsOf(objects, this.height, this.width), objects);
  }

  /** Replace the label map and the objects in it, and draw. */
  setLabels(labels, objects) {
    Object.assign(this, { labels, objects });
    this.draw();
  }

  draw() {
    if (!this.bitmap) return;
    const { context, canvas } = this;
    context.imageSmoothingEnabled = !this.coarse;
    context.drawImage(this.bitmap, 0, 0, canvas.width, canvas.height);
    if (this.labels) {
      this.paint();
      context.drawImage(this.layer, 0, 0, canvas.width, canvas.height);
    }
    if (this.style.recorded) this.drawNames(context, ([x, y]) => [x * this.times, y * this.times], Math.max(12, Math.round(canvas.width / 60)), canvas.width);
  }

  /** Colors and outlines of the label map into the layer. */
  paint() {
    const { width, height, labels, style } = this;
    const target = this.layer.getContext("2d", { willReadFrequently: true });
    const image = target.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const fill = new Uint32Array(256), edge = new Uint32Array(256);
    for (const { id } of this.objects) {
      const [r, g, b] = rgb(style.color(id));
      const alpha = Math.round(255 * style.opacity);
      fill[id] = ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
      edge[id] = id === style.selected ? 0xffffffff : ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    }
    const thick = Math.max(1, Math.round(Math.max(width, height) / 640));
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const id = labels[at];
        if (!id) continue;
        const outside = style.outline && (
          (x >= thick && labels[at - thick] !== id) || (x < width - thick && labels[at + thick] !== id) ||
          (y >= thick && labels[at - thick * width] !== id) || (y < height - thick && labels[at + thick * width] !== id));
        pixels[at] = outside ? edge[id] : fill[id];
      }
    }
    target.putImageData(image, 0, 0);
  }

  /** Names above their objects; `place` turns pixels of the frame into those of the context. */
  drawNames(context, place, size, width) {
    if (!this.style.names) return;
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textBaseline = "top";
    for (const { id, name, box } of this.objects) {
      if (!box) continue;
      const text = name || `${id}`, wide = context.measureText(text).width + size * 0.7;
      const [left, top] = place(box);
      const x = Math.min(Math.max(0, left), width - wide), y = Math.max(0, top - size * 1.5);
      context.fillStyle = this.style.color(id);
      context.fillRect(x, y, wide, size * 1.35);
      context.fillStyle = isBright(this.style.color(id)) ? "#111" : "#fff";
      context.fillText(text, x + size * 0.35, y + size * 0.2);
    }
  }

  /** Fit the picture into the stage; on a phone the stage follows the picture. */
  layout() {
    if (!this.width) return;
    const { stage } = this;
    const isNarrow = matchMedia("(max-width: 820px)").matches;
    stage.style.height = isNarrow ? `${Math.round(Math.min(window.innerHeight * 0.62, (stage.clientWidth * this.height) / this.width))}px` : "";
    this.view.resize([stage.clientWidth, stage.clientHeight], [this.width, this.height]);
    const dense = window.devicePixelRatio || 1;
    this.marks.width = Math.round(stage.clientWidth * dense);
    this.marks.height = Math.round(stage.clientHeight * dense);
    this.place();
  }

  /** Show the part of the picture that the viewport says. */
  place() {
    const { view, box, canvas } = this;
    const before = this.coarse;
    this.coarse = view.zoom > 1 && view.scale >= 3; // pixels are seen as squares
    box.style.width = `${this.width * view.fit}px`;
    box.style.height = `${this.height * view.fit}px`;
    box.style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.zoom})`;
    canvas.classList.toggle("coarse", this.coarse);
    this.stage.classList.toggle("zoomed", view.zoom > 1);
    if (before !== this.coarse) this.draw();
    this.onlayout();
  }

  /** Place of a pointer in the stage. */
  inStage(event) {
    const room = this.stage.getBoundingClientRect();
    return [event.clientX - room.left, event.clientY - room.top];
  }

  /** Pixel of the frame under a pointer. */
  at(event) {
    const [x, y] = this.view.toFrame(this.inStage(event));
    return [Math.min(Math.max(0, x), this.width - 0.01), Math.min(Math.max(0, y), this.height - 0.01)];
  }

  labelAt([x, y]) { return this.labels ? this.labels[Math.floor(y) * this.width + Math.floor(x)] : 0; }
}

export function labelsOf(objects, height, width) {
  const drawn = objects.filter((one) => one.rle);
  if (!drawn.length) return null;
  const labels = new Uint8Array(height * width);
  for (const { id, rle } of drawn) decodeInto(labels, rle.counts, height, width, id);
  return labels;
}

function rgb(color) {
  const value = parseInt(color.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

function isBright(color) {
  const [r, g, b] = rgb(color);
  return 0.3 * r + 0.59 * g + 0.11 * b > 140;
}
