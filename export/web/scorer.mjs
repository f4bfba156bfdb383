/** A scorer exported as ONNX: how unusual pictures are, and where it shows. */

import { OfPictures } from "./encoder.mjs";

export class Scorer extends OfPictures {
  static kind = "a scorer";
  static outputs = ["score", "rank", "error_map", "reconstruction"];

  /**
   * How unusual a picture is.
   *
   * @param {Float32Array} pixels in [0, 1], rows first, channels last; `pixelsOf` of encoder.mjs gives them.
   * @returns {Promise<{score: number, rank: number, errorMap: Float32Array, reconstruction: Float32Array}>} `rank` from
   *     0 to 1: 0.99 is more unusual than 99 of 100 usual pictures; `errorMap` [height, width].
   */
  async score(pixels) {
    const found = await this.run(pixels);
    return {
      score: found.score.data[0],
      rank: found.rank.data[0],
      errorMap: found.error_map.data,
      reconstruction: found.reconstruction.data,
    };
  }
}
