/**
 * Generators, decoders and priors exported as ONNX, with onnxruntime-node in Node or onnxruntime-web in a page: give
 * them the one or the other.
 *
 *     const generator = await Generator.load(ort, "generator.onnx");
 *     const images = await generator.sample(16, 0);
 *     const { data, width, height } = toRGBA(images, 3); // the fourth, for new ImageData(data, width, height)
 */

// A download may take as long as it likes while bytes come in.
const STALL_MS = 30_000;

/** A model, latents, noise or images that cannot be used: the message says what, where and what to do. */
export class DecoderError extends Error {
  name = "DecoderError";
}

let turn = Promise.resolve();

/** Runs work after all that came before: runs of onnxruntime-web, of all its models, share a stack, which those under
 * way at once would free under each other. */
export function inTurn(work) {
  const run = turn.then(work);
  turn = run.catch(() => {}); // the caller hears of it; the next one runs all the same
  return run;
}

/**
 * What decoders, generators and priors have in common: rows of `latentDim` numbers in, one tensor out.
 *
 * Of a conditional model they take a condition too, of all the rows or of each: the name of a class or attribute; an
 * object of attributes, {glasses: true, hat: false}; or numbers, in a Float32Array say, as many as the condition has
 * names, once or for each row: 1 for what an image has, -1 for an attribute that it lacks, 0 for what is not known.
 * Without one nothing is known, and images are of any kind.
 */
class Network {
  static types = ["float32"]; // of what it returns
  #ort;
  #session;

  /**
   * Reads a network of this kind.
   *
   * @param ort the module onnxruntime-node or onnxruntime-web, 1.22 or newer.
   * @param {string | URL | Blob | ArrayBuffer | Uint8Array} source the .onnx file: its address in a page, its path or
   *     address in Node, or the file itself.
   * @param {object} options onnxruntime's session options, {executionProviders: ["webgpu"]} say.
   * @returns {Promise<Network>} of the class that this is called of.
   * @throws {DecoderError} the file is missing, damaged, or something else.
   * @throws {Error} onnxruntime itself did not start.
   */
  static load(ort, source, options = {}) {
    return construct(ort, source, options, () => this);
  }

  /** Use `load`. */
  constructor(ort, session, name, condition = null) {
    const { kind, input, output, rank, types } = this.constructor;
    if (!this.constructor.fits(session)) {
      const wanted = `a ${kind} has ${input} and ${output}`;
      throw new DecoderError(`${name} is not a ${kind}: it has ${namesOf(session).join(", ")} where ${wanted}`);
    }
    if (!session.inputMetadata) throw new Error("this onnxruntime does not tell shapes: install 1.22 or newer");
    const asked = session.inputMetadata[1]?.shape.slice(1).join(" x ") ?? "";
    if (asked !== String(condition?.names.length ?? "")) {
      const takes = asked ? `conditions of ${asked} numbers` : "no conditions";
      throw new DecoderError(
        `${name} takes ${takes}, and its metadata name ${condition?.names.length ?? "none"}: export it again`,
      );
    }
    const values = [session.inputMetadata[0], session.outputMetadata[0]];
    const shapes = values.map((value) => value.shape.slice(1));
    const wrong = (what) => new DecoderError(`${name} is not a ${kind}: ${input} is ${what[0]}, ${output} ${what[1]}`);
    if (shapes[0].length !== 1 || shapes[1].length !== rank || !shapes.flat().every(Number.isInteger)) {
      throw wrong(shapes.map((shape) => `[batch, ${shape}]`));
    }
    if (values[0].type !== "float32" || !types.includes(values[1].type)) {
      throw wrong([values[0].type, `${values[1].type}, not float32${types.length > 1 ? " or uint8" : ""}`]);
    }
    this.#ort = ort;
    this.#session = session;
    /** The name of what it takes: "z", latents, or "noise", standard normal. */
    this.input = input;
    /** Numbers in a row of it. */
    this.latentDim = shapes[0][0];
    /** Of what it returns for a row: [height, width, channels], or [latentDim]. */
    this.outputShape = shapes[1];
    /** The type of that: "float32", or of images "uint8" too. */
    this.outputType = values[1].type;
    /**
     * What it can be asked for: {names: [...], exclusive}, `exclusive` if these are classes, of which an image has one,
     * rather than attributes; null if it takes no condition.
     */
    this.condition = condition;
  }

