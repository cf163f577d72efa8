import { readFileSync } from "node:fs";

/** The Lua scripts that every read and write of the directory is: each is atomic, and safe to be run again. */
const PARTS = {
  publish: ["common", "publish"],
  heartbeat: ["common", "heartbeat"],
  worker: ["common", "worker"],
  sync: ["common", "sync"],
  announce: ["common", "node-removal", "announce"],
  leave: ["common", "node-removal", "leave"],
  forgetSource: ["common", "forget-source"],
  repair: ["common", "repair"],
} as const;

export type ScriptName = keyof typeof PARTS;

export const SCRIPT_NAMES = Object.keys(PARTS) as ScriptName[];

/** The text of a script with all that it needs. */
export function scriptText(name: ScriptName): string {
  return PARTS[name].map((part) => readFileSync(new URL(`scripts/${part}.lua`, import.meta.url), "utf8")).join("\n");
}
