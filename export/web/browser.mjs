/** What the pages have in common: onnxruntime-web, and painting. */

import { toRGBA } from "./decoder.mjs";

// Where onnxruntime-web's two files lie: change this line where you serve them from another folder.
const RUNTIME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url);
const START_MS = 60_000; // the runtime is a download of 14 MB

let runtime;

/** onnxruntime-web, loaded once from a folder. */
export function startRuntime(folder = RUNTIME) {
  runtime ??= import(new URL("ort.wasm.bundle.min.mjs", folder)).then(
    (ort) => {
      ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", folder).href };
      // Threads share memory, which browsers allow to isolated pages alone.
      ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
      ort.env.wasm.initTimeout = START_MS;
      return ort;
    },
    (error) => {
      throw new Error(`onnxruntime-web is not at ${folder}: npm ci --ignore-scripts installs it`, { cause: error });
    },
  );
  return runtime;
}

/** Shows one of some images, {data, dims}, in a canvas. */
export function paint(canvas, images, index = 0) {
  const { data, width, height } = toRGBA(images, index);
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}
