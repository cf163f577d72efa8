const SLAB_BYTES = 16_384;
/** A longer copy has memory of its own. */
const SLAB_SHARE_BYTES = SLAB_BYTES / 8;

let slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
let usedBytes = 0;

/**
 * A copy of what may be kept for a while, like a call's request until its turn: where all lies that is kept so, and nothing
 * else. In Buffer's own pool each copy would keep 64 KiB of replies that are long gone, until the next full collection once
 * it is old; V8 sees that memory grow and collects all the time.
 */
export function keepBytes(bytes: Uint8Array): Buffer {
  const { length } = bytes;
  if (length > SLAB_SHARE_BYTES) {
    const copy = Buffer.allocUnsafeSlow(length);
    copy.set(bytes);
    return copy;
  }
  if (usedBytes + length > SLAB_BYTES) {
    slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
    usedBytes = 0;
  }
  const copy = slab.subarray(usedBytes, usedBytes + length);
  copy.set(bytes);
  usedBytes += length;
  return copy;
}