  /** Whether a session has this kind's inputs and outputs. */
  static fits(session) {
    const names = namesOf(session);
    return [`${this.input},${this.output}`, `${this.input},condition,${this.output}`].includes(names.join());
  }

  /**
   * What the network makes of rows.
   *
   * Any number of calls may be under way at once; they run one after another.
   *
   * @param rows n rows of latentDim numbers, or n * latentDim numbers in one list; lists are arrays or typed arrays.
   * @param condition of a conditional model, as above; null for any kind.
   * @returns {Promise<{data: Float32Array | Uint8Array, dims: number[]}>} dims is [n, ...outputShape].
   * @throws {DecoderError} rows or conditions of another size, that are not numbers, or not finite; or a condition that
   *     the model does not know.
   */
  async run(rows, condition = null) {
    const values = this.#pack(rows);
    const count = values.length / this.latentDim;
    const asked = this.#conditions(condition, count);
    const feeds = { [this.input]: new this.#ort.Tensor("float32", values, [count, this.latentDim]) };
    if (asked) feeds.condition = new this.#ort.Tensor("float32", asked, [count, asked.length / count]);
    const { data, dims } = (await inTurn(() => this.#session.run(feeds)))[this.constructor.output];
    return { data, dims: [...dims] };
  }

  /**
   * As `run`, `size` rows at a time: of many, what is between the layers takes much memory, and a page that waits for
   * all of them stands still.
   */
  async *batches(rows, size = 32, condition = null) {
    const values = this.#pack(rows);
    const count = values.length / this.latentDim;
    const asked = this.#conditions(condition, count);
    for (let start = 0; start < count; start += size) {
      const part = (all) => all && all.subarray((start * all.length) / count, ((start + size) * all.length) / count);
      yield await this.run(part(values), part(asked));
    }
  }

  #pack(rows) {
    return pack(rows, this.latentDim, this.input === "z" ? "latents" : "noise", this.constructor.kind);
  }

  #conditions(asked, count) {
    return conditions(this.condition, asked, count, this.constructor.kind);
  }

  /**
   * Draws rows from the standard normal; the same seed gives the same ones, and the first of a larger count too.
   *
   * @param {number} count whole, from 1 on.
   * @param {number} seed whole, from 0 to 2**32 - 1. Not numpy's: other numbers than the Python runtime's.
   * @returns {Float32Array} count * latentDim numbers.
   * @throws {DecoderError} count or seed is something else.
   */
  draw(count, seed) {
    if (!Number.isInteger(count) || count < 1) {
      throw new DecoderError(`count is ${describe(count)}: give a whole number from 1 on`);
    }
    return Float32Array.from({ length: count * this.latentDim }, standardNormal(seed));
  }

  /** Frees the memory that onnxruntime holds, after the calls under way. */
  async release() {
    await inTurn(() => this.#session.release());
  }
}

/** What decoders and generators have in common: `run` gives images, values in [0, 1], or 0..255 in a Uint8Array. */
class Images extends Network {
  static output = "image";
  static rank = 3;
  static types = ["float32", "uint8"];

  /** [height, width, channels] */
  get imageShape() {
    return this.outputShape;
  }

  /**
   * Images of `draw(count, seed)`, all in one batch.
   *
   * @returns {Promise<{data, dims, drawn: Float32Array}>} as `run`, and what was drawn.
   * @throws {DecoderError} count or seed is none, or the model does not know the condition.
   */
  async sample(count, seed, condition = null) {
    const drawn = this.draw(count, seed);
    return { ...(await this.run(drawn, condition)), drawn };
  }
}

/** Prior and decoder in one: standard normal noise to images. Samples are made with it. */
export class Generator extends Images {
  static kind = "generator";
  static input = "noise";

  /** Images of noise: as `run`. */
  generate(noise, condition = null) {
    return this.run(noise, condition);
  }
}

/** Latents to images: those of an encoder, or edited ones. Standard normal draws are right where the prior is that. */
export class Decoder extends Images {
  static kind = "decoder";
  static input = "z";

  /** Images of latents: as `run`. */
  decode(z, condition = null) {
    return this.run(z, condition);
  }
}

/** Standard normal noise to latents, to be changed and decoded. */
export class Prior extends Network {
  static kind = "prior";
  static input = "noise";
  static output = "z";
  static rank = 1;

  /**
   * Latents of noise.
   *
   * @returns {Promise<Float32Array>} n * latentDim numbers.
   */
  async latents(noise, condition = null) {
    return (await this.run(noise, condition)).data;
  }
}

/**
 * Reads a generator or a decoder, whichever the file is by the name of its input.
 *
 * @param ort, source, options as for `Generator.load`.
 * @returns {Promise<Generator | Decoder>}
 * @throws {DecoderError} the file is missing, damaged, or neither.
 */
export function load(ort, source, options = {}) {
  return construct(ort, source, options, (session, name) => {
    const found = [Generator, Decoder].find((kind) => kind.fits(session));
    if (found) return found;
    const wanted = "a decoder has z and image, and a generator noise and image";
    const names = namesOf(session).join(", ");
    throw new DecoderError(`${name} is neither generator nor decoder: it has ${names} where ${wanted}`);
  });
}

/** A file opened as the class that `classOf` names for it. */
export async function construct(ort, source, options, classOf) {
  const { name, bytes } = await read(source);
  await checkSum(name, bytes);
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, options);
  } catch (error) {
    // onnxruntime's errors share no class; those of a runtime that does not start name the backend.
    if (/\bbackend\b/i.test(error.message)) {
      throw new Error(`onnxruntime did not start: ${error.message}`, { cause: error });
    }
    throw new DecoderError(
      `${name} is not an ONNX model that onnxruntime can read: export it again (${error.message ?? error})`,
      { cause: error },
    );
  }
  try {
    return new (classOf(session, name))(ort, session, name, conditionOf(name, bytes));
  } catch (error) {
    await session.release();
    throw error;
  }
}

