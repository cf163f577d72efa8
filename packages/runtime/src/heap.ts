import { setFlagsFromString } from "node:v8";

/**
 * How far V8 lets its heap grow beyond what lived at the last full collection, in percent. By itself it waits for up to
 * four times as much: a program that answers many short calls would keep that as its size.
 */
const HEAP_GROWTH_PERCENT = 30;

/** Keeps the process near the memory that it needs, for some more collections. To be called once, before it fills. */
export function keepHeapSmall(): void {
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`);
  // V8 makes what often lives long in the space of old objects from the start. With streams it learns so of what a call
  // makes, and all that such an object points to stays until the next full collection, which proves it right: a busy server
  // then made four times as many of them, and of young objects five times as much outlived its call.
  setFlagsFromString("--no-allocation-site-pretenuring");
}

/**
 * Keeps the space of young objects at the megabyte that it begins with. By itself it grows to 64 MiB under load
 * (Node 24), which it keeps, and a collection of it takes many milliseconds.
 */
export function keepNurserySmall(): void {
  setFlagsFromString("--semi-space-growth-factor=1");
}
