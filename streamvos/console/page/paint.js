// Which pixels a brush or a polygon covers.

/**
 * Rows of a brush, as [row, first, last]; pixel-exact: its center is snapped to a pixel (odd sizes) or to a
 * corner between pixels (even sizes).
 */
export function brush([x, y], size, height, width) {
  const half = size / 2;
  const [cx, cy] = size % 2 ? [Math.floor(x) + 0.5, Math.floor(y) + 0.5] : [Math.round(x), Math.round(y)];
  const rows = [];
  for (let row = Math.max(0, Math.floor(cy - half)); row < Math.min(height, cy + half); row++) {
    const reach = Math.sqrt(Math.max(0, half * half - (row + 0.5 - cy) ** 2));
    const first = Math.max(0, Math.ceil(cx - reach - 0.5)), last = Math.min(width - 1, Math.floor(cx + reach - 0.5));
    if (last >= first) rows.push([row, first, last]);
  }
  return rows;
}

/** Draw a line with a brush. */
export function stroke(pixels, height, width, [x0, y0], [x1, y1], size, value) {
  const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(0.5, size / 4)));
  for (let n = 0; n <= steps; n++) {
    const place = [x0 + ((x1 - x0) * n) / steps, y0 + ((y1 - y0) * n) / steps];
    for (const [row, first, last] of brush(place, size, height, width)) pixels.fill(value, row * width + first, row * width + last + 1);
  }
}

/** Fill a polygon, even-odd: the pixels whose centers are inside. */
export function fill(pixels, height, width, corners, value) {
  for (let row = 0; row < height; row++) {
    const y = row + 0.5, crossings = [];
    for (let n = 0; n < corners.length; n++) {
      const [x0, y0] = corners[n], [x1, y1] = corners[(n + 1) % corners.length];
      if (y0 <= y !== y1 <= y) crossings.push(x0 + ((y - y0) / (y1 - y0)) * (x1 - x0));
    }
    crossings.sort((a, b) => a - b);
    for (let n = 0; n + 1 < crossings.length; n += 2) {
      const left = Math.max(0, Math.ceil(crossings[n] - 0.5)), right = Math.min(width, Math.ceil(crossings[n + 1] - 0.5));
      if (right > left) pixels.fill(value, row * width + left, row * width + right);
    }
  }
}
