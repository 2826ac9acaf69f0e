// The console's HTTP API and its WebSocket.

const KEY = "streamvos-token";

/** The token: from the address the console printed, else from this tab. */
export function readToken() {
  const match = /(?:^#|&)token=([^&]+)/.exec(location.hash);
  if (match) {
    sessionStorage.setItem(KEY, decodeURIComponent(match[1]));
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(KEY) || "";
}

export function keepToken(token) { sessionStorage.setItem(KEY, token.trim()); }

export class ApiError extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

/** A request; the answer's JSON, or its blob. */
export async function request(method, path, body, { blob = false, keepalive = false } = {}) {
  const headers = { Authorization: `Bearer ${readToken()}` };
  const isFile = body instanceof Blob;
  if (body !== undefined && !isFile) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, keepalive, body: body === undefined || isFile ? body : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "the console does not answer");
  }
  if (!answer.ok) {
    const text = await answer.json().then((one) => one.error, () => answer.statusText);
    throw new ApiError(answer.status, text || `error ${answer.status}`);
  }
  if (answer.status === 204) return null;
  return blob ? answer.blob() : answer.json();
}

export const path = (stream, rest = "") => `/api/streams/${encodeURIComponent(stream)}${rest}`;

/** The WebSocket, opened again when it closes; knows the offset between this clock and the camera's. */
export class Connection {
  constructor(handlers) {
    this.handlers = handlers;
    this.stream = "";
    this.delay = 300;
    this.offset = null; // ms to add to performance.now() for the server's clock
    this.best = Infinity;
  }

  open() {
    clearTimeout(this.timer);
    const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/ws`;
    const socket = (this.socket = new WebSocket(address, ["streamvos", `token.${readToken()}`]));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.delay = 300;
      this.best = Infinity;
      this.handlers.state(true);
      this.ping();
      this.pings = setInterval(() => this.ping(), 2000);
      if (this.stream) this.watch(this.stream);
    };
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = () => {
      clearInterval(this.pings);
      this.handlers.state(false);
      this.timer = setTimeout(() => this.handlers.retry(), this.delay);
      this.delay = Math.min(5000, this.delay * 1.7);
    };
  }

  watch(stream) { this.stream = stream; this.send({ type: "watch", stream }); }

  drawn() { this.send({ type: "drawn" }); }

  ping() { this.send({ type: "ping", sent: performance.now() }); }

  send(fields) { if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(fields)); }

  take(data) {
    if (typeof data === "string") {
      const fields = JSON.parse(data);
      if (fields.type === "pong") return this.pong(fields);
      return this.handlers.message(fields);
    }
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    return this.handlers.view(header, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  }

  pong({ sent, now_ms }) {
    const now = performance.now(), trip = now - sent;
    this.best *= 1.05; // clocks drift apart, so an old measurement counts less and less
    if (trip > this.best) return;
    this.best = trip;
    this.offset = now_ms - (sent + now) / 2;
  }

  /** Ms between a moment of the server's clock and now; null before the clocks are known. */
  age(captured) { return this.offset === null ? null : performance.now() + this.offset - captured; }
}