/**
 * The pixels of one image, as ImageData takes them.
 *
 * @param {{data: Float32Array | Uint8Array, dims: number[]}} images of 1 or 3 channels, as `run` gives them; of floats
 *     what is beyond [0, 1] is cut off.
 * @param {number} index which of them.
 * @returns {{data: Uint8ClampedArray, width: number, height: number}} RGBA, opaque.
 * @throws {DecoderError} other channels, or no such image.
 */
export function toRGBA({ data, dims }, index = 0) {
  const [height, width, channels] = dims.slice(-3);
  if (channels !== 1 && channels !== 3) {
    throw new DecoderError(`images of ${channels} channels cannot be shown: only those of 1 or 3`);
  }
  const pixels = height * width;
  const start = index * pixels * channels;
  if (!(Number.isInteger(index) && start >= 0 && start < data.length)) {
    throw new DecoderError(`there is no image ${describe(index)}: dims are [${dims}]`);
  }
  const scale = data instanceof Uint8Array ? 1 : 255;
  const rgba = new Uint8ClampedArray(4 * pixels); // rounds and clamps what is put into it
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      rgba[4 * pixel + channel] = scale * data[start + pixel * channels + (channels === 3 ? channel : 0)];
    }
    rgba[4 * pixel + 3] = 255;
  }
  return { data: rgba, width, height };
}

/**
 * A generator of standard normal numbers: xoshiro128** (Blackman and Vigna), seeded by SplitMix32, and Box-Muller.
 *
 * @param {number} seed whole, from 0 to 2**32 - 1.
 * @returns {() => number}
 * @throws {DecoderError} seed is something else.
 */
