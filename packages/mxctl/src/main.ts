#!/usr/bin/env node
import { interruptionLine } from "./interruption.ts";
import { runMxctl } from "./program.ts";

// A reader that left, as `| head` does, is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
// Without a reader for its errors there is nobody to tell; the exit code stays what it is.
process.stderr.on("error", () => undefined);
process.on("SIGINT", () => {
  process.stderr.write(`${process.stderr.isTTY === true ? "\n" : ""}${interruptionLine()}`);
  process.exit(130);
});

process.exitCode = await runMxctl(process.argv.slice(2), process.env);
process.exit();
