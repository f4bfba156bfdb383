#!/usr/bin/env node
/** Serves this folder to a browser on this machine, with the headers that let the page compute in threads. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { pipeline } from "node:stream";
import { parseArgs } from "node:util";

const USAGE = `usage: node serve.mjs [MODEL.onnx] [--port N] [--host ADDRESS]

MODEL.onnx  served as generator.onnx, which the page loads, and as scorer.onnx, which score.html does; without it,
            those of this folder
--port      default 8000; 0 takes a free one
--host      default 127.0.0.1, which no other machine reaches`;

const ROOT = import.meta.dirname;
const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".wasm": "application/wasm",
};

function fail(message) {
  console.error(`serve.mjs: ${message}`);
  process.exit(2);
}

function parse(argv) {
  const options = {
    port: { type: "string", default: "8000" },
    host: { type: "string", default: "127.0.0.1" },
    help: { type: "boolean", short: "h" },
  };
  let values, positionals;
  try {
    ({ values, positionals } = parseArgs({ args: argv, options, allowPositionals: true }));
  } catch (error) {
    fail(`${error.message.split(".")[0]}; see --help`);
  }
  if (values.help) {
    console.log(USAGE);
    process.exit(0);
  }
  if (positionals.length > 1) fail(`${positionals.length} arguments: give one model; see --help`);
  if (!/^\d{1,5}$/.test(values.port) || Number(values.port) > 65535) fail(`--port ${values.port}: give 0 to 65535`);
  return { model: positionals[0], port: Number(values.port), host: values.host };
}

/** The file that a request asks for; undefined where it asks for none in this folder. */
function fileOf(address, model) {
  let name;
  try {
    name = decodeURIComponent(new URL(address, "http://localhost").pathname);
  } catch {
    return undefined; // no address, or no UTF-8
  }
  if (model && (name === "/generator.onnx" || name === "/scorer.onnx")) return model;
  const file = path.join(ROOT, name === "/" ? "index.html" : name);
  return file.startsWith(ROOT + path.sep) && !file.includes("\0") ? file : undefined;
}

async function answer(request, response, model) {
  // The first two isolate the page, which threads require; the last lets changed files show.
  const headers = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
  };
  const refuse = (status, text) => response.writeHead(status, { ...headers, "Content-Type": "text/plain" }).end(text);
  if (request.method !== "GET" && request.method !== "HEAD") return refuse(405, "only GET and HEAD\n");
  const file = fileOf(request.url, model);
  const found = file && (await stat(file).catch(() => null));
  if (!found?.isFile()) return refuse(404, "no such file\n");
  response.writeHead(200, {
    ...headers,
    "Content-Type": TYPES[path.extname(file)] ?? "application/octet-stream",
    "Content-Length": found.size,
  });
  if (request.method === "HEAD") return response.end();
  return pipeline(createReadStream(file), response, (error) => {
    if (error && error.code !== "ERR_STREAM_PREMATURE_CLOSE") console.error(`serve.mjs: ${file}: ${error.message}`);
  });
}

const { model, port, host } = parse(process.argv.slice(2));
if (model && !(await stat(model).catch(() => null))?.isFile()) fail(`no ONNX file at ${model}`);
const server = http.createServer((request, response) => answer(request, response, model));
server.on("error", (error) => {
  const advice = error.code === "EADDRINUSE" ? "give another --port" : "give another --host or --port";
  fail(`cannot listen on ${host}:${port} (${error.code}): ${advice}`);
});
server.listen(port, host, () => {
  const address = host.includes(":") ? `[${host}]` : host;
  console.log(`http://${address}:${server.address().port}/ (Ctrl-C ends it)`);
});