export function standardNormal(seed) {
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw new DecoderError(`seed is ${describe(seed)}: give a whole number from 0 to ${2 ** 32 - 1}`);
  }
  const state = Uint32Array.from({ length: 4 }, (_, step) => {
    let mixed = (seed + Math.imul(step + 1, 0x9e3779b9)) | 0;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return mixed ^ (mixed >>> 15);
  });
  const rotate = (value, bits) => (value << bits) | (value >>> (32 - bits));
  const uniform = () => {
    const result = Math.imul(rotate(Math.imul(state[1], 5), 7), 9) >>> 0;
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate(state[3], 11);
    return (result + 0.5) / 2 ** 32; // between 0 and 1, neither of them
  };
  let spare = null;
  return () => {
    if (spare !== null) {
      const value = spare;
      spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

const namesOf = (session) => [...session.inputNames, ...session.outputNames];

const isList = (value) => Array.isArray(value) || (ArrayBuffer.isView(value) && "length" in value);

function describe(value) {
  if (typeof value === "string") return `the text ${JSON.stringify(value.slice(0, 20))}`;
  if (typeof value === "bigint") return `the BigInt ${value}`;
  return typeof value === "object" && value !== null ? "an object" : String(value);
}

/** Latents or noise in any of the forms that `run` takes, as one Float32Array. */
function pack(rows, latentDim, what, kind) {
  const verb = what === "latents" ? "are" : "is";
  if (!isList(rows)) throw new DecoderError(`${what} ${verb} ${describe(rows)}: give rows of ${latentDim} numbers`);
  if (rows.length === 0) throw new DecoderError(`there ${verb} no ${what}: give rows of ${latentDim} numbers`);
  const inRows = isList(rows[0]);
  if (!inRows && rows.length % latentDim !== 0) {
    const wanted = `this ${kind} takes ${latentDim} numbers an image`;
    throw new DecoderError(`${what} ${verb} a list of ${rows.length}: ${wanted}`);
  }
  const values = new Float32Array(inRows ? rows.length * latentDim : rows.length);
  (inRows ? rows : [rows]).forEach((row, index) => {
    const where = inRows ? `row ${index} of the ${what}` : `the list of ${what}`;
    if (!isList(row)) throw new DecoderError(`${where} is ${describe(row)}: give ${latentDim} numbers`);
    if (inRows && row.length !== latentDim) {
      throw new DecoderError(`${where} has ${row.length} numbers: this ${kind} takes ${latentDim}`);
    }
    for (let column = 0; column < row.length; column++) {
      const value = row[column];
      if (typeof value !== "number") throw new DecoderError(`${where} holds ${describe(value)}: give numbers`);
      if (!Number.isFinite(Math.fround(value))) {
        throw new DecoderError(`${where} holds ${value}: give finite numbers that float32 can hold`);
      }
      values[index * latentDim + column] = value;
    }
  });
  return values;
}

/** What images are asked to be of, one row for each, as one Float32Array; null of a model without conditions. */
function conditions(condition, asked, count, kind) {
  const nothing = asked === null || asked === undefined;
  if (!condition && nothing) return null;
  if (!condition) throw new DecoderError(`a condition is given, and this ${kind} takes none: leave it out`);
  const { names, exclusive } = condition;
  const values = new Float32Array(count * names.length);
  if (nothing) return values;
  if (isList(asked)) {
    if (asked.length !== names.length && asked.length !== values.length) {
      const wanted = `this ${kind} takes ${names.length}, once or for each of ${count} rows`;
      throw new DecoderError(`the condition has ${asked.length} numbers: ${wanted}`);
    }
    for (let index = 0; index < values.length; index++) {
      const value = asked[index % asked.length];
      if (typeof value !== "number" || !Number.isFinite(Math.fround(value))) {
        throw new DecoderError(`the condition holds ${describe(value)}: give finite numbers, 0 for what is not known`);
      }
      values[index] = value;
    }
    return values;
  }
  const row = new Float32Array(names.length);
  const place = (name) => {
    if (names.includes(name)) return names.indexOf(name);
    const known = names.length > SHOWN ? [...names.slice(0, SHOWN), `${names.length - SHOWN} more`] : names;
    throw new DecoderError(`no ${exclusive ? "class" : "attribute"} "${name}": this ${kind} knows ${known.join(", ")}`);
  };
  if (typeof asked === "string") {
    row[place(asked)] = 1;
  } else if (typeof asked === "object" && !exclusive) {
    for (const [name, has] of Object.entries(asked)) {
      if (!["boolean", "number", "undefined"].includes(typeof has) && has !== null) {
        throw new DecoderError(`${name} of the condition is ${describe(has)}: give true or false, or null for either`);
      }
      row[place(name)] = has === null || has === undefined ? 0 : has > 0 ? 1 : -1;
    }
  } else {
    const wanted = exclusive ? "the name of a class" : "a name, an object of attributes,";
    throw new DecoderError(`the condition is ${describe(asked)}: give ${wanted} or ${names.length} numbers`);
  }
  for (let start = 0; start < values.length; start += row.length) values.set(row, start);
  return values;
}

/** What the images of a model can be asked for, by the file's metadata, which onnxruntime does not tell here. */
function conditionOf(name, bytes) {
  const text = (part) => new TextDecoder().decode(part);
  for (const [number, part] of fields(bytes)) {
    if (number !== METADATA) continue;
    const [key, value] = [...fields(part)].map((field) => text(field[1]));
    if (key !== "condition") continue;
    try {
      const { names, exclusive } = JSON.parse(value);
      if (Array.isArray(names) && names.every((each) => typeof each === "string")) {
        return { names, exclusive: exclusive === true };
      }
    } catch {
      // said below
    }
    throw new DecoderError(`${name}: its metadata's entry "condition" is damaged: export it again`);
  }
  return null;
}

const METADATA = 14; // the field of ModelProto; its entries' are 1, the key, and 2, the value
const SHOWN = 20; // of the names in a message

/** The strings and messages in a message of protocol buffers, with the numbers of their fields. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = bytes[at++] ?? 0;
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const type = tag % 8;
    const length = type === 2 ? varint() : { 1: 8, 5: 4 }[type];
    if (type === 0) varint();
    else if (length === undefined) return; // nothing that onnxruntime would have read
    else at += length;
    if (type === 2) yield [Math.floor(tag / 8), bytes.subarray(at - length, at)];
  }
}

// The entry "sha256" of the file's metadata, with which the exporter ends it, up to the 64 digits of the sum before it.
const SUM_ENTRY = [0x72, 0x4a, 0x0a, 0x06, ...new TextEncoder().encode("sha256"), 0x12, 0x40];
const SUM_DIGITS = 64;

/** Compares a file with the checksum in it, where it has one and this page may compute one (https, or this machine). */
export async function checkSum(name, bytes) {
  const start = bytes.length - SUM_ENTRY.length - SUM_DIGITS;
  if (start < 0 || !SUM_ENTRY.every((value, index) => bytes[start + index] === value)) return;
  if (!globalThis.crypto?.subtle) return;
  const recorded = new TextDecoder().decode(bytes.subarray(start + SUM_ENTRY.length));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes.subarray(0, start)));
  if (Array.from(digest, (value) => value.toString(16).padStart(2, "0")).join("") !== recorded) {
    throw new DecoderError(`${name} is not what was exported (its checksum differs): copy it or export it again`);
  }
}

