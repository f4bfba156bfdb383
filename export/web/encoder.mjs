/** An encoder exported as ONNX: pictures to the latents that a decoder makes them of. */

import { construct, DecoderError, inTurn } from "./decoder.mjs";

export class Encoder {
  #ort;
  #session;

  /**
   * Reads an encoder.
   *
   * @param ort as for `Decoder.load`.
   * @param source as for `Decoder.load`.
   * @returns {Promise<Encoder>}
   * @throws {DecoderError} the file is missing, damaged, or no encoder.
   */
  static load(ort, source, options = {}) {
    return construct(ort, source, options, () => Encoder);
  }

  /** Use `Encoder.load`. */
  constructor(ort, session, name) {
    const names = [...session.inputNames, ...[...session.outputNames].sort()];
    if (names.join() !== "image,log_var,mean") {
      throw new DecoderError(`${name} is not an encoder: it has ${names.join(", ")} where one has image, mean and log_var`);
    }
    this.#ort = ort;
    this.#session = session;
    /** [height, width, channels] */
    this.imageShape = session.inputMetadata[0].shape.slice(1);
  }

  /**
   * The mean of a picture's latents.
   *
   * @param {Float32Array} pixels in [0, 1], rows first, channels last.
   * @returns {Promise<Float32Array>}
   */
  async encode(pixels) {
    const size = this.imageShape.reduce((one, other) => one * other);
    if (pixels.length !== size) throw new DecoderError(`the picture has ${pixels.length} values: give ${size}`);
    const image = new this.#ort.Tensor("float32", pixels, [1, ...this.imageShape]);
    return (await inTurn(() => this.#session.run({ image }))).mean.data;
  }
}

/**
 * What an encoder is given for a picture: the centred square, in its size.
 *
 * @param {ImageBitmap | HTMLImageElement | HTMLCanvasElement} picture
 * @param {number[]} shape [height, width, channels], of 1 or 3 channels.
 * @returns {Float32Array}
 */
export function pixelsOf(picture, [height, width, channels]) {
  const side = Math.min(picture.width, picture.height);
  let source = picture;
  let [left, top, size] = [(picture.width - side) / 2, (picture.height - side) / 2, side];
  // By halves: browsers look at four pixels for each that they draw, and skip the others of a larger picture.
  while (size >= 2 * Math.max(width, height)) {
    const half = Math.ceil(size / 2);
    const canvas = Object.assign(document.createElement("canvas"), { width: half, height: half });
    canvas.getContext("2d").drawImage(source, left, top, size, size, 0, 0, half, half);
    [source, left, top, size] = [canvas, 0, 0, half];
  }
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // what is transparent becomes white, as in training
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, left, top, size, size, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Float32Array.from({ length: height * width * channels }, (_, place) => {
    const pixel = 4 * Math.floor(place / channels);
    if (channels === 3) return data[pixel + (place % 3)] / 255;
    return (0.299 * data[pixel] + 0.587 * data[pixel + 1] + 0.114 * data[pixel + 2]) / 255;
  });
}
