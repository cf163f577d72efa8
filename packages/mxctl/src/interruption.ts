/** What Ctrl-C means for what was begun; "" when there is nothing to say. */
let meaning = "";

/** Says what becomes of a command's work elsewhere if its user leaves now. */
export function onInterruption(words: string): void {
  meaning = words;
}

/** The line to leave with, or "". */
export function interruptionLine(): string {
  return meaning === "" ? "" : `mxctl: ${meaning}\n`;
}
