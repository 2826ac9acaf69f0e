// The API's description, from openapi.json, without a CDN.

import { h } from "./dom.js";

const content = document.getElementById("content");
const api = await (await fetch("/openapi.json")).json();
document.getElementById("intro").textContent = api.info.description.replaceAll("`", "");

const groups = new Map();
for (const [path, verbs] of Object.entries(api.paths)) {
  for (const [verb, one] of Object.entries(verbs)) {
    const tag = one.tags?.[0] ?? "other";
    if (!groups.has(tag)) groups.set(tag, []);
    groups.get(tag).push({ path, verb: verb.toUpperCase(), one });
  }
}
for (const [tag, calls] of groups) {
  content.append(h("h2", {}, tag));
  for (const { path, verb, one } of calls) {
    const text = one.description ?? "";
    const [first] = text.split("\n");
    const body = h("div", { class: "body" }, ...text.split("\n\n").map((part) => h("p", {}, part.replaceAll("`", ""))));
    const rows = (one.parameters ?? []).map((p) => h("tr", {}, h("td", {}, h("code", {}, p.name)), h("td", {}, p.in), h("td", {}, typeOf(p.schema))));
    const schema = resolve(one.requestBody?.content?.["application/json"]?.schema);
    for (const [name, p] of Object.entries(schema?.properties ?? {})) {
      const needed = schema.required?.includes(name) ? "body, required" : "body";
      rows.push(h("tr", {}, h("td", {}, h("code", {}, name)), h("td", {}, needed), h("td", {}, [typeOf(p), p.description].filter(Boolean).join("; "))));
    }
    if (rows.length) body.append(h("table", {}, ...rows));
    const data = schema ? ` \\\n  -H 'Content-Type: application/json' -d '{...}'` : "";
    const needsToken = path.startsWith("/api/") || path === "/metrics" ? ` -H "Authorization: Bearer $TOKEN"` : "";
    body.append(h("pre", {}, `curl -X ${verb}${needsToken} ${location.origin}${path}${data}`));
    content.append(h("details", {}, h("summary", {}, h("b", {}, verb), h("code", {}, path), h("span", {}, first.replaceAll("`", ""))), body));
  }
}
content.append(
  h("h2", {}, "WebSocket"),
  h("p", {}, "/api/ws with the subprotocols “streamvos” and “token.TOKEN”. The page sends JSON: {type: “watch”, stream}, {type: “drawn”} after each picture (at most 2 are on the way), {type: “ping”, sent}. It gets JSON: “status”, “events”, “pong” {sent, now_ms}, “problem”; and binary views: the length of a JSON header (4 bytes, little endian), the header (stream, seq, captured_ms, size, objects with rle), the frame as JPEG."),
);

function resolve(schema) {
  if (!schema) return null;
  if (schema.anyOf) return resolve(schema.anyOf.find((one) => one.type !== "null"));
  if (schema.$ref) return api.components.schemas[schema.$ref.split("/").at(-1)];
  return schema;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.type === "array") return schema.prefixItems ? `[${schema.prefixItems.map(typeOf).join(", ")}]` : `list of ${typeOf(schema.items)}`;
  if (schema.enum) return schema.enum.join(" or ");
  const range = [schema.minimum, schema.maximum].some((one) => one !== undefined) ? ` ${schema.minimum ?? ""}..${schema.maximum ?? ""}` : "";
  return `${schema.type ?? "any"}${range}`;
}
