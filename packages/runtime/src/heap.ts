import { setFlagsFromString } from "node:v8";

/**
 * How far V8 lets its heap grow beyond what lived at the last full collection, in percent. By itself it waits for up to
 * four times as much: a program that answers many short calls would keep that as its size.
 */
const HEAP_GROWTH_PERCENT = 30;

/** Keeps the process near the memory that it needs, for some more collections. To be called once, before it fills. */
export function keepHeapSmall(): void {
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`);
}

/**
 * Keeps the space of young objects at the megabyte that it begins with. By itself it grows to 64 MiB under load
 * (Node 24), which it keeps, and a collection of it takes many milliseconds.
 */
export function keepNurserySmall(): void {
  setFlagsFromString("--semi-space-growth-factor=1");
}