/** The bytes of a model, and what to call it. */
export async function read(source) {
  if (source instanceof Blob) {
    return { name: source.name ?? "the model", bytes: new Uint8Array(await source.arrayBuffer()) };
  }
  if (source instanceof ArrayBuffer) return { name: "the model", bytes: new Uint8Array(source) };
  if (source instanceof Uint8Array) return { name: "the model", bytes: source };
  if (typeof source !== "string" && !(source instanceof URL)) {
    throw new DecoderError(`the model is ${describe(source)}: give an address, a path or the bytes of an .onnx file`);
  }
  const name = String(source);
  // Asked for this way, Node's files are in nobody's way when a bundler makes a page of this module.
  const files = globalThis.process?.getBuiltinModule?.("node:fs/promises");
  if (!files || /^(https?|blob|data):/i.test(name)) return { name, bytes: await download(name) };
  try {
    return { name, bytes: await files.readFile(/^file:/i.test(name) ? new URL(name) : name) };
  } catch (error) {
    if (error.code === "ENOENT") throw new DecoderError(`no ONNX file at ${name}`, { cause: error });
    throw new DecoderError(`cannot read ${name}: ${error.message}`, { cause: error });
  }
}

async function download(url) {
  const controller = new AbortController();
  let timer;
  const within = async (promise) => {
    timer = setTimeout(() => controller.abort(), STALL_MS);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  };
  try {
    const response = await within(fetch(url, { signal: controller.signal }));
    if (!response.ok) throw new DecoderError(`no ONNX file at ${url}: the server answers ${response.status}`);
    const reader = response.body.getReader();
    const parts = [];
    for (;;) {
      const { done, value } = await within(reader.read());
      if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
      parts.push(value);
    }
  } catch (error) {
    if (error instanceof DecoderError) throw error;
    const stalled = controller.signal.aborted && `nothing came for ${STALL_MS / 1000} s`;
    const reason = stalled || (error.cause?.message ?? error.message);
    throw new DecoderError(`cannot load ${url}: ${reason}`, { cause: error });
  }
}
